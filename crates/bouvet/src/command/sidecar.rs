//! `bouvet sidecar`.

use clap::Args;
use futures_util::StreamExt as _;
use tokio_util::io::ReaderStream;

use super::outcome::{Connection, Failed};
use super::session::print;
use crate::api::client::path;

#[derive(Debug, Args)]
#[command(
    after_help = "Standard input is sent to the control port; its answers are printed to standard output."
)]
pub(crate) struct Line {
    /// Sandbox: its name, its id, or the first characters of its id
    sandbox: String,
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        &self.sandbox
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let path = path(&["sandboxes", &line.sandbox, "sidecar"], &[]);
    let mut answers = connection.client.exchange(&path, ReaderStream::new(tokio::io::stdin())).await?;
    let mut stdout = tokio::io::stdout();
    while let Some(data) = answers.next().await {
        print(&mut stdout, &data?).await?;
    }
    Ok(0)
}
