//! `bouvet stop`.

use clap::Args;
use hyper::Method;

use super::names::{SandboxNames, StopArgs};
use super::outcome::{Connection, Failed};
use crate::api::client::Client;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    how: StopArgs,
    #[command(flatten)]
    names: SandboxNames,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let stop = async |client: &Client, name: &str| Ok(client.act(Method::POST, &line.how.path(name)).await?);
    connection.each(&line.names.sandboxes, stop).await
}
