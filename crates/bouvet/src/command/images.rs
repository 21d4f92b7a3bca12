//! `bouvet images`.

mod filter;

use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use self::filter::ImageFilter;
use super::outcome::{Connection, Failed};
use super::table;
use super::template::Format;
use crate::api::client::path;
use crate::api::shape::ImageView;

/// Digits of an image's id that are shown.
const ID_DIGITS: usize = 12;

/// Heads of columns, by the field of a template.
const HEADS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
];

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Show only matching images (may be repeated)
    #[arg(
        short,
        long,
        value_name = "dangling=BOOLEAN|reference=PATTERN|label=NAME[=VALUE]|before=IMAGE|since=IMAGE|until=AGE"
    )]
    filter: Vec<String>,
    /// Go template for each line, `table TEMPLATE`, or `json`: ID, Repository, Tag, Digest, CreatedAt, CreatedSince,
    /// Size
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Show only images of this name; `*` and `?` stand for any characters and one
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.filters()?;
        self.template().map(drop)
    }

    fn filters(&self) -> Result<Vec<ImageFilter>, Failed> {
        let named = self.reference.iter().map(|pattern| Ok(ImageFilter::Reference(pattern.clone())));
        named.chain(self.filter.iter().map(|text| ImageFilter::parse(text))).collect()
    }

    fn template(&self) -> Result<Option<Format>, Failed> {
        Ok(self.format.as_deref().map(Format::parse).transpose()?.flatten())
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let images: Vec<ImageView> = connection.client.get(&path(&["images"], &[])).await?;
    let images = filter::matching(images, &line.filters()?, connection).await?;
    if line.json {
        table::json(&images)?;
        return Ok(0);
    }
    if line.quiet {
        // The base image has no id.
        let mut in_cache = images.iter().filter(|image| !image.id.is_empty());
        in_cache.try_for_each(|image| table::line(&id(image, line.no_trunc)))?;
        return Ok(0);
    }
    if let Some(format) = line.template()? {
        let rows: Vec<_> =
            images.iter().flat_map(|image| fields(image, line.no_trunc, SystemTime::now())).collect();
        format.print(HEADS, &rows)?;
        return Ok(0);
    }
    let rows = images.iter().flat_map(|image| rows(image, line.no_trunc, SystemTime::now()));
    table::print(&["IMAGE", "ID", "CREATED", "LAST USED", "SIZE"], rows.collect())?;
    for image in &images {
        if let Some(reason) = &image.damaged {
            let name = image.references.first().unwrap_or(&image.id);
            table::note(&table::plain(&format!("`{name}` is damaged: {reason}; pull or load it again")));
        }
    }
    Ok(0)
}

fn id(image: &ImageView, full: bool) -> String {
    let digits = image.id.trim_start_matches("sha256:");
    if full { image.id.clone() } else { digits.chars().take(ID_DIGITS).collect() }
}

/// An image as templates have it, once for each of its names.
fn fields(image: &ImageView, full: bool, now: SystemTime) -> Vec<Value> {
    let row = |name: &str| {
        let name = table::familiar(name);
        let (name, digest) = name.split_once('@').unwrap_or((name, "<none>"));
        let at = name.rfind(':').filter(|at| !name[*at..].contains('/'));
        let (repository, tag) = at.map_or((name, "<none>"), |at| (&name[..at], &name[at + 1..]));
        json!({
            "ID": id(image, full),
            "Repository": repository,
            "Tag": tag,
            "Digest": digest,
            "CreatedAt": image.created.as_deref().unwrap_or("N/A"),
            "CreatedSince": image.created.as_deref().map_or_else(|| "N/A".into(), |time| table::ago(time, now)),
            "Size": table::size(image.size_bytes),
        })
    };
    match image.references.is_empty() {
        true => vec![row("<none>")],
        false => image.references.iter().map(|name| row(name)).collect(),
    }
}

/// One for each name by which it is known.
fn rows(image: &ImageView, full: bool, now: SystemTime) -> Vec<Vec<String>> {
    let mut names: Vec<_> = image.references.iter().map(String::as_str).collect();
    if names.is_empty() {
        names.push("<none>");
    }
    let created = image.created.as_deref().map_or_else(|| "unknown".to_owned(), |time| table::ago(time, now));
    let row = |name: &str| {
        let used = image.last_used.as_deref().map_or_else(|| "-".to_owned(), |time| table::ago(time, now));
        let id = Some(id(image, full)).filter(|id| !id.is_empty()).unwrap_or_else(|| "-".to_owned());
        vec![table::familiar(name).to_owned(), id, created.clone(), used, table::size(image.size_bytes)]
    };
    names.into_iter().map(row).collect()
}
