//! `bouvet save`.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::StreamExt as _;
use serde_json::json;

use super::outcome::{Connection, Failed};
use super::run::image;
use super::usage;
use crate::api::client::{Client, path};

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    platform: usage::Platform,
    /// Archive to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Images: names, or at least twelve digits of ids. An image that is saved by its id has no name in the archive
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
    let names = line.images.iter().map(|typed| image(typed)).collect::<Result<Vec<_>, _>>()?;
    let Some(file) = &line.output else {
        if io::stdout().is_terminal() {
            return Err(Failed::new("cannot write an archive to a terminal")
                .hint("name a file with `--output FILE`, or redirect it: `bouvet save IMAGE > FILE`"));
        }
        save(&connection.client, &names, &mut io::stdout()).await?;
        return Ok(0);
    };
    let failed = |error: io::Error| Failed::new(format!("cannot write `{}`: {error}", file.display()));
    // A device or a pipe cannot be replaced.
    if std::fs::metadata(file).is_ok_and(|there| !there.is_file()) {
        let mut there = File::options().write(true).open(file).map_err(failed)?;
        save(&connection.client, &names, &mut there).await?;
        return Ok(0);
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Half an archive is never there under its name.
    let mut whole = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    save(&connection.client, &names, whole.as_file_mut()).await?;
    whole.persist(file).map_err(|error| failed(error.error))?;
    Ok(0)
}

async fn save(client: &Client, names: &[String], into: &mut impl Write) -> Result<(), Failed> {
    let wanted = json!({ "names": names });
    let mut archive = client.fetch(&path(&["images", "save"], &[]), &wanted).await?;
    while let Some(piece) = archive.next().await {
        into.write_all(&piece?)?;
    }
    Ok(into.flush()?)
}
