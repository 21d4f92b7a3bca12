//! Scratch disks: an empty file system, made once per size and copied per sandbox.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::confine;
use crate::sparse;

/// How long a disk is to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As long as the VM that writes it.
    Fleeting,
    /// Longer, whatever happens to that VM.
    Durable,
}

/// Makes empty disks, and keeps one of each size to copy from.
#[derive(Debug)]
pub(crate) struct Blanks {
    dir: PathBuf,
    making: tokio::sync::Mutex<()>,
}

/// Why a disk could not be made.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, BringUpError, CreateError, DiskError};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.create(BoxConfig::default()).await {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(CreateError::BringUp(BringUpError::Disk(DiskError::Write { path, source }))) => {
///         println!("{}: {source}", path.display());
///     }
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `mke2fs` is missing or failed.
    #[error("could not make a file system of {0} MiB")]
    Format(u32, #[source] confine::ToolError),
    /// A file could not be written.
    #[error("could not write the disk `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Whether the program that makes disks can be run.
///
/// ```no_run
/// # async fn example() {
/// if let Err(error) = bouvet_host::check_mke2fs().await {
///     eprintln!("install e2fsprogs: {}", bouvet_host::chain(&error));
/// }
/// # }
/// ```
pub async fn check_mke2fs() -> Result<(), confine::ToolError> {
    confine::run_tool("mke2fs", ["-V"].iter()).await.map(drop)
}

impl Blanks {
    /// Keeps blanks in `dir`, which must exist.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, making: tokio::sync::Mutex::default() }
    }

    /// Makes an empty ext4 of `size_mb` MiB at `path`. Sparse: it takes space as it is written. A durable one is there
    /// whole or not at all.
    pub(crate) async fn copy_to(&self, path: &Path, size_mb: u32, kind: Kind) -> Result<File, DiskError> {
        let blank = self.blank(size_mb, kind).await?;
        let failed = |source| DiskError::Write { path: path.to_owned(), source };
        let blank = File::open(blank).map_err(failed)?;
        if kind == Kind::Fleeting {
            return copy(blank, path.to_owned()).await;
        }
        let young = path.with_extension("new");
        // From a host that was killed.
        match fs::remove_file(&young) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let disk = copy(blank, young.clone()).await?;
        disk.sync_all().and_then(|()| fs::rename(&young, path)).map_err(failed)?;
        Ok(disk)
    }

    async fn blank(&self, size_mb: u32, kind: Kind) -> Result<PathBuf, DiskError> {
        // A journal is for a disk that outlives the VM that writes it.
        let (name, features) = match kind {
            Kind::Fleeting => ("blank", "^has_journal"),
            Kind::Durable => ("durable", "has_journal"),
        };
        let path = self.dir.join(format!("{name}-{size_mb}.ext4"));
        let _making = self.making.lock().await;
        let failed = |source| DiskError::Write { path: path.clone(), source };
        if path.exists() {
            return Ok(path);
        }
        let temporary = path.with_extension("new");
        let file = File::create(&temporary).map_err(failed)?;
        file.set_len(u64::from(size_mb) * 1024 * 1024).map_err(failed)?;
        let args =
            ["-q", "-F", "-t", "ext4", "-m", "0", "-O", features, "-E", "lazy_itable_init=1,nodiscard"];
        confine::run_tool("mke2fs", args.map(AsRef::as_ref).into_iter().chain([temporary.as_os_str()]))
            .await
            .map_err(|error| DiskError::Format(size_mb, error))?;
        fs::rename(&temporary, &path).map_err(failed)?;
        Ok(path)
    }
}

/// Opens a disk that was kept.
pub(crate) fn open(path: &Path) -> Result<File, DiskError> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|source| DiskError::Write { path: path.to_owned(), source })
}

/// Copies the disk `from` to a new file at `to`.
pub(crate) async fn copy(from: File, to: PathBuf) -> Result<File, DiskError> {
    let copied = tokio::task::spawn_blocking(move || {
        copy_sparse(&from, &to).map_err(|source| DiskError::Write { path: to, source })
    });
    copied.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Copies `source` to a new file at `to`: shared extents where the file system can, else the data and not
/// the holes.
pub(crate) fn copy_sparse(source: &File, to: &Path) -> io::Result<File> {
    let target = File::options().read(true).write(true).create_new(true).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, source).is_ok() {
        return Ok(target);
    }
    target.set_len(source.metadata()?.len())?;
    for extent in sparse::extents(source) {
        let extent = extent?;
        copy_range(source, &target, extent.start, extent.end)?;
    }
    Ok(target)
}

fn copy_range(source: &File, target: &File, from: u64, to: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (from, from);
    while read_at < to {
        let left = usize::try_from(to - read_at).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), left)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[tokio::test]
    async fn a_durable_disk_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.ext4");
        fs::write(path.with_extension("new"), "a half copy").unwrap();
        // What `mke2fs` would have made.
        fs::write(dir.path().join("durable-1.ext4"), vec![7; 1 << 20]).unwrap();
        Blanks::new(dir.path().to_owned()).copy_to(&path, 1, Kind::Durable).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let source = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"head", 0).unwrap();
        source.write_all_at(b"middle", 40 << 20).unwrap();
        drop(copy_sparse(&source, &to).unwrap());
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20, "the holes were filled");
        assert!(copy_sparse(&source, &to).is_err(), "an existing disk is never written over");
    }
}
