//! Each verb and flag of docker's is accepted, or refused by name.

use std::collections::BTreeSet;

use super::*;

/// The rows of the table: a verb, and its flags with all their names.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = include_str!("docker_surface.txt").lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| row.split_once(':').unwrap())
}

fn parsed(line: &str) -> (Vec<String>, Result<BouvetLine, clap::Error>) {
    let typed: Vec<String> =
        std::iter::once("bouvet").chain(line.split_whitespace()).map(str::to_owned).collect();
    let parsed = BouvetLine::try_parse_from(&typed);
    (typed, parsed)
}

fn refusal(line: &str) -> Option<String> {
    let (typed, parsed) = parsed(line);
    command::docker::explain(&parsed.err()?, &typed).map(|failed| failed.text)
}

/// Whether clap knows the last word of `line`, and, for a flag, whether it takes a value.
fn is_known(line: &str, takes_value: bool) -> Result<bool, String> {
    match parsed(line).1.map_err(|error| error.kind()) {
        Err(ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument) => Ok(false),
        Err(ErrorKind::InvalidValue) if takes_value => Ok(true),
        Err(ErrorKind::InvalidValue) => Err(format!("`{line}` takes a value, and docker's does not")),
        _ if takes_value => Err(format!("`{line}` takes no value, and docker's does")),
        _ => Ok(true),
    }
}

#[test]
fn docker_surface_is_accepted_or_refused_by_name() {
    let mut faults = Vec::new();
    let (mut verbs, mut flags) = (0, 0);
    for (verb, listed) in rows() {
        verbs += 1;
        if is_known(verb, false) == Ok(false) && refusal(verb).is_none() {
            faults.push(format!("`{verb}` is neither accepted nor refused by name"));
        }
        for names in listed.split_whitespace() {
            let (names, takes_value) = match names.strip_suffix('=') {
                Some(names) => (names, true),
                None => (names, false),
            };
            for name in names.split('/') {
                flags += 1;
                let line = format!("{verb} {name}");
                match is_known(&line, takes_value) {
                    Ok(true) => {}
                    Ok(false)
                        if refusal(&line).is_some_and(|text| text.contains(&format!(" has no {name}: "))) => {
                    }
                    Ok(false) => faults.push(format!("`{line}` is neither accepted nor refused by name")),
                    Err(fault) => faults.push(fault),
                }
            }
        }
    }
    assert!(verbs > 100 && flags > 800, "the table has {verbs} verbs and {flags} flags");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn refused_names_are_dockers_and_not_ours() {
    let listed = |verb: &str| rows().find(|(known, _)| *known == verb).map(|(_, flags)| flags);
    for row in command::docker::MISSING {
        let flags = listed(row.verb);
        if row.flags.is_empty() {
            assert_eq!(is_known(row.verb, false), Ok(false), "`{}` is accepted", row.verb);
            assert!(flags.is_some(), "`{}` is not in the table", row.verb);
            continue;
        }
        for flag in row.flags.split(' ') {
            let text =
                refusal(&format!("{} {flag}", row.verb)).unwrap_or_else(|| panic!("{} {flag}", row.verb));
            assert!(text.contains(row.instead), "{text}");
        }
    }
    let names: Vec<_> = command::docker::MISSING.iter().map(|row| (row.verb, row.flags)).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a row is there twice");
}

#[test]
fn refusals_name_what_was_typed() {
    for (line, text) in [
        ("run --gpus=all alpine", "bouvet run has no --gpus: "),
        ("create --gpus all alpine", "bouvet create has no --gpus: "),
        ("container run --gpus all alpine", "bouvet container run has no --gpus: "),
        ("container ls -s", "bouvet container ls has no -s: "),
        ("image rm --no-prune x", "bouvet image rm has no --no-prune: "),
        ("-H tcp://host ps", "bouvet has no -H: "),
        ("build -t x .", "bouvet has no `build`: "),
        ("image build -t x .", "bouvet has no `image build`: "),
        ("container diff web", "bouvet has no `container diff`: "),
        ("system df", "bouvet has no `system df`: "),
        ("volume ls", "bouvet has no `volume`: "),
    ] {
        let refused = refusal(line).unwrap_or_default();
        assert!(refused.starts_with(text), "{line}: {refused}");
    }
    for line in ["frobnicate", "run --frobnicate alpine", "container frobnicate", "network gpus"] {
        assert_eq!(refusal(line), None, "{line}");
    }
}

#[test]
fn names_from_elsewhere_have_an_answer() {
    for (line, text) in [
        ("shell", "bouvet has no `shell`: `bouvet run -it base`"),
        ("up", "bouvet has no `up`: `bouvet serve`"),
        ("daemon", "bouvet has no `daemon`: `bouvet serve`"),
        ("destroy web", "bouvet has no `destroy`: `bouvet rm`"),
        ("delete web", "bouvet has no `delete`: `bouvet rm`"),
        ("ssh web", "bouvet has no `ssh`: `bouvet exec -it"),
        ("docker run x", "bouvet has no `docker`: leave"),
        ("mcp", "bouvet has no `mcp`: "),
        ("install", "bouvet has no `install`: "),
        ("setup", "bouvet has no `setup`: `bouvet doctor`"),
        ("serve --port 80", "bouvet serve has no --port: it is configured by environment variables"),
        ("serve -d", "bouvet serve has no -d: "),
    ] {
        let refused = refusal(line).unwrap_or_default();
        assert!(refused.starts_with(text), "{line}: {refused}");
    }
    for line in ["ls", "list -a", "ls -q"] {
        assert!(parsed(line).1.is_ok(), "{line}");
    }
}
