//! `bouvet wait`.

use clap::Args;
use hyper::Method;

use super::names::SandboxNames;
use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::{NOTHING, path};
use crate::api::shape::ExitView;

#[derive(Debug, Args)]
#[command(after_help = "The exit code is that of the last sandbox.")]
pub(crate) struct Line {
    #[command(flatten)]
    names: SandboxNames,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let mut last = 0;
    for name in &line.names.sandboxes {
        let path = path(&["sandboxes", name, "wait"], &[]);
        let exit: Result<ExitView, _> = connection.client.call(Method::POST, &path, NOTHING).await;
        let exit = exit.map_err(|error| Failed::from(error).of_sandbox(name))?;
        table::line(&exit.exit_code.to_string())?;
        last = exit.exit_code;
    }
    Ok(u8::try_from(last & 0xff).unwrap_or(u8::MAX))
}
