//! `bouvet tag`.

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::outcome::{Connection, Failed};
use super::run::image;
use crate::api::client::path;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Image: its name, or at least twelve digits of its id
    #[arg(value_name = "SOURCE")]
    from: String,
    /// New name, such as `app:1`
    #[arg(value_name = "TARGET")]
    to: String,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let names = json!({ "source": image(&line.from)?, "target": line.to });
    let path = path(&["images", "tag"], &[]);
    connection.client.call::<serde_json::Value>(Method::POST, &path, Some(&names)).await?;
    Ok(0)
}
