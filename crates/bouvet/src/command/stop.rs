//! `bouvet stop`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use crate::api::STOP_GRACE_SECS;
use crate::api::client::path;

/// What is typed after `bouvet stop`.
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
    let seconds = line.time.to_string();
    let stop = async |client: &crate::api::client::Client, name: &str| {
        let path = path(&["sandboxes", name, "stop"], &[("grace_secs", &seconds)]);
        Ok(client.act(Method::POST, &path).await?)
    };
    connection.each(&line.sandboxes, stop).await
}
