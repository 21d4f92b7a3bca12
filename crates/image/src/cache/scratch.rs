//! Directories for pulls without a cache.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{CacheError, CacheOptions, Store};

/// What they are called.
const PREFIX: &str = "pull-";

/// A directory for one pull without a cache. It is locked as long as it lives, and goes with this.
#[derive(Debug)]
pub(crate) struct Scratch {
    _lock: File,
    dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new(dir: &Path) -> Result<(Self, Store), CacheError> {
        let failed = |source| CacheError::Directory { dir: dir.to_owned(), source };
        let scratch = Self::make(dir).map_err(failed)?;
        let store = Store::open(CacheOptions {
            dir: scratch.dir.path().to_owned(),
            max_rootfs_entries: 1,
            // The layers go as soon as the root file system is written.
            max_cache_bytes: 0,
        })?;
        Ok((scratch, store))
    }

    fn make(dir: &Path) -> io::Result<Self> {
        let _turn = Self::turn(dir)?;
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(dir)?;
        let lock = File::open(made.path())?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { _lock: lock, dir: made })
    }

    /// Held while directories are made or swept, so that none is swept before it is locked. Nobody holds it for long.
    fn turn(dir: &Path) -> io::Result<File> {
        let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }

    pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
        let _turn = Self::turn(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            let lock = File::open(entry.path())?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}
