//! `bouvet image`: docker's long forms of the commands on images, and `prune`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use super::filter::PruneFilter;
use super::outcome::{Connection, Failed};
use super::{Command, images, inspect, load, prune, pull, rmi, save, table, tag};
use crate::api::client::{CallError, NOTHING, path};
use crate::api::shape::{ImageView, PrunedView};

#[derive(Debug, Subcommand)]
pub(crate) enum Line {
    /// Show details of images, as JSON
    Inspect(inspect::ImageLine),
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
    /// Add a name to an image
    Tag(tag::Line),
}

#[derive(Debug, Args)]
pub(crate) struct PruneLine {
    /// Also remove unused images that have names, and layers kept for later pulls
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Remove only images that are older than this age, or have this label
    #[arg(long, value_name = "until=AGE|label=NAME[=VALUE]|label!=NAME[=VALUE]")]
    filter: Vec<String>,
}

impl Line {
    /// The command that it is.
    pub(super) fn command(self) -> Command {
        match self {
            Self::Inspect(line) => Command::Inspect(line.into()),
            Self::Load(line) => Command::Load(line),
            Self::Ls(line) => Command::Images(line),
            Self::Prune(line) => Command::ImagePrune(line),
            Self::Pull(line) => Command::Pull(line),
            Self::Rm(line) => Command::Rmi(line),
            Self::Save(line) => Command::Save(line),
            Self::Tag(line) => Command::Tag(line),
        }
    }
}

impl PruneLine {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        PruneFilter::all(&self.filter).map(drop)
    }
}

pub(super) async fn prune(line: &PruneLine, connection: &Connection) -> Result<u8, Failed> {
    let filters = PruneFilter::all(&line.filter)?;
    let which = if line.all { "all images that no sandbox uses" } else { "all unused images without a name" };
    if !line.force && !prune::confirm(&format!("WARNING! This will remove {which}."))? {
        return Ok(0);
    }
    remove_unused(line.all, &filters, connection).await?;
    Ok(0)
}

/// Removes images that no sandbox uses and that fit all `filters`, and prints them; those with a name only if `all`.
pub(super) async fn remove_unused(
    all: bool,
    filters: &[PruneFilter],
    connection: &Connection,
) -> Result<(), Failed> {
    if !filters.is_empty() {
        return remove_matching(all, filters, connection).await;
    }
    let all = all.to_string();
    let path = path(&["images", "prune"], &[("all", &all)]);
    let pruned: PrunedView = connection.client.call(Method::POST, &path, NOTHING).await?;
    report(&pruned.removed, pruned.freed_bytes)
}

/// The same one by one: the server knows no filters.
async fn remove_matching(all: bool, filters: &[PruneFilter], connection: &Connection) -> Result<(), Failed> {
    let client = &connection.client;
    let views: Vec<ImageView> = client.get(&path(&["images"], &[])).await?;
    let (mut removed, now) = (Vec::new(), SystemTime::now());
    // The base image has no id.
    let is_unused =
        |view: &ImageView| !view.in_use && !view.id.is_empty() && (all || view.references.is_empty());
    for view in views.into_iter().filter(is_unused) {
        let labels = labels(&view, connection).await?;
        let created = view.created.as_deref().unwrap_or_default();
        if !filters.iter().all(|filter| filter.takes(created, &labels, now)) {
            continue;
        }
        match client.act(Method::DELETE, &path(&["image"], &[("name", &view.id)])).await {
            Ok(()) => removed.push(view),
            // It is used or gone in the meantime.
            Err(CallError::Refused(failure)) => table::complain(&failure.into()),
            Err(error) => return Err(error.into()),
        }
    }
    let freed = removed.iter().map(|view| view.size_bytes).sum();
    report(&removed, freed)
}

/// The labels of an image of the cache; the base image has none.
pub(super) async fn labels(
    view: &ImageView,
    connection: &Connection,
) -> Result<BTreeMap<String, String>, Failed> {
    if view.id.is_empty() {
        return Ok(BTreeMap::new());
    }
    let image: Value = connection.client.get(&path(&["image"], &[("name", &view.id)])).await?;
    serde_json::from_value(image["config"]["labels"].clone()).map_err(Failed::new)
}

fn report(removed: &[ImageView], freed_bytes: u64) -> Result<(), Failed> {
    for image in removed {
        image.references.iter().try_for_each(|name| table::line(&format!("Untagged: {name}")))?;
        table::line(&format!("Deleted: {}", image.id))?;
    }
    table::line(&format!("Total reclaimed space: {}", table::size(freed_bytes)))
}
