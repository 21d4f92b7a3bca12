//! `bouvet kill`.

use clap::Args;
use hyper::Method;

use super::names::Names;
use super::outcome::{Connection, Failed};
use crate::api::client::{Client, path};

/// What is typed after `bouvet kill`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// The same as `-s KILL`
    #[arg(short = '9', conflicts_with = "signal")]
    nine: bool,
    #[command(flatten)]
    names: Names,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let signal = if line.nine { "KILL" } else { &line.signal };
    let kill = async |client: &Client, name: &str| {
        let path = path(&["sandboxes", name, "kill"], &[("signal", signal)]);
        Ok(client.act(Method::POST, &path).await?)
    };
    connection.each(&line.names.sandboxes, kill).await
}
