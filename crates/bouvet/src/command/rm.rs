//! `bouvet rm`.

use clap::Args;
use hyper::Method;

use super::names::SandboxNames;
use super::outcome::{Connection, Failed};
use crate::api::client::{CallError, Client, NOT_FOUND, path};

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Also remove running sandboxes; do not fail for names that do not exist
    #[arg(short, long)]
    force: bool,
    /// Remove anonymous volumes: accepted for compatibility, a sandbox has none
    #[arg(short, long)]
    volumes: bool,
    #[command(flatten)]
    names: SandboxNames,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let force = line.force.to_string();
    let remove = async |client: &Client, name: &str| {
        match client.act(Method::DELETE, &path(&["sandboxes", name], &[("force", &force)])).await {
            // As `docker rm -f`: scripts begin with it.
            Err(CallError::Refused(failure)) if line.force && failure.kind == NOT_FOUND => {
                Err(Failed::not_needed(failure.error))
            }
            done => Ok(done?),
        }
    };
    connection.each(&line.names.sandboxes, remove).await
}
