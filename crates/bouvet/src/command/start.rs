//! `bouvet start`.

use clap::Args;
use hyper::Method;

use super::names::Names;
use super::outcome::{Connection, Failed};
use super::signals::{self, Signals};
use crate::api::client::path;

/// What is typed after `bouvet start`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Stay attached to its program, and end with it
    #[arg(short, long)]
    attach: bool,
    /// Hand on standard input too
    #[arg(short, long, requires = "attach")]
    interactive: bool,
    #[command(flatten)]
    names: Names,
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    if line.attach {
        let [sandbox] = &line.names.sandboxes[..] else {
            return Err(Failed::new("one sandbox is attached to at a time").hint("leave `-a` away"));
        };
        let query = [("start", "true")];
        return super::attach::attach(sandbox, line.interactive, &query, connection, signals).await;
    }
    connection.needs_server("`start` without `-a`")?;
    let started = connection.each(&line.names.sandboxes, async |client, name| {
        Ok(client.act(Method::POST, &path(&["sandboxes", name, "start"], &[])).await?)
    });
    tokio::select! {
        code = started => code,
        number = signals.next() => Ok(signals::code(number)),
    }
}
