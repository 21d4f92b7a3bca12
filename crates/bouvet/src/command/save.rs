//! `bouvet save`.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::MetadataExt as _;
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
    let (client, names) = (&connection.client, &names);
    let Some(file) = &line.output else { return to_stdout(client, names).await };
    let failed = |error: io::Error| Failed::new(format!("cannot write `{}`: {error}", file.display()));
    match Output::of(file).map_err(failed)? {
        Output::Stdout => return to_stdout(client, names).await,
        Output::Stream => {
            let mut there = File::options().write(true).open(file).map_err(failed)?;
            save(client, names, &mut there).await?;
        }
        Output::File(path) => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // Half an archive is never there under its name.
            let mut whole = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
            save(client, names, whole.as_file_mut()).await?;
            whole.persist(&path).map_err(|error| failed(error.error))?;
        }
    }
    Ok(0)
}

/// How an archive is written to a path.
#[derive(Debug, PartialEq, Eq)]
enum Output {
    /// The path is another name of standard output, as `/dev/stdout`.
    Stdout,
    /// A device, a named pipe or the like, which must not be replaced.
    Stream,
    /// A file that is made or replaced: the target of a link, not the link.
    File(PathBuf),
}

impl Output {
    fn of(path: &Path) -> io::Result<Self> {
        Self::beside(path, &rustix::fs::fstat(io::stdout())?)
    }

    fn beside(path: &Path, stdout: &rustix::fs::Stat) -> io::Result<Self> {
        let there = match std::fs::metadata(path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(path.to_owned())),
            Err(error) => return Err(error),
        };
        let is_stdout = (there.dev(), there.ino()) == (stdout.st_dev, stdout.st_ino);
        match there.is_file() {
            _ if is_stdout && !there.is_dir() => Ok(Self::Stdout),
            true => Ok(Self::File(std::fs::canonicalize(path)?)),
            false => Ok(Self::Stream),
        }
    }
}

async fn to_stdout(client: &Client, names: &[String]) -> Result<u8, Failed> {
    if io::stdout().is_terminal() {
        return Err(Failed::new("cannot write an archive to a terminal")
            .hint("name a file with `--output FILE`, or redirect it: `bouvet save IMAGE > FILE`"));
    }
    save(client, names, &mut io::stdout()).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn save_never_replaces_streams_or_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["file", "redirected"] {
            std::fs::write(at(name), "").unwrap();
        }
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), kind, mode, 0).unwrap();
        for (link, target) in [("null", "/dev/null"), ("link", "file"), ("stdout", "redirected")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        let stdout = rustix::fs::stat(at("redirected")).unwrap();
        let of = |name: &str| Output::beside(&at(name), &stdout).unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        assert_eq!((of("pipe"), of("null")), (Output::Stream, Output::Stream));
        assert_eq!((of("redirected"), of("stdout")), (Output::Stdout, Output::Stdout));
        assert_eq!(
            (of("link"), of("file")),
            (Output::File(real.join("file")), Output::File(real.join("file")))
        );
        assert_eq!(of("new"), Output::File(at("new")));
    }
}
