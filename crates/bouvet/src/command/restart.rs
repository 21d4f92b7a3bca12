//! `bouvet restart`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use crate::api::STOP_GRACE_SECS;
use crate::api::client::{Client, path};

/// What is typed after `bouvet restart`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Seconds that the program has to end before it is killed
    #[arg(short, long, default_value_t = STOP_GRACE_SECS, value_name = "SECS")]
    time: u64,
    /// The sandboxes: their names, ids, or the beginnings of their ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    connection.needs_server("`restart`")?;
    let seconds = line.time.to_string();
    let restart = async |client: &Client, name: &str| {
        client.act(Method::POST, &path(&["sandboxes", name, "stop"], &[("grace_secs", &seconds)])).await?;
        Ok(client.act(Method::POST, &path(&["sandboxes", name, "start"], &[])).await?)
    };
    connection.each(&line.sandboxes, restart).await
}
