//! `bouvet load`.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures_util::stream::{BoxStream, StreamExt as _, iter, unfold};
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
    let shown = if line.input.is_some() { format!("`{name}`") } else { name.clone() };
    let (start, content) = peek(content).await?;
    if start.is_empty() {
        return Err(Failed::new(format!("{shown} is empty"))
            .hint("name the archive with `--input FILE`, or redirect it: `bouvet load < FILE`"));
    }
    let mut bars = if line.quiet { Bars::hidden() } else { Bars::new() };
    let mut steps = connection
        .client
        .upload_for_lines::<PullLine>(&path(&["images", "load"], &[("name", &name)]), content)
        .await?;
    while let Some(step) = steps.next().await? {
        match step {
            PullLine::Loaded { id, references } => loaded(&id, &references)?,
            PullLine::Finished => return Ok(0),
            PullLine::Failed(failure) if !looks_like_archive(&start) => {
                let hint = "`docker save`, `podman save` and `bouvet save` write one";
                let fact = format!("{shown} is not an archive of images: {}", failure.error);
                return Err(Failed::new(fact).hint(hint));
            }
            PullLine::Failed(failure) => return Err(failure.into()),
            step => bars.show(&step),
        }
    }
    Err(Failed::new("the server ended before the images were loaded"))
}

/// Bytes of a header of tar(5).
const TAR_HEADER_BYTES: usize = 512;

/// The first bytes of `content`, up to the header of an archive, and all of it.
async fn peek(
    mut content: BoxStream<'static, io::Result<Bytes>>,
) -> Result<(Vec<u8>, BoxStream<'static, io::Result<Bytes>>), Failed> {
    let (mut pieces, mut start) = (Vec::new(), Vec::new());
    while start.len() < TAR_HEADER_BYTES {
        let Some(piece) = content.next().await else { break };
        let piece = piece?;
        start.extend_from_slice(piece.get(..TAR_HEADER_BYTES - start.len()).unwrap_or(&piece));
        pieces.push(Ok(piece));
    }
    Ok((start, iter(pieces).chain(content).boxed()))
}

/// Whether these bytes begin a tar archive, or a compressed file.
fn looks_like_archive(start: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0"];
    start.get(257..262) == Some(b"ustar") || magics.iter().any(|magic| start.starts_with(magic))
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
    references.iter().try_for_each(|name| table::line(&format!("Loaded image: {}", table::familiar(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_bytes_are_read_and_kept() {
        let pieces = [vec![1; 500], vec![2; 500], vec![3; 10]].map(|piece| Ok(Bytes::from(piece)));
        let (start, content) = peek(iter(pieces).boxed()).await.unwrap();
        assert_eq!(start, [vec![1; 500], vec![2; 12]].concat());
        let all: Vec<Bytes> = content.map(Result::unwrap).collect().await;
        assert_eq!(all.concat(), [vec![1; 500], vec![2; 500], vec![3; 10]].concat());
        let (start, _) = peek(iter([]).boxed()).await.unwrap();
        assert!(start.is_empty());
    }

    #[test]
    fn archives_are_known_by_their_first_bytes() {
        let mut header = vec![0; TAR_HEADER_BYTES];
        header[257..262].copy_from_slice(b"ustar");
        assert!(looks_like_archive(&header) && looks_like_archive(b"\x1f\x8b\x08"));
        assert!(!looks_like_archive(b"some text") && !looks_like_archive(&[]));
    }
}
