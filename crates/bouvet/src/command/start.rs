//! `bouvet start`.

use clap::Args;
use hyper::Method;

use super::names::SandboxNames;
use super::notice::Notice;
use super::outcome::{Connection, Failed};
use super::signals::{self, Signals};
use crate::api::client::{CallError, path};
use crate::failure::Kind;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Attach to the program, and end when it ends
    #[arg(short, long)]
    attach: bool,
    /// Attach to the program, and forward standard input
    #[arg(short, long)]
    interactive: bool,
    #[command(flatten)]
    names: SandboxNames,
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn attached(&self) -> Option<&str> {
        self.names.sandboxes.first().map(String::as_str).filter(|_| self.is_attached())
    }

    /// Whether the command stays until the program has ended.
    pub(super) fn is_attached(&self) -> bool {
        self.attach || self.interactive
    }
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    if line.is_attached() {
        let [sandbox] = &line.names.sandboxes[..] else {
            return Err(Failed::new("one sandbox is attached to at a time").hint("leave `-a` and `-i` away"));
        };
        return super::attach::attach(sandbox, line.interactive, true, connection, signals).await;
    }
    let started = connection.each(&line.names.sandboxes, async |_, name| start(name, connection).await);
    tokio::select! {
        code = started => code,
        number = signals.next() => Ok(signals::code(number)),
    }
}

/// Starts a sandbox, unless it runs.
pub(super) async fn start(name: &str, connection: &Connection) -> Result<(), Failed> {
    let client = &connection.client;
    let _notice = Notice::of(name, client).await?;
    match client.act(Method::POST, &path(&["sandboxes", name, "start"], &[])).await {
        // As in docker, a sandbox that runs is started already.
        Err(CallError::Refused(failure)) if failure.kind == Kind::Running.name() => Ok(()),
        done => Ok(done?),
    }
}
