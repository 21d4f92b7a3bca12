//! `bouvet kill`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use crate::api::client::{Client, path};

/// What is typed after `bouvet kill`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// The sandboxes: their names, ids, or the beginnings of their ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let kill = async |client: &Client, name: &str| {
        let path = path(&["sandboxes", name, "kill"], &[("signal", &line.signal)]);
        Ok(client.act(Method::POST, &path).await?)
    };
    connection.each(&line.sandboxes, kill).await
}
