//! `bouvet attach`.

use clap::Args;

use super::notice::Notice;
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

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        &self.sandbox
    }
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    attach(&line.sandbox, !line.no_stdin, false, connection, signals).await
}

/// Attaches to a sandbox's main program; `starts` it before, unless it runs.
pub(super) async fn attach(
    sandbox: &str,
    may_type: bool,
    starts: bool,
    connection: &Connection,
    signals: &mut Signals,
) -> Result<u8, Failed> {
    let view: SandboxView = connection.client.get(&path(&["sandboxes", sandbox], &[])).await?;
    let starts = starts && view.state != "running";
    let input = may_type && view.stdin_open;
    // Others may use the program: a signal that it does not obey ends this command alone.
    let (detachable, kills) = (!connection.is_alone(), connection.is_alone());
    let terms = Terms { input, closed: false, terminal: view.tty, detachable, kills };
    terms.check()?;
    let notice = match starts {
        true => Some(Notice::of(&view.id, &connection.client).await?),
        false => None,
    };
    let starts = starts.to_string();
    let path = path(&["sandboxes", &view.id, "attach"], &[("start", &starts)]);
    let call = session::Call { path, start: None, notice };
    let ended = session::run(&connection.client, call, terms, signals).await?;
    Ok(ended.code())
}
