//! `bouvet stop`.

use clap::Args;
use hyper::Method;

use super::names::{Grace, Names};
use super::outcome::{Connection, Failed};
use crate::api::client::{Client, path};

/// What is typed after `bouvet stop`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    grace: Grace,
    #[command(flatten)]
    names: Names,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let seconds = line.grace.time.to_string();
    let stop = async |client: &Client, name: &str| {
        let path = path(&["sandboxes", name, "stop"], &[("grace_secs", &seconds)]);
        Ok(client.act(Method::POST, &path).await?)
    };
    connection.each(&line.names.sandboxes, stop).await
}
