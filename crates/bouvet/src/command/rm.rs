//! `bouvet rm`.

use clap::Args;
use hyper::Method;

use super::names::Names;
use super::outcome::{Connection, Failed};
use crate::api::client::{Client, path};

/// What is typed after `bouvet rm`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Remove those too that run
    #[arg(short, long)]
    force: bool,
    /// Accepted as docker's: a sandbox has no volumes of its own
    #[arg(short, long)]
    volumes: bool,
    #[command(flatten)]
    names: Names,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let force = line.force.to_string();
    let remove = async |client: &Client, name: &str| {
        Ok(client.act(Method::DELETE, &path(&["sandboxes", name], &[("force", &force)])).await?)
    };
    connection.each(&line.names.sandboxes, remove).await
}
