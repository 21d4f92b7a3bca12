//! `bouvet ps`.

mod filter;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use self::filter::SandboxFilter;
use super::outcome::{Connection, Failed};
use super::template::Format;
use super::{table, usage};
use crate::api::client::path;
use crate::api::shape::{PortView, SandboxView};

/// Characters of a command that are shown.
const COMMAND_CHARS: usize = 24;
/// Heads of columns, by the field of a template.
const HEADS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("Names", "NAMES"),
    ("Name", "NAME"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("ExitCode", "EXIT CODE"),
    ("Ports", "PORTS"),
    ("Labels", "LABELS"),
    ("Networks", "NETWORKS"),
    ("Restarts", "RESTARTS"),
    ("Persistent", "PERSISTENT"),
];

#[derive(Debug, Args)]
#[command(
    after_help = "Filters of the same field are alternatives; filters of different fields must all fit. A filter \
    by state includes stopped sandboxes.\n\nA template has the \
    fields of docker's: ID, Names, Image, Command, CreatedAt, RunningFor, State, Status, Ports, Labels, \
    `{{.Label \"NAME\"}}`, Networks; and ExitCode, Restarts, Persistent. `table TEMPLATE` prints a header line."
)]
pub(crate) struct Line {
    /// Include stopped sandboxes
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids, commands and reasons
    #[arg(long)]
    no_trunc: bool,
    /// Show only this many of the newest sandboxes
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = last, allow_negative_numbers = true)]
    last: Option<usize>,
    /// Show only the newest sandbox
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Show only matching sandboxes, by name, id, status (or state), exited, label, ancestor (or image), network or
    /// publish (may be repeated)
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template for each line, `table TEMPLATE`, or `json`
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// Reads a number of sandboxes: a negative one is docker's default, all of them.
fn last(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(..0) => Ok(usize::MAX),
        _ => usage::number(text),
    }
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.filters()?;
        self.template().map(drop)
    }

    fn filters(&self) -> Result<Vec<SandboxFilter>, Failed> {
        self.filter.iter().map(|text| SandboxFilter::parse(text)).collect()
    }

    fn template(&self) -> Result<Option<Format>, Failed> {
        Ok(self.format.as_deref().map(Format::parse).transpose()?.flatten())
    }

    /// Whether sandboxes are listed that have stopped: as `docker`, also where a state is named.
    pub(super) fn lists_stopped(&self) -> bool {
        self.filters().is_ok_and(|filters| self.is_for_stopped(&filters))
    }

    fn is_for_stopped(&self, filters: &[SandboxFilter]) -> bool {
        self.all || self.latest || self.last.is_some() || filters.iter().any(SandboxFilter::is_for_stopped)
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let (filters, format) = (line.filters()?, line.template()?);
    let all = line.is_for_stopped(&filters).to_string();
    let mut views: Vec<SandboxView> = connection.client.get(&path(&["sandboxes"], &[("all", &all)])).await?;
    views.retain(|view| filter::fits(&filters, view));
    if let Some(last) = line.last.or(line.latest.then_some(1)) {
        views.drain(..views.len().saturating_sub(last));
    }
    if !line.json && !line.quiet {
        show_programs_of_images(&mut views, connection).await;
    }
    let now = SystemTime::now();
    // The newest first, as people look for it.
    let newest = views.iter().rev();
    if line.json {
        table::json(&views)?;
    } else if line.quiet {
        for view in newest {
            table::line(if line.no_trunc { &view.id } else { view.short_id() })?;
        }
    } else if let Some(format) = format {
        let rows: Vec<_> = newest.map(|view| fields(view, line.no_trunc, now)).collect();
        format.print(HEADS, &rows)?;
    } else {
        let rows = newest.map(|view| row(view, line.no_trunc, now)).collect();
        table::print(&["ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS"], rows)?;
    }
    Ok(0)
}

/// Completes the commands of sandboxes that run their image's own program.
async fn show_programs_of_images(views: &mut [SandboxView], connection: &Connection) {
    let mut known = BTreeMap::new();
    let is_meant = |view: &&mut SandboxView| {
        view.command.is_empty() && !view.idle && !bouvet_host::is_base_image(&view.image)
    };
    for view in views.iter_mut().filter(is_meant) {
        if let Entry::Vacant(unknown) = known.entry(view.image.clone()) {
            let path = path(&["image"], &[("name", &view.image)]);
            // An image that is gone has no command to show.
            let image: Value = connection.client.get(&path).await.unwrap_or_default();
            unknown.insert(program(&image["config"]));
        }
        view.command = known.get(&view.image).cloned().unwrap_or_default();
    }
}

/// The program of an image with this configuration, and its arguments.
fn program(config: &Value) -> Vec<String> {
    let words = |name: &str| config[name].as_array().cloned().unwrap_or_default();
    let all = words("entrypoint").into_iter().chain(words("cmd"));
    all.filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

pub(super) fn image(view: &SandboxView) -> &str {
    if view.image.is_empty() { bouvet_host::BASE_IMAGE } else { &view.image }
}

/// A sandbox as templates have it.
fn fields(view: &SandboxView, full: bool, now: SystemTime) -> Value {
    let cells = row(view, full, now);
    let labels: Vec<_> = view.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "ID": cells[0],
        "Names": view.name,
        "Name": view.name,
        "Image": cells[2],
        "Command": format!("\"{}\"", cells[3]),
        "CreatedAt": view.created_at,
        "RunningFor": cells[4],
        "State": state(view),
        "Status": cells[5],
        "ExitCode": view.exit_code,
        "Ports": cells[6],
        "Labels": labels.join(","),
        "LabelsByName": view.labels,
        "Networks": view.network,
        "Restarts": view.restarts,
        "Persistent": view.persistent,
    })
}

/// Docker's word for where a sandbox is in its life.
pub(super) fn state(view: &SandboxView) -> &str {
    match view.state.as_str() {
        "stopped" | "failed" if view.restarting => "restarting",
        "stopped" => "exited",
        state => state,
    }
}

/// Where a sandbox is in its life, in docker's words.
pub(super) fn status(view: &SandboxView, now: SystemTime) -> String {
    let since = |time: &Option<String>| {
        let time = time.as_deref().and_then(|time| humantime::parse_rfc3339(time).ok());
        time.map(|time| table::human(now.duration_since(time).unwrap_or_default()))
    };
    let ago = || since(&view.finished_at).map(|ago| format!(" {ago} ago")).unwrap_or_default();
    let code = view.exit_code.unwrap_or(1);
    match (view.state.as_str(), since(&view.started_at)) {
        ("running", Some(up)) => format!("Up {up}"),
        ("paused", Some(up)) => format!("Up {up} (Paused)"),
        ("created", _) => "Created".into(),
        ("stopped" | "failed", _) if view.restarting => format!("Restarting ({code}){}", ago()),
        ("stopped", _) if view.out_of_memory => format!("Exited ({code}){}: out of memory", ago()),
        ("stopped", _) => format!("Exited ({code}){}", ago()),
        ("failed", _) => format!("Failed{}: {}", ago(), view.reason.as_deref().unwrap_or_default()),
        (state, _) => state.to_owned(),
    }
}

fn row(view: &SandboxView, full: bool, now: SystemTime) -> Vec<String> {
    let command = view.command.join(" ");
    let status = status(view, now);
    vec![
        if full { view.id.clone() } else { view.short_id().to_owned() },
        view.name.clone(),
        image(view).to_owned(),
        if full { command } else { table::clip(&command, COMMAND_CHARS) },
        table::ago(&view.created_at, now),
        if full { status } else { table::clip(&status, 2 * COMMAND_CHARS) },
        view.ports.iter().map(port).collect::<Vec<_>>().join(", "),
    ]
}

/// As `docker` has it.
fn port(port: &PortView) -> String {
    let closed = if port.error.is_some() { " (closed)" } else { "" };
    format!("{}->{}{closed}", port.host(), port.guest())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn program_of_image_is_entrypoint_and_arguments() {
        let config = json!({ "entrypoint": ["/entry"], "cmd": ["nginx", "-g"] });
        assert_eq!(program(&config), ["/entry", "nginx", "-g"]);
        assert_eq!(program(&json!({ "cmd": ["sh"] })), ["sh"]);
        assert_eq!(program(&Value::Null), Vec::<String>::new());
    }

    #[test]
    fn a_row_says_what_people_look_for() {
        let view = SandboxView {
            id: "0123456789ab".into(),
            state: "stopped".into(),
            exit_code: Some(7),
            command: vec!["sh".into(), "-c".into(), "x".repeat(40)],
            created_at: "1970-01-01T00:00:00Z".into(),
            finished_at: Some("1970-01-01T00:00:30Z".into()),
            labels: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into(),
            ports: [("::1", None), ("127.0.0.1", Some("in use".to_owned()))]
                .map(|(host, error)| PortView {
                    host: host.into(),
                    host_port: 8080,
                    guest_port: 80,
                    protocol: "tcp".into(),
                    error,
                })
                .into(),
            ..SandboxView::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(60);
        let row = row(&view, false, now);
        assert_eq!(row[0], "01234567");
        assert_eq!(
            (row[2].as_str(), row[4].as_str(), row[5].as_str()),
            ("base", "About a minute ago", "Exited (7) 30 seconds ago")
        );
        assert_eq!(row[3].chars().count(), COMMAND_CHARS);
        assert_eq!(row[6], "[::1]:8080->80/tcp, 127.0.0.1:8080->80/tcp (closed)");
        let fields = fields(&view, false, now);
        assert_eq!((&fields["State"], &fields["Labels"]), (&json!("exited"), &json!("a=1,b=")));
        for (head, _) in HEADS {
            assert!(fields.get(head).is_some(), "{head}");
        }
    }

    #[test]
    fn status_has_dockers_words() {
        let view = |state: &str| SandboxView {
            state: state.into(),
            started_at: Some("1970-01-01T00:00:00Z".into()),
            finished_at: Some("1970-01-01T00:00:00Z".into()),
            exit_code: Some(137),
            ..SandboxView::default()
        };
        let at = |view: &SandboxView| status(view, UNIX_EPOCH + Duration::from_secs(180));
        assert_eq!(at(&view("running")), "Up 3 minutes");
        assert_eq!(at(&view("paused")), "Up 3 minutes (Paused)");
        assert_eq!(at(&view("created")), "Created");
        assert_eq!(at(&view("stopped")), "Exited (137) 3 minutes ago");
        assert_eq!(
            at(&SandboxView { restarting: true, ..view("stopped") }),
            "Restarting (137) 3 minutes ago"
        );
        let failed = SandboxView { reason: Some("gone".into()), exit_code: None, ..view("failed") };
        assert_eq!(at(&failed), "Failed 3 minutes ago: gone");
    }
}
