//! Files of the sandbox: read, write, list. Relative paths start where programs do.

mod attributes;
mod owned;
mod write;

use std::fs::{self, Metadata};
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bouvet_wire::limits::{CHUNK_BYTES, MAX_LIST_ENTRIES, MAX_MESSAGE_BYTES, MAX_PATH_BYTES};
use bouvet_wire::v1;
use bytes::BytesMut;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub(crate) use self::owned::make_directories;
pub(crate) use self::write::{Scene, write};
use crate::answers::Answers;

/// Bytes of a listing that fit into one message beside its own overhead.
const MAX_LIST_BYTES: usize = MAX_MESSAGE_BYTES / 2;
/// Part of a link's target that a listing shows.
const MAX_TARGET_CHARS: usize = 256;

/// Where paths start.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Relative ones.
    pub(crate) start: PathBuf,
    /// Those that begin with `~`.
    pub(crate) home: PathBuf,
}

/// `path` as seen from `place`.
pub(crate) fn resolve(place: &Place, path: &str) -> Result<PathBuf, Status> {
    let Place { start, home } = place;
    if path.is_empty() || path.contains('\0') {
        return Err(Status::invalid_argument("a path must not be empty or contain NUL"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(Status::invalid_argument(format!("a path may have {MAX_PATH_BYTES} bytes")));
    }
    Ok(match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if path == "~" => home.to_owned(),
        None => start.join(path),
    })
}

pub(crate) fn status(path: &Path, error: &io::Error) -> Status {
    let text = format!("`{}`: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(text),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Status::permission_denied(text)
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Status::resource_exhausted(text),
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => {
            Status::invalid_argument(text)
        }
        _ => Status::unknown(text),
    }
}

/// Streams a part of a regular file. Pipes, devices and directories are refused: they may never end.
pub(crate) async fn read(place: &Place, request: v1::ReadRequest) -> Result<Answers<v1::ReadChunk>, Status> {
    let path = resolve(place, &request.path)?;
    let mut file = open_regular(&path).await?;
    let failed = |error: io::Error| status(&path, &error);
    let file_bytes = file.metadata().await.map_err(failed)?.len();
    file.seek(SeekFrom::Start(request.offset)).await.map_err(failed)?;
    let (answers, stream) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut source = file.take(request.limit_bytes);
        let mut first = Some(file_bytes);
        loop {
            let mut data = BytesMut::with_capacity(CHUNK_BYTES);
            let answer = match fill(&mut source, &mut data).await {
                Ok(()) if data.is_empty() && first.is_none() => return,
                Ok(()) => Ok(v1::ReadChunk { file_bytes: first.take().unwrap_or(0), data: data.freeze() }),
                Err(error) => Err(status(&path, &error)),
            };
            let last = answer.is_err();
            if answers.send(answer).await.is_err() || last {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(stream))
}

/// Reads until `data` holds a chunk or the source ends.
async fn fill(source: &mut (impl tokio::io::AsyncRead + Unpin), data: &mut BytesMut) -> io::Result<()> {
    while data.len() < CHUNK_BYTES {
        if source.read_buf(data).await? == 0 {
            break;
        }
    }
    Ok(())
}

async fn open_regular(path: &Path) -> Result<File, Status> {
    let failed = |error: io::Error| status(path, &error);
    // Without O_NONBLOCK the open of a pipe would wait for its other end.
    let nonblock =
        i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(|_| Status::internal("flags"))?;
    let file = File::options().read(true).custom_flags(nonblock).open(path).await.map_err(failed)?;
    check_regular(path, &file.metadata().await.map_err(failed)?)?;
    Ok(file)
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), Status> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = if metadata.is_dir() { "is a directory" } else { "is not a regular file" };
    Err(Status::invalid_argument(format!("`{}` {what}", path.display())))
}

/// The entries of a directory, sorted by name, as many as fit.
pub(crate) fn list(place: &Place, request: &v1::ListRequest) -> Result<v1::ListReply, Status> {
    let path = resolve(place, &request.path)?;
    let failed = |error: io::Error| status(&path, &error);
    let limit = request.limit_entries.min(MAX_LIST_ENTRIES) as usize;
    let mut entries = Vec::new();
    let (mut bytes, mut truncated) = (0, false);
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Deleted between the two calls: not there any more.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        let entry = describe(&entry.path(), &metadata);
        bytes += entry.name.len() + entry.link_target.len() + 64;
        if entries.len() == limit || bytes > MAX_LIST_BYTES {
            truncated = true;
            break;
        }
        entries.push(entry);
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(v1::ListReply { entries, truncated })
}

fn describe(path: &Path, metadata: &Metadata) -> v1::ListEntry {
    let kind = match metadata.file_type() {
        t if t.is_file() => v1::EntryKind::File,
        t if t.is_dir() => v1::EntryKind::Directory,
        t if t.is_symlink() => v1::EntryKind::Symlink,
        _ => v1::EntryKind::Other,
    };
    let target = if metadata.is_symlink() { fs::read_link(path).ok() } else { None };
    let link_target = target.map(|t| t.to_string_lossy().chars().take(MAX_TARGET_CHARS).collect());
    v1::ListEntry {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        kind: kind.into(),
        is_dir: path.is_dir(),
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        modified_unix_s: metadata.mtime(),
        link_target: link_target.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(start: &Path) -> Place {
        Place { start: start.into(), home: "/root".into() }
    }

    #[test]
    fn paths_start_at_the_working_directory() {
        let place = place(Path::new("/srv"));
        assert_eq!(resolve(&place, "a/b").ok(), Some("/srv/a/b".into()));
        assert_eq!(resolve(&place, "/a").ok(), Some("/a".into()));
        assert_eq!(resolve(&place, "~/a").ok(), Some("/root/a".into()));
        assert_eq!(resolve(&place, "~").ok(), Some("/root".into()));
        assert!(resolve(&place, "").is_err());
        assert!(resolve(&place, "a\0b").is_err());
        assert!(resolve(&place, &"a".repeat(MAX_PATH_BYTES)).is_ok());
        assert!(resolve(&place, &"a".repeat(MAX_PATH_BYTES + 1)).is_err());
    }

    #[test]
    fn a_listing_is_sorted_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", dir.path().join("d")).unwrap();
        let request = |limit_entries| v1::ListRequest { path: ".".into(), limit_entries };
        let all = list(&place(dir.path()), &request(4)).unwrap();
        let names: Vec<_> = all.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!((names, all.truncated), (vec!["a", "b", "c", "d"], false));
        assert_eq!(all.entries[3].link_target, "nowhere");
        let some = list(&place(dir.path()), &request(3)).unwrap();
        assert_eq!((some.entries.len(), some.truncated), (3, true));
    }
}
