//! `bouvet attach`.

use clap::Args;

use super::outcome::{Connection, Failed};
use super::session::{self, Terms};
use super::signals::Signals;
use crate::api::client::path;
use crate::api::shape::SandboxView;

/// What is typed after `bouvet attach`.
#[derive(Debug, Args)]
#[command(after_help = "With a terminal, Ctrl-P Ctrl-Q leaves the program and lets it run.")]
pub(crate) struct Line {
    /// Do not hand on standard input
    #[arg(long)]
    no_stdin: bool,
    /// The sandbox: its name, its id, or the beginning of its id
    sandbox: String,
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    attach(&line.sandbox, !line.no_stdin, &[], connection, signals).await
}

/// Attaches to a sandbox's main program, after what `query` says.
pub(super) async fn attach(
    sandbox: &str,
    may_type: bool,
    query: &[(&str, &str)],
    connection: &Connection,
    signals: &mut Signals,
) -> Result<u8, Failed> {
    let view: SandboxView = connection.client.get(&path(&["sandboxes", sandbox], &[])).await?;
    let input = may_type && view.stdin_open;
    let terms = Terms { input, closed: false, terminal: view.tty, detachable: !connection.is_alone() };
    terms.check()?;
    let path = path(&["sandboxes", &view.id, "attach"], query);
    let ended = session::run(&connection.client, &path, None, terms, signals).await?;
    Ok(ended.code())
}
