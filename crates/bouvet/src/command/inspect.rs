//! `bouvet inspect`.

use clap::Args;
use serde_json::Value;

use super::outcome::{Connection, Failed};
use super::run::image;
use super::table;
use crate::api::client::{CallError, path};

/// What is typed after `bouvet inspect`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Sandboxes or images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let mut found: Vec<Value> = Vec::new();
    for name in &line.names {
        let sandbox = connection.client.get(&path(&["sandboxes", name], &[])).await;
        found.push(match sandbox {
            Err(CallError::Refused(failure)) if failure.kind == "not_found" => {
                let image = connection.client.get(&path(&["image"], &[("name", &image(name)?)])).await;
                image.map_err(|_| {
                    Failed::new(format!("there is no sandbox and no image `{}`", name.escape_debug()))
                })?
            }
            sandbox => sandbox?,
        });
    }
    table::json(&found)?;
    Ok(0)
}
