//! Files of the sandbox: read, write, list. Relative paths start at the home directory.

use std::fs::{self, Metadata};
use std::io::{self, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bouvet_wire::limits::{CHUNK_BYTES, MAX_LIST_ENTRIES, MAX_MESSAGE_BYTES, MAX_PATH_BYTES};
use bouvet_wire::v1;
use bytes::BytesMut;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::answers::Answers;

/// Bytes of a listing that fit into one message beside its own overhead.
const MAX_LIST_BYTES: usize = MAX_MESSAGE_BYTES / 2;
/// Part of a link's target that a listing shows.
const MAX_TARGET_CHARS: usize = 256;

/// `path` as seen from `home`.
pub(crate) fn resolve(home: &Path, path: &str) -> Result<PathBuf, Status> {
    if path.is_empty() || path.contains('\0') {
        return Err(Status::invalid_argument("a path must not be empty or contain NUL"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(Status::invalid_argument(format!("a path may have {MAX_PATH_BYTES} bytes")));
    }
    Ok(match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if path == "~" => home.to_owned(),
        None => home.join(path),
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
pub(crate) async fn read(home: &Path, request: v1::ReadRequest) -> Result<Answers<v1::ReadChunk>, Status> {
    let path = resolve(home, &request.path)?;
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
    let metadata = file.metadata().await.map_err(failed)?;
    if metadata.is_file() {
        return Ok(file);
    }
    let what = if metadata.is_dir() { "is a directory" } else { "is not a regular file" };
    Err(Status::invalid_argument(format!("`{}` {what}", path.display())))
}

/// Writes a file from the messages of `input`.
pub(crate) async fn write(
    home: &Path,
    mut input: Streaming<v1::WriteInput>,
) -> Result<v1::WriteReply, Status> {
    let Some(v1::write_input::Input::Start(start)) = input.message().await?.and_then(|m| m.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    let path = resolve(home, &start.path)?;
    // Where it is opened it is also cleaned up after: a caller who goes away meanwhile leaves nothing.
    let opened = tokio::task::spawn_blocking(move || Target::open(path, &start));
    let mut target = opened.await.map_err(|error| Status::internal(error.to_string()))??;
    let mut written_bytes = 0;
    while let Some(message) = input.next().await.transpose()? {
        let Some(v1::write_input::Input::Data(data)) = message.input else {
            return Err(Status::invalid_argument("only the first message may be `start`"));
        };
        written_bytes += data.len() as u64;
        target.file.write_all(&data).await.map_err(|error| status(&target.path, &error))?;
    }
    target.finish().await?;
    Ok(v1::WriteReply { written_bytes })
}

/// A file being written. Unless it is appended to, it is a temporary one beside `path` until it is whole;
/// dropping it early leaves nothing.
struct Target {
    path: PathBuf,
    temporary: Option<PathBuf>,
    file: File,
}

impl Target {
    fn open(path: PathBuf, start: &v1::WriteStart) -> Result<Self, Status> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        // Writing through a link changes what it points to, as everywhere.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let failed = |error: io::Error| status(&path, &error);
        let existing = fs::metadata(&path).ok();
        if let Some(metadata) = &existing
            && !metadata.is_file()
        {
            let what = if metadata.is_dir() { "is a directory" } else { "is not a regular file" };
            return Err(Status::invalid_argument(format!("`{}` {what}", path.display())));
        }
        let Some(parent) = path.parent() else {
            return Err(Status::invalid_argument("this path names no file"));
        };
        fs::create_dir_all(parent).map_err(failed)?;
        let mode = match (&existing, start.mode & 0o7777) {
            (Some(metadata), 0) => metadata.mode() & 0o7777,
            (None, 0) => 0o644,
            (_, mode) => mode,
        };
        if start.append {
            let file = fs::File::options().append(true).create(true).open(&path).map_err(failed)?;
            return Ok(Self { path, temporary: None, file: File::from_std(file) });
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temporary = parent.join(format!(".bouvet-write-{serial}"));
        let file = fs::File::options().write(true).create(true).truncate(true).open(&temporary);
        let file = File::from_std(file.map_err(failed)?);
        let permissions = fs::set_permissions(&temporary, fs::Permissions::from_mode(mode));
        let target = Self { path, temporary: Some(temporary), file };
        permissions.map_err(|error| status(&target.path, &error))?;
        Ok(target)
    }

    async fn finish(mut self) -> Result<(), Status> {
        // tokio's file writes behind; this is where the last error shows.
        self.file.flush().await.map_err(|error| status(&self.path, &error))?;
        if let Some(temporary) = &self.temporary {
            let renamed = tokio::fs::rename(temporary, &self.path).await;
            renamed.map_err(|error| status(&self.path, &error))?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // It may be in a volume, for which this thread must not wait. What cannot be removed was never the
            // caller's file.
            drop(tokio::task::spawn_blocking(move || fs::remove_file(temporary).ok()));
        }
    }
}

/// The entries of a directory, sorted by name, as many as fit.
pub(crate) fn list(home: &Path, request: &v1::ListRequest) -> Result<v1::ListReply, Status> {
    let path = resolve(home, &request.path)?;
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

    #[test]
    fn paths_start_at_home() {
        let home = Path::new("/root");
        assert_eq!(resolve(home, "a/b").ok(), Some("/root/a/b".into()));
        assert_eq!(resolve(home, "/a").ok(), Some("/a".into()));
        assert_eq!(resolve(home, "~/a").ok(), Some("/root/a".into()));
        assert_eq!(resolve(home, "~").ok(), Some("/root".into()));
        assert!(resolve(home, "").is_err());
        assert!(resolve(home, "a\0b").is_err());
        assert!(resolve(home, &"a".repeat(MAX_PATH_BYTES)).is_ok());
        assert!(resolve(home, &"a".repeat(MAX_PATH_BYTES + 1)).is_err());
    }

    #[test]
    fn a_listing_is_sorted_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", dir.path().join("d")).unwrap();
        let request = |limit_entries| v1::ListRequest { path: ".".into(), limit_entries };
        let all = list(dir.path(), &request(4)).unwrap();
        let names: Vec<_> = all.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!((names, all.truncated), (vec!["a", "b", "c", "d"], false));
        assert_eq!(all.entries[3].link_target, "nowhere");
        let some = list(dir.path(), &request(3)).unwrap();
        assert_eq!((some.entries.len(), some.truncated), (3, true));
    }
}
