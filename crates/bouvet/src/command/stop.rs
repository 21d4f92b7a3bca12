//! `bouvet stop`.

use clap::Args;
use hyper::Method;

use super::names::{Grace, Names};
use super::outcome::{Connection, Failed};
use crate::api::client::Client;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// The signal that asks the program to end, instead of its image's
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    #[command(flatten)]
    grace: Grace,
    #[command(flatten)]
    names: Names,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let stop = async |client: &Client, name: &str| {
        let path = line.grace.stop(name, line.signal.as_deref());
        Ok(client.act(Method::POST, &path).await?)
    };
    connection.each(&line.names.sandboxes, stop).await
}
