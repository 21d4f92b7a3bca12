//! `bouvet pause` and `bouvet resume`.

use hyper::Method;

use super::names::SandboxNames;
use super::outcome::{Connection, Failed, without_start};
use crate::api::client::{Client, path};

pub(super) async fn pause(names: &SandboxNames, connection: &Connection) -> Result<u8, Failed> {
    act(&names.sandboxes, "pause", connection).await
}

pub(super) async fn resume(names: &SandboxNames, connection: &Connection) -> Result<u8, Failed> {
    act(&names.sandboxes, "resume", connection).await
}

async fn act(sandboxes: &[String], verb: &str, connection: &Connection) -> Result<u8, Failed> {
    let act = async |client: &Client, name: &str| {
        client.act(Method::POST, &path(&["sandboxes", name, verb], &[])).await.map_err(without_start)
    };
    connection.each(sandboxes, act).await
}
