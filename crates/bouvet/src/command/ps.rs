//! `bouvet ps`.

use std::time::SystemTime;

use clap::Args;

use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::path;
use crate::api::shape::{PortView, SandboxView};

/// Characters of a command that are shown.
const COMMAND_CHARS: usize = 24;

/// What is typed after `bouvet ps`.
#[derive(Debug, Args)]
#[command(after_help = "Without a server, the persistent sandboxes that are stopped are listed.")]
pub(crate) struct Line {
    /// Those too that have stopped
    #[arg(short, long)]
    all: bool,
    /// Ids alone
    #[arg(short, long)]
    quiet: bool,
    /// Ids, commands and reasons at full length
    #[arg(long)]
    no_trunc: bool,
    /// Only those whose name, state or image is so
    #[arg(short, long, value_name = "name|state|image=VALUE")]
    filter: Vec<String>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    // Alone, none can run.
    let all = (line.all || connection.is_alone()).to_string();
    let mut views: Vec<SandboxView> = connection.client.get(&path(&["sandboxes"], &[("all", &all)])).await?;
    for filter in &line.filter {
        keep(&mut views, filter)?;
    }
    if line.json {
        table::json(&views)?;
    } else if line.quiet {
        for view in &views {
            table::line(if line.no_trunc { &view.id } else { view.short_id() })?;
        }
    } else {
        // The newest first, as people look for it.
        let rows = views.iter().rev().map(|view| row(view, line.no_trunc, SystemTime::now())).collect();
        table::print(&["ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS"], rows)?;
    }
    Ok(0)
}

fn keep(views: &mut Vec<SandboxView>, filter: &str) -> Result<(), Failed> {
    let allowed = "name=VALUE, state=VALUE and image=VALUE are allowed";
    let (field, value) =
        filter.split_once('=').ok_or_else(|| super::usage::wrong("--filter", filter, allowed))?;
    match field {
        // A part of it, as `docker` has it.
        "name" => views.retain(|view| view.name.contains(value)),
        "state" | "status" => views.retain(|view| view.state == value),
        "image" | "ancestor" => views.retain(|view| image(view) == value),
        _ => return Err(super::usage::wrong("--filter", filter, allowed)),
    }
    Ok(())
}

fn image(view: &SandboxView) -> &str {
    if view.image.is_empty() { "base" } else { &view.image }
}

fn row(view: &SandboxView, full: bool, now: SystemTime) -> Vec<String> {
    let command = view.command.join(" ");
    let status = match (view.exit_code, &view.reason) {
        (Some(code), _) => format!("{} ({code})", view.state),
        (None, Some(reason)) => format!("{}: {reason}", view.state),
        (None, None) => view.state.clone(),
    };
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
    fn a_row_says_what_people_look_for() {
        let view = SandboxView {
            id: "0123456789ab".into(),
            state: "stopped".into(),
            exit_code: Some(7),
            command: vec!["sh".into(), "-c".into(), "x".repeat(40)],
            created_at: "1970-01-01T00:00:00Z".into(),
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
        let row = row(&view, false, UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(row[0], "01234567");
        assert_eq!(
            (row[2].as_str(), row[4].as_str(), row[5].as_str()),
            ("base", "1 minute ago", "stopped (7)")
        );
        assert_eq!(row[3].chars().count(), COMMAND_CHARS);
        assert_eq!(row[6], "[::1]:8080->80/tcp, 127.0.0.1:8080->80/tcp (closed)");
        let mut views = vec![view];
        keep(&mut views, "state=stopped").unwrap();
        assert_eq!(views.len(), 1);
        keep(&mut views, "name=x").unwrap();
        assert!(views.is_empty());
        assert!(keep(&mut views, "label=x").is_err());
    }
}
