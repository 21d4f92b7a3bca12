//! `bouvet restart`.

use clap::Args;
use hyper::Method;

use super::names::{Grace, Names};
use super::outcome::{Connection, Failed};
use crate::api::client::{Client, path};

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    grace: Grace,
    #[command(flatten)]
    names: Names,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let restart = async |client: &Client, name: &str| {
        client.act(Method::POST, &line.grace.stop(name, None)).await?;
        Ok(client.act(Method::POST, &path(&["sandboxes", name, "start"], &[])).await?)
    };
    connection.each(&line.names.sandboxes, restart).await
}
