//! `bouvet pull`.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use super::outcome::{Connection, Failed};
use super::run::image;
use super::{table, usage};
use crate::api::client::{Client, path};
use crate::api::shape::PullLine;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    platform: usage::Platform,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// Images
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
    for typed in &line.images {
        let name = image(typed)?;
        if bouvet_host::is_base_image(&name) {
            // Fails for the second one where it was not made.
            connection.client.get::<serde_json::Value>(&path(&["image"], &[("name", &name)])).await?;
            table::note(&format!("`{typed}` is an image of the server: it is here already"));
            table::line(typed)?;
            continue;
        }
        let bars = if line.quiet { Bars::hidden() } else { Bars::new() };
        let id = pull(&connection.client, &name, bars).await?;
        table::line(&id)?;
    }
    Ok(0)
}

/// Pulls an image, and shows progress on a terminal. Returns its id.
pub(super) async fn pull(client: &Client, name: &str, mut bars: Bars) -> Result<String, Failed> {
    let wanted = json!({ "reference": name });
    let path = path(&["images", "pull"], &[]);
    let mut lines = client.lines::<PullLine>(Method::POST, &path, Some(&wanted)).await?;
    while let Some(line) = lines.next().await? {
        match line {
            PullLine::Done { id, .. } => return Ok(id),
            PullLine::Failed(failure) => return Err(failure.into()),
            step => bars.show(&step),
        }
    }
    Err(Failed::new("the server went away before the image was there"))
}

/// Time between two steps of a spinner.
const SPINNER_TICK: Duration = Duration::from_millis(200);

/// A bar for each layer, on standard error. Gone when dropped.
pub(super) struct Bars {
    /// `None` where nobody looks.
    all: Option<MultiProgress>,
    bars: HashMap<String, ProgressBar>,
    asking: Option<Asking>,
}

/// The line of a registry that has not answered yet. Gone when dropped.
struct Asking(ProgressBar);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            // A terminal that has gone shows nothing any more.
            all.clear().ok();
        }
    }
}

impl Bars {
    pub(super) fn new() -> Self {
        let all = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { all, bars: HashMap::new(), asking: None }
    }

    pub(super) fn hidden() -> Self {
        Self { all: None, bars: HashMap::new(), asking: None }
    }

    pub(super) fn show(&mut self, step: &PullLine) {
        match step {
            PullLine::Asking { registry } => self.ask(registry),
            PullLine::Resolved { layers, .. } => {
                self.asking.take();
                for layer in layers {
                    self.at(&layer.digest, 0, layer.size_bytes);
                }
            }
            PullLine::Waiting => self.at("waiting", 0, 0),
            PullLine::Layer { digest, done_bytes, total_bytes } => self.at(digest, *done_bytes, *total_bytes),
            PullLine::Converting { done_bytes, total_bytes } => {
                self.at("converting", *done_bytes, *total_bytes);
            }
            PullLine::Done { .. } | PullLine::Loaded { .. } | PullLine::Finished | PullLine::Failed(_) => {}
        }
    }

    /// Shows for how long a registry has not answered.
    fn ask(&mut self, registry: &str) {
        let Some(all) = &self.all else { return };
        let style = ProgressStyle::with_template("{spinner} asking {msg} {elapsed}");
        let bar = ProgressBar::new_spinner().with_message(table::plain(registry));
        let bar = all.add(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())));
        bar.enable_steady_tick(SPINNER_TICK);
        self.asking = Some(Asking(bar));
    }

    fn at(&mut self, name: &str, done: u64, total: u64) {
        let Some(all) = &self.all else { return };
        let bar = self.bars.entry(name.to_owned()).or_insert_with(|| {
            let short: String = name.trim_start_matches("sha256:").chars().take(12).collect();
            let style = ProgressStyle::with_template("{prefix:12} {bar:32} {bytes}/{total_bytes}");
            let bar = ProgressBar::new(total).with_prefix(table::plain(&short));
            all.add(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
        });
        bar.set_length(total);
        bar.set_position(done);
    }
}
