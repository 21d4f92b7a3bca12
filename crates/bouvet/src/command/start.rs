//! `bouvet start`.

use clap::Args;
use hyper::Method;

use super::names::Names;
use super::outcome::{Connection, Failed};
use super::signals::{self, Signals};
use crate::api::client::path;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Attach to the program, and end when it ends
    #[arg(short, long)]
    attach: bool,
    /// Also forward standard input
    #[arg(short, long, requires = "attach")]
    interactive: bool,
    #[command(flatten)]
    names: Names,
}

impl Line {
    /// Whether the command stays until the program has ended.
    pub(super) fn is_attached(&self) -> bool {
        self.attach
    }
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    if line.attach {
        let [sandbox] = &line.names.sandboxes[..] else {
            return Err(Failed::new("one sandbox is attached to at a time").hint("leave `-a` away"));
        };
        let query = [("start", "true")];
        return super::attach::attach(sandbox, line.interactive, &query, connection, signals).await;
    }
    let started = connection.each(&line.names.sandboxes, async |client, name| {
        Ok(client.act(Method::POST, &path(&["sandboxes", name, "start"], &[])).await?)
    });
    tokio::select! {
        code = started => code,
        number = signals.next() => Ok(signals::code(number)),
    }
}
