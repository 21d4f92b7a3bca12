//! `bouvet load`.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures_util::stream::{BoxStream, StreamExt as _, unfold};
use tokio_util::io::ReaderStream;

use super::outcome::{Connection, Failed};
use super::pull::Bars;
use super::{table, terminal, usage};
use crate::api::client::path;
use crate::api::shape::PullLine;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    platform: usage::Platform,
    /// Archive: of `docker save`, `podman save`, `bouvet save`, or an OCI layout [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.platform.check()
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let name = line.input.as_deref().unwrap_or(Path::new("standard input")).display().to_string();
    let content = match &line.input {
        Some(file) => opened(file).await?,
        None if terminal::is_input() => {
            return Err(Failed::new("cannot read an archive from a terminal")
                .hint("name the archive with `--input FILE`, or redirect it: `bouvet load < FILE`"));
        }
        None => {
            let pieces = terminal::input()?;
            unfold(pieces, async |mut pieces| Some((Ok(pieces.recv().await?), pieces))).boxed()
        }
    };
    let mut bars = if line.quiet { Bars::hidden() } else { Bars::new() };
    let mut steps = connection
        .client
        .upload_for_lines::<PullLine>(&path(&["images", "load"], &[("name", &name)]), content)
        .await?;
    while let Some(step) = steps.next().await? {
        match step {
            PullLine::Loaded { id, references } => loaded(&id, &references)?,
            PullLine::Finished => return Ok(0),
            PullLine::Failed(failure) => return Err(failure.into()),
            step => bars.show(&step),
        }
    }
    Err(Failed::new("the server ended before the images were loaded"))
}

async fn opened(file: &Path) -> Result<BoxStream<'static, io::Result<Bytes>>, Failed> {
    match tokio::fs::File::open(file).await {
        Ok(file) => Ok(ReaderStream::new(file).boxed()),
        Err(error) => Err(Failed::new(format!("cannot read `{}`: {error}", file.display()))),
    }
}

/// As `docker load` prints it: scripts read these lines.
fn loaded(id: &str, references: &[String]) -> Result<(), Failed> {
    if references.is_empty() {
        return table::line(&format!("Loaded image ID: {id}"));
    }
    references.iter().try_for_each(|name| table::line(&format!("Loaded image: {name}")))
}
