//! `bouvet rmi`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::run::image;
use crate::api::client::{Client, path};

/// What is typed after `bouvet rmi`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// The images: their names, or at least twelve digits of their ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let remove = async |client: &Client, typed: &str| {
        let name = image(typed)?;
        Ok(client.act(Method::DELETE, &path(&["image"], &[("name", &name)])).await?)
    };
    connection.each(&line.images, remove).await
}
