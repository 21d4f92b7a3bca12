//! `bouvet images`.

use std::time::SystemTime;

use clap::Args;

use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::path;
use crate::api::shape::ImageView;

/// Digits of an image's id that are shown.
const ID_DIGITS: usize = 12;

/// What is typed after `bouvet images`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Ids alone
    #[arg(short, long)]
    quiet: bool,
    /// Ids at full length
    #[arg(long)]
    no_trunc: bool,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let images: Vec<ImageView> = connection.client.get(&path(&["images"], &[])).await?;
    if line.json {
        table::json(&images)?;
        return Ok(0);
    }
    if line.quiet {
        images.iter().try_for_each(|image| table::line(&id(image, line.no_trunc)))?;
        return Ok(0);
    }
    let rows = images.iter().flat_map(|image| rows(image, line.no_trunc, SystemTime::now()));
    table::print(&["IMAGE", "ID", "CREATED", "LAST USED", "SIZE"], rows.collect())?;
    Ok(0)
}

fn id(image: &ImageView, full: bool) -> String {
    let digits = image.id.trim_start_matches("sha256:");
    if full { image.id.clone() } else { digits.chars().take(ID_DIGITS).collect() }
}

/// One for each name by which it is known.
fn rows(image: &ImageView, full: bool, now: SystemTime) -> Vec<Vec<String>> {
    let mut names: Vec<_> = image.references.iter().map(String::as_str).collect();
    if names.is_empty() {
        names.push("<none>");
    }
    let created = image.created.as_deref().map_or_else(|| "unknown".to_owned(), |time| table::ago(time, now));
    let row = |name: &str| {
        let (used, size) = (table::ago(&image.last_used, now), table::size(image.size_bytes));
        vec![name.to_owned(), id(image, full), created.clone(), used, size]
    };
    names.into_iter().map(row).collect()
}
