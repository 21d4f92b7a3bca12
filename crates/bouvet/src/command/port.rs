//! `bouvet port`.

use clap::Args;

use super::outcome::{Connection, Failed};
use super::{table, usage};
use crate::api::client::path;
use crate::api::ports::guest_port;
use crate::api::shape::PortView;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Sandbox: its name, its id, or the first characters of its id
    sandbox: String,
    /// Show only where this port of the sandbox is published
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.port
            .as_deref()
            .map_or(Ok(()), |port| guest_port(port).map(drop))
            .map_err(|error| usage::of(&error))
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let ports: Vec<PortView> =
        connection.client.get(&path(&["sandboxes", &line.sandbox, "ports"], &[])).await?;
    let Some(wanted) = &line.port else {
        for port in &ports {
            table::line(&format!("{} -> {}", port.guest(), place(port)))?;
        }
        return Ok(0);
    };
    let (guest, protocol) = guest_port(wanted).map_err(|error| usage::of(&error))?;
    let leads_there =
        |port: &&PortView| (port.guest_port, port.protocol.as_str()) == (guest, protocol.name());
    let mut found = ports.iter().filter(leads_there).peekable();
    if found.peek().is_none() {
        let fact =
            format!("no port of the host leads to the port {guest}/{} of the sandbox", protocol.name());
        return Err(Failed::new(fact).hint("`bouvet port` without a number shows those that do"));
    }
    for port in found {
        table::line(&place(port))?;
    }
    Ok(0)
}

fn place(port: &PortView) -> String {
    match &port.error {
        None => port.host(),
        Some(error) => format!("{} (closed: {})", port.host(), table::plain(error)),
    }
}
