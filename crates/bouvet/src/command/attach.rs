//! `bouvet attach`.

use clap::Args;

use super::outcome::{Connection, Failed};
use super::session::{self, Terms};
use super::signals::Signals;
use crate::api::client::path;
use crate::api::shape::SandboxView;

#[derive(Debug, Args)]
#[command(after_help = "With a terminal, Ctrl-P Ctrl-Q detaches: the program keeps running.")]
pub(crate) struct Line {
    /// Do not forward standard input
    #[arg(long)]
    no_stdin: bool,
    /// Sandbox: its name, its id, or the first characters of its id
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
    // Others may use the program: a signal that it does not obey ends this command alone.
    let (detachable, kills) = (!connection.is_alone(), connection.is_alone());
    let terms = Terms { input, closed: false, terminal: view.tty, detachable, kills };
    terms.check()?;
    let path = path(&["sandboxes", &view.id, "attach"], query);
    let ended = session::run(&connection.client, &path, None, terms, signals).await?;
    Ok(ended.code())
}
