//! Disks of stopped sandboxes that are not persistent: kept so that their files can be read, within a bound.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use crate::sandbox::SandboxId;

/// Bytes that all disks of stopped sandboxes may take together. The oldest are removed first.
pub(crate) const MAX_RESTING_BYTES: u64 = 16 << 30;
/// They may take this part of their file system at most: it may be the host's memory.
const FILE_SYSTEM_SHARE: u64 = 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct RestingDisks {
    dir: PathBuf,
    max_bytes: u64,
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// Oldest first, each with the bytes that it takes.
    disks: Vec<(SandboxId, u64)>,
    /// Sandboxes whose disks were removed because of the bound.
    evicted: HashSet<SandboxId>,
}

impl RestingDisks {
    /// Keeps disks in `dir`, which must exist.
    pub(crate) fn new(dir: PathBuf) -> io::Result<Arc<Self>> {
        let file_system = rustix::fs::statvfs(&dir)?;
        let share = file_system.f_blocks.saturating_mul(file_system.f_frsize) / FILE_SYSTEM_SHARE;
        Ok(Self::within(dir, limit(share)))
    }

    fn within(dir: PathBuf, max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { dir, max_bytes, shelf: Mutex::default() })
    }

    /// The place of a sandbox's disk while it is stopped.
    pub(crate) fn place(self: &Arc<Self>, id: SandboxId) -> RestingDisk {
        RestingDisk { disks: self.clone(), id }
    }

    fn path(&self, id: SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.ext4"))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the disk of `id`, now the newest, and removes the oldest until all fit.
    fn count(&self, id: SandboxId) -> io::Result<()> {
        let bytes = fs::metadata(self.path(id))?.blocks() * 512;
        let mut shelf = self.shelf();
        shelf.disks.retain(|(known, _)| *known != id);
        shelf.disks.push((id, bytes));
        while shelf.disks.iter().map(|(_, bytes)| bytes).sum::<u64>() > self.max_bytes {
            let (oldest, bytes) = shelf.disks.remove(0);
            info!(sandbox = %oldest, bytes, "removing the disk of a stopped sandbox: such disks take too much");
            shelf.evicted.insert(oldest);
            remove_file(&self.path(oldest))?;
        }
        Ok(())
    }
}

/// The place of one sandbox's disk while it is stopped.
#[derive(Debug, Clone)]
pub(crate) struct RestingDisk {
    disks: Arc<RestingDisks>,
    id: SandboxId,
}

impl RestingDisk {
    /// Puts the disk at `from` here, and removes older ones of other sandboxes if all take too much.
    pub(crate) fn keep(&self, from: &Path) -> io::Result<()> {
        fs::rename(from, self.disks.path(self.id))?;
        self.disks.count(self.id)
    }

    /// Counts the disk again, after a VM had it.
    pub(crate) fn count(&self) {
        match self.disks.count(self.id) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(sandbox = %self.id, %error, "could not measure the disk of a stopped sandbox");
            }
            _ => {}
        }
    }

    /// Where the disk is, or why there is none.
    pub(crate) fn path(&self) -> Result<PathBuf, String> {
        let path = self.disks.path(self.id);
        if path.exists() {
            return Ok(path);
        }
        if !self.disks.shelf().evicted.contains(&self.id) {
            return Err("the sandbox is stopped, and its disk was not kept".into());
        }
        let max_mb = self.disks.max_bytes >> 20;
        Err(format!(
            "the sandbox is stopped, and its disk was removed: disks of stopped sandboxes may take {max_mb} MiB together, \
             and newer ones needed its place"
        ))
    }

    /// Removes the disk, if there is one.
    pub(crate) fn remove(&self) {
        let mut shelf = self.disks.shelf();
        shelf.disks.retain(|(known, _)| *known != self.id);
        shelf.evicted.remove(&self.id);
        drop(shelf);
        if let Err(error) = remove_file(&self.disks.path(self.id)) {
            warn!(sandbox = %self.id, %error, "could not remove the disk of a stopped sandbox");
        }
    }
}

/// The bound where a file system's share is `share` bytes.
fn limit(share: u64) -> u64 {
    match share {
        // Some file systems do not know their size.
        0 => MAX_RESTING_BYTES,
        share => share.min(MAX_RESTING_BYTES),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK_BYTES: usize = 64 << 10;

    /// Stops a sandbox whose disk takes `DISK_BYTES`.
    fn stop(disks: &Arc<RestingDisks>) -> RestingDisk {
        let disk = disks.place(SandboxId::random());
        let scratch = disks.dir.join("scratch");
        fs::write(&scratch, vec![1; DISK_BYTES]).unwrap();
        disk.keep(&scratch).unwrap();
        disk
    }

    #[test]
    fn oldest_resting_disk_goes_past_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let disks = RestingDisks::within(dir.path().to_owned(), 3 * DISK_BYTES as u64);
        let stopped: Vec<_> = (0..3).map(|_| stop(&disks)).collect();
        assert!(stopped.iter().all(|disk| disk.path().is_ok()), "at the limit all stay");
        // The first one is read again, which makes it the newest.
        stopped[0].count();
        let fourth = stop(&disks);
        let error = stopped[1].path().unwrap_err();
        assert!(error.contains("its disk was removed") && error.contains("0 MiB"), "{error}");
        assert!(stopped[0].path().is_ok() && stopped[2].path().is_ok() && fourth.path().is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);

        fourth.remove();
        assert!(fourth.path().unwrap_err().contains("was not kept"));
        stopped[1].remove();
        assert!(stopped[1].path().unwrap_err().contains("was not kept"), "it began anew");
        let (fifth, shelf) = (stop(&disks), disks.shelf());
        assert_eq!((shelf.disks.len(), shelf.evicted.len()), (3, 0));
        drop(shelf);
        fifth.remove();
    }

    #[test]
    fn disk_larger_than_the_limit_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let disks = RestingDisks::within(dir.path().to_owned(), DISK_BYTES as u64 - 1);
        assert!(stop(&disks).path().unwrap_err().contains("its disk was removed"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn resting_disks_take_a_part_of_their_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let disks = RestingDisks::new(dir.path().to_owned()).unwrap();
        let file_system = rustix::fs::statvfs(dir.path()).unwrap();
        let total = file_system.f_blocks * file_system.f_frsize;
        assert_eq!(disks.max_bytes, limit(total / 10));
        assert_eq!((limit(1), limit(MAX_RESTING_BYTES + 1)), (1, MAX_RESTING_BYTES));
        assert_eq!(limit(0), MAX_RESTING_BYTES, "it does not know its size");
    }
}
