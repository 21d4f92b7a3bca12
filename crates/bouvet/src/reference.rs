//! The reference of the command line, as Markdown, from its definitions.

use std::fmt::Write as _;

use clap::{Arg, Command};

use crate::command::docker::{MISSING, OTHERWISE, short_form};
use crate::command::without_server::{EXAMPLES, WithoutServer};

const HEAD: &str = "# Command line

<!-- generated from the definitions of the commands, do not edit: BOUVET_RECORD_DOCS=1 cargo test -p bouvet cli -->

`bouvet` is like `docker`: what you know from there works here. Each sandbox is a virtual machine of its own.

```bash
bouvet serve &                                # the server, for all that follows
bouvet run -it base bash                      # a computer; `base` is the image of the server itself
bouvet run -d --name web -v ./site:/srv alpine sh -c 'cd /srv && httpd -f'
bouvet exec -it web sh
bouvet logs -f web
bouvet cp web:/etc/hostname .
bouvet rm -f web
```

Commands use the server that answers on the socket (`BOUVET_SOCKET`). Without a server, `run` creates the sandbox in its
own process, and removes it when its program has ended. A `--persistent` sandbox is kept: `bouvet start -a` starts it
again. [Without a server](#without-a-server) lists the other commands.

- A sandbox is named by its name, its id, or the beginning of its id that no other has.
- The exit code of `run`, `exec`, `wait`, `attach` and `start -a` is the program's; 128 and its number where a signal
  ended it. 127: there is no such program. 126: it cannot be run, or its directory or user is missing. 125: Bouvet itself
  failed, or the command line is wrong.
- Options end at the image of `run` and `create` and at the sandbox of `exec` and `top`: what follows belongs to the program,
  as in `bouvet run --entrypoint sh base -c 'echo hi'`.
- SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the program that a command waits for. A third
  SIGINT or SIGTERM ends the command itself.
- After SIGTERM or SIGHUP the program has ten seconds to end; so it has after SIGINT, unless `-i` is given. Then `run` and
  `exec` kill it, and `attach` and `start -a` leave it running. The exit code of the command is 143 after SIGTERM, 129
  after SIGHUP and 130 after SIGINT. So `timeout 60 bouvet exec …` ends after seventy seconds at the latest.
- Signals that are ignored when a command starts, as by `nohup`, stay ignored.
- With `-t` and `-i` every key goes to the program. Ctrl-P Ctrl-Q leaves it running, if there is a server.
- A sandbox of `run` never ends by age unless `--timeout` says so; `BOUVET_SANDBOX_TIMEOUT_SECS` is for MCP clients.
- `version` prints the version of the command also where no server answers; then it fails as other commands do.
- While the first sandbox of a size is made, `run`, `create`, `start` and `restart` report it in one line on standard error.
- `-d base` without a program is a sandbox that stays until it is stopped, for `exec`. `-it base` runs `bash`.
";

/// All commands of `line`, in their order.
pub(crate) fn of(line: &mut Command) -> String {
    line.build();
    let mut text = String::from(HEAD);
    without_server(&mut text).ok();
    differences(line, &mut text).ok();
    describe_all(line, "## bouvet", &mut text).ok();
    text
}

/// Commands that `docker` does not have.
const OWN: &[&str] =
    &["attest", "bench", "completions", "demo", "doctor", "help", "resume", "serve", "sidecar"];

/// Lists what works as in `docker`, what differs and what is missing.
fn differences(line: &Command, text: &mut String) -> std::fmt::Result {
    let names = |command: &Command| command.get_name().to_owned();
    let shared: Vec<_> = line.get_subcommands().map(names).filter(|name| !OWN.contains(&&**name)).collect();
    writeln!(text, "\n## Differences from docker\n\n| As docker | |\n|---|---|")?;
    writeln!(text, "| Commands | `{}` |", shared.join("`, `"))?;
    writeln!(text, "| Flags | those listed below with each command |")?;
    writeln!(text, "\n| Otherwise | |\n|---|---|")?;
    for (habit, here) in OTHERWISE {
        writeln!(text, "| {habit} | {here} |")?;
    }
    writeln!(text, "\n| Not there | Instead |\n|---|---|")?;
    for missing in MISSING {
        let names = match missing.flags {
            "" => format!("`{}`", missing.verb),
            flags if missing.verb.is_empty() => quoted(flags),
            flags => format!("`{}` {}", missing.verb, quoted(flags)),
        };
        writeln!(text, "| {names} | {} |", cell(missing.instead))?;
    }
    Ok(())
}

fn quoted(names: &str) -> String {
    names.split(' ').map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn without_server(text: &mut String) -> std::fmt::Result {
    let of = |rule| {
        let examples = EXAMPLES.iter().filter(move |(_, found)| *found == rule);
        examples.map(|(example, _)| format!("`{example}`")).collect::<Vec<_>>().join(", ")
    };
    writeln!(text, "\n## Without a server\n\n| Commands | Where no server answers |\n|---|---|")?;
    writeln!(text, "| {} | work by themselves |", of(WithoutServer::Works))?;
    let stopped = "work for persistent sandboxes that have stopped (`inspect` also for images)";
    writeln!(text, "| {} | {stopped}; for others they fail as below |", of(WithoutServer::WorksForStopped))?;
    let fails = "fail with exit code 125: `no bouvet server is running (socket …). Start one: bouvet serve`";
    writeln!(text, "| {} | {fails} |", of(WithoutServer::Fails))
}

/// The commands below `line`, each under a heading that begins with `head`, and those below them.
fn describe_all(line: &mut Command, head: &str, text: &mut String) -> std::fmt::Result {
    let group = line.get_name().to_owned();
    long_forms(line, text)?;
    for command in line.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        if short_form(&group, command.get_name()).is_some() {
            continue;
        }
        let head = format!("{head} {}", command.get_name());
        describe(command, &head, text)?;
        describe_all(command, &format!("#{head}"), text)?;
    }
    Ok(())
}

/// The commands of a group that have a short form, which is described in its place.
fn long_forms(group: &Command, text: &mut String) -> std::fmt::Result {
    let name = group.get_name();
    let commands = group.get_subcommands().map(|command| (command, short_form(name, command.get_name())));
    let mut is_first = true;
    for (command, short) in commands.filter_map(|(command, short)| Some((command, short?))) {
        if command.get_name() == "help" {
            continue;
        }
        if std::mem::take(&mut is_first) {
            writeln!(text, "\n| Long form | As |\n|---|---|")?;
        }
        let aliases = command.get_visible_aliases().map(|alias| format!(", `{alias}`")).collect::<String>();
        writeln!(text, "| `bouvet {name} {}`{aliases} | `bouvet {short}` |", command.get_name())?;
    }
    Ok(())
}

fn describe(command: &mut Command, head: &str, text: &mut String) -> std::fmt::Result {
    writeln!(text, "\n{head}\n")?;
    writeln!(text, "{}.\n", command.get_about().map(ToString::to_string).unwrap_or_default())?;
    let usage = command.render_usage().to_string();
    writeln!(text, "```text\n{}\n```", usage.trim_start_matches("Usage: "))?;
    let aliases: Vec<_> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        writeln!(text, "\nAlso: {}.", aliases.join(", "))?;
    }
    let shown: Vec<_> =
        command.get_arguments().filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version")).collect();
    if !shown.is_empty() {
        writeln!(text, "\n| | | Default |\n|---|---|---|")?;
    }
    for arg in shown {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let (help, said) = match help.split_once(" [default: ") {
            Some((help, default)) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
            None => (help, defaults(arg)),
        };
        let default = if said.is_empty() { String::new() } else { format!("`{said}`") };
        writeln!(text, "| {} | {}{} | {default} |", names(arg), cell(&help), cell(&choices(arg)))?;
    }
    // The variables have a reference of their own.
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    if !after.is_empty() && !after.starts_with("Environment variables") {
        writeln!(text, "\n{after}")?;
    }
    Ok(())
}

fn names(arg: &Arg) -> String {
    let value = match arg.get_action().takes_values() {
        true => arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default(),
        false => String::new(),
    };
    if arg.is_positional() {
        return format!("`{value}`");
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let both: Vec<_> = short.into_iter().chain(long).collect();
    let space = if value.is_empty() { "" } else { " " };
    format!("`{}{space}{}`", both.join("`, `"), cell(&value))
}

fn choices(arg: &Arg) -> String {
    let names: Vec<_> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let is_switch = !arg.get_action().takes_values();
    if names.is_empty() || is_switch { String::new() } else { format!(": {}", names.join(", ")) }
}

fn defaults(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() { values.join(" ") } else { String::new() }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
