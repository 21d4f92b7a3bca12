//! `bouvet rmi`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::run::image;
use super::usage;
use crate::api::client::{CallError, Client, path};
use crate::failure::Kind;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    platform: usage::Platform,
    /// Also remove the names of images in use, and do not fail for images that do not exist
    #[arg(short, long)]
    force: bool,
    /// Images: names, or at least twelve digits of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.platform.check()
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let force = line.force.to_string();
    let remove = async |client: &Client, typed: &str| {
        let name = image(typed)?;
        let path = path(&["image"], &[("name", &name), ("force", &force)]);
        match client.act(Method::DELETE, &path).await {
            Err(CallError::Refused(failure)) if line.force && failure.kind == Kind::NoImage.name() => {
                Err(Failed::not_needed(failure.error))
            }
            done => Ok(done?),
        }
    };
    connection.each(&line.images, remove).await
}
