//! `bouvet pause` and `bouvet resume`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use crate::api::client::path;

/// What is typed after `bouvet pause`.
#[derive(Debug, Args)]
pub(crate) struct PauseLine {
    /// The sandboxes: their names, ids, or the beginnings of their ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// What is typed after `bouvet resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeLine {
    /// The sandboxes: their names, ids, or the beginnings of their ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(super) async fn pause(line: &PauseLine, connection: &Connection) -> Result<u8, Failed> {
    act(&line.sandboxes, "pause", connection).await
}

pub(super) async fn resume(line: &ResumeLine, connection: &Connection) -> Result<u8, Failed> {
    act(&line.sandboxes, "resume", connection).await
}

async fn act(sandboxes: &[String], verb: &str, connection: &Connection) -> Result<u8, Failed> {
    let act = async |client: &crate::api::client::Client, name: &str| {
        Ok(client.act(Method::POST, &path(&["sandboxes", name, verb], &[])).await?)
    };
    connection.each(sandboxes, act).await
}
