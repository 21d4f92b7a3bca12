//! `bouvet image`: the commands on images under one name, as `docker image` has them, and `prune`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::{images, inspect, load, prune, pull, rmi, save, table, tag};
use crate::api::client::{NOTHING, path};
use crate::api::shape::PrunedView;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show details of images, as JSON
    Inspect(inspect::Line),
    /// Load images from an archive
    Load(load::Line),
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::Line),
    /// Remove unused images
    Prune(PruneLine),
    /// Pull images from registries
    Pull(pull::Line),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(rmi::Line),
    /// Save images to an archive
    Save(save::Line),
    /// Give an image one more name
    Tag(tag::Line),
}

#[derive(Debug, Args)]
struct PruneLine {
    /// Remove unused images that have names too, and layers kept for later pulls
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    match &line.command {
        Command::Inspect(line) => inspect::run(line, connection).await,
        Command::Load(line) => load::run(line, connection).await,
        Command::Ls(line) => images::run(line, connection).await,
        Command::Prune(line) => self::prune(line, connection).await,
        Command::Pull(line) => pull::run(line, connection).await,
        Command::Rm(line) => rmi::run(line, connection).await,
        Command::Save(line) => save::run(line, connection).await,
        Command::Tag(line) => tag::run(line, connection).await,
    }
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        match &self.command {
            Command::Inspect(line) => line.check(),
            Command::Ls(line) => line.check(),
            _ => Ok(()),
        }
    }
}

async fn prune(line: &PruneLine, connection: &Connection) -> Result<u8, Failed> {
    let which = if line.all { "all images that no sandbox uses" } else { "all unused images without a name" };
    if !line.force && !prune::confirm(&format!("WARNING! This will remove {which}."))? {
        return Ok(0);
    }
    remove_unused(line.all, connection).await?;
    Ok(0)
}

/// Removes all images that no sandbox uses, and says which.
pub(super) async fn prune_all(connection: &Connection) -> Result<(), Failed> {
    remove_unused(true, connection).await
}

async fn remove_unused(all: bool, connection: &Connection) -> Result<(), Failed> {
    let all = all.to_string();
    let path = path(&["images", "prune"], &[("all", &all)]);
    let pruned: PrunedView = connection.client.call(Method::POST, &path, NOTHING).await?;
    for image in &pruned.removed {
        image.references.iter().try_for_each(|name| table::line(&format!("Untagged: {name}")))?;
        table::line(&format!("Deleted: {}", image.id))?;
    }
    table::line(&format!("Total reclaimed space: {}", table::size(pruned.freed_bytes)))
}
