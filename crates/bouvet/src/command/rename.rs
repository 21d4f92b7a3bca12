//! `bouvet rename`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use crate::api::client::path;

#[derive(Debug, Args)]
#[command(after_help = "Its host name stays as it was.")]
pub(crate) struct Line {
    /// The sandbox: its name, its id, or the beginning of its id
    sandbox: String,
    /// The new name
    name: String,
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        &self.sandbox
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let path = path(&["sandboxes", &line.sandbox, "rename"], &[("name", &line.name)]);
    connection.client.act(Method::POST, &path).await?;
    Ok(0)
}
