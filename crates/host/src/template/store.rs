//! Templates on disk: whole or not there, bounded in number, shared by hosts.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::fs::FlockOperation;
use tracing::{debug, warn};

use crate::engine::Frozen;
use crate::engine::memory::{self, Home, Memory};
use crate::instance;

/// Templates that are kept; beyond that the longest unused go.
pub(crate) const MAX_TEMPLATES: usize = 8;

/// How long another process may take to build a template, and how often we look.
const LOCK_DEADLINE: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why templates cannot be kept.
///
/// ```no_run
/// use bouvet_host::{Host, HostOptions, StartError, StoreError};
///
/// # async fn example(options: HostOptions) -> Result<(), StartError> {
/// let host = match Host::start(options.clone()).await {
///     // Slower, but it goes without them.
///     Err(StartError::Templates(StoreError { .. })) => {
///         Host::start(HostOptions { templates: None, ..options }).await?
///     }
///     started => started?,
/// };
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("could not keep templates in `{dir}`")]
pub struct StoreError {
    /// Where.
    pub dir: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// The directory of templates.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    home: Home,
}

impl Store {
    /// Makes the directory if it is missing. Templates hold the memory of VMs: only we may read it.
    pub(super) fn open(dir: PathBuf, home: Home) -> Result<Self, StoreError> {
        // Whoever could put a template there would choose what runs in every sandbox.
        match instance::prepare(&dir) {
            Ok(()) => Ok(Self { dir, home }),
            Err(error) => Err(StoreError { dir, source: io::Error::other(error) }),
        }
    }

    /// Waits until nobody else builds or loads the template called `key`.
    pub(super) async fn lock(&self, key: &str) -> Result<Slot, StoreError> {
        let (dir, key) = (self.dir.clone(), key.to_owned());
        let path = dir.join(format!("{key}.lock"));
        let lock = File::options().write(true).create(true).truncate(false).open(path);
        let failed = |source| StoreError { dir: self.dir.clone(), source };
        let lock = lock.map_err(failed)?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Slot { dir, key, home: self.home.clone(), _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let held = format!("another process has held `{key}.lock` for {LOCK_DEADLINE:?}");
                    return Err(failed(io::Error::new(io::ErrorKind::TimedOut, held)));
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// The place of one template, for as long as this is held.
#[derive(Debug)]
pub(super) struct Slot {
    dir: PathBuf,
    key: String,
    home: Home,
    _lock: File,
}

impl Slot {
    fn path(&self) -> PathBuf {
        self.dir.join(&self.key)
    }

    /// The template that is there; `None` if there is none, or one that cannot be used.
    pub(super) async fn load(&self) -> Result<Option<Frozen>, StoreError> {
        let (path, home) = (self.path(), self.home.clone());
        blocking(&self.dir, move || {
            if !path.exists() {
                return Ok(None);
            }
            let Kept { memory, devices, scratch } = match Kept::open(&path) {
                Ok(kept) => kept,
                Err(error) => {
                    warn!(%error, template = %path.display(), "could not load a template; building it again");
                    fs::remove_dir_all(&path)?;
                    return Ok(None);
                }
            };
            // That there is no room for it here says nothing against what is kept.
            Ok(Some(Frozen { memory: Memory::load(&memory, &home)?, devices, scratch }))
        })
        .await
    }

    /// Keeps `frozen` for later loads, or nothing of it.
    pub(super) async fn save(&self, frozen: Arc<Frozen>) -> Result<(), StoreError> {
        let (dir, key, path) = (self.dir.clone(), self.key.clone(), self.path());
        blocking(&self.dir, move || {
            let new = dir.join(format!("{key}.new"));
            if new.exists() {
                fs::remove_dir_all(&new)?;
            }
            fs::create_dir(&new)?;
            if let Err(error) = save(&frozen, &new).and_then(|()| fs::rename(&new, &path)) {
                // The disk may be full, and this is most of what fills it.
                fs::remove_dir_all(&new).ok();
                return Err(error);
            }
            evict(&dir, &key);
            Ok(())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    done.map_err(|source| StoreError { dir: dir.to_owned(), source })
}

fn save(frozen: &Frozen, dir: &Path) -> io::Result<()> {
    let memory = File::options().read(true).write(true).create_new(true).open(dir.join("memory"))?;
    memory.set_len(frozen.memory.metadata()?.len())?;
    memory::copy_data(&frozen.memory, &memory)?;
    // The directory is ours alone; VMs may be shown the file.
    memory.set_permissions(fs::Permissions::from_mode(0o444))?;
    fs::write(dir.join("devices"), &frozen.devices)?;
    crate::disk::copy_sparse(&frozen.scratch, &dir.join("scratch.ext4"))?;
    // After a power failure there is a whole template or none.
    memory.sync_all()?;
    File::open(dir.join("scratch.ext4"))?.sync_all()?;
    File::open(dir.join("devices"))?.sync_all()
}

/// A template as it lies on disk.
struct Kept {
    memory: PathBuf,
    devices: Bytes,
    scratch: File,
}

impl Kept {
    fn open(dir: &Path) -> io::Result<Self> {
        let memory = dir.join("memory");
        let devices = fs::read(dir.join("devices"))?;
        let scratch = File::open(dir.join("scratch.ext4"))?;
        if devices.is_empty() || scratch.metadata()?.len() == 0 || fs::metadata(&memory)?.len() == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // When it was used last.
        let now = SystemTime::now();
        File::options().append(true).open(dir.join("devices"))?.set_modified(now)?;
        Ok(Self { memory, devices: devices.into(), scratch })
    }
}

/// Removes the longest unused templates beyond the limit, and what killed hosts left half done.
fn evict(dir: &Path, keep: &str) {
    if let Err(error) = try_evict(dir, keep) {
        warn!(%error, dir = %dir.display(), "could not remove old templates");
    }
}

fn try_evict(dir: &Path, keep: &str) -> io::Result<()> {
    let mut templates = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !path.is_dir() || name == keep {
            continue;
        }
        let used = fs::metadata(path.join("devices")).and_then(|metadata| metadata.modified());
        templates.push((used.unwrap_or(SystemTime::UNIX_EPOCH), path));
    }
    templates.sort();
    let over = (templates.len() + 1).saturating_sub(MAX_TEMPLATES);
    for (_, path) in templates.into_iter().take(over) {
        debug!(template = %path.display(), "removing a template that was not used for long");
        remove(&path)?;
    }
    Ok(())
}

/// Removes a template, unless somebody builds or loads it just now.
fn remove(path: &Path) -> io::Result<()> {
    let lock_path = path.with_extension("lock");
    let lock = File::options().write(true).create(true).truncate(false).open(&lock_path)?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    fn frozen(dir: &Path, mark: &[u8]) -> Arc<Frozen> {
        let memory = memory::create(1).unwrap();
        memory.write_all_at(mark, 4096).unwrap();
        let path = dir.join("frozen-scratch");
        fs::write(&path, mark).unwrap();
        let scratch = File::open(path).unwrap();
        let memory = Memory::sealed(memory).unwrap();
        Arc::new(Frozen { memory, devices: mark.to_vec().into(), scratch })
    }

    async fn save(store: &Store, key: &str, outside: &Path) {
        store.lock(key).await.unwrap().save(frozen(outside, key.as_bytes())).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_saved_is_loaded_and_sealed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path().join("templates"), Home::Sealed).unwrap();
        assert!(store.lock("a").await.unwrap().load().await.unwrap().is_none());
        save(&store, "a", outside.path()).await;
        let loaded = store.lock("a").await.unwrap().load().await.unwrap().unwrap();
        let mut bytes = [0; 2];
        loaded.memory.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!((&bytes, &loaded.devices[..]), (b"a\0", &b"a"[..]));
        assert!(loaded.memory.write_all_at(b"x", 0).is_err());
        assert!(store.lock("b").await.unwrap().load().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn memory_is_used_where_it_is_kept_if_that_is_what_the_engine_needs() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let home = outside.path().join("memory");
        let store = Store::open(dir.path().to_owned(), Home::Disk(home.clone())).unwrap();
        save(&store, "a", outside.path()).await;
        let loaded = store.lock("a").await.unwrap().load().await.unwrap().unwrap();
        let (used, kept) =
            (loaded.memory.metadata().unwrap(), fs::metadata(dir.path().join("a/memory")).unwrap());
        assert_eq!((used.dev(), used.ino()), (kept.dev(), kept.ino()));
        assert_eq!(used.mode() & 0o777, 0o444, "VMs of any user id read it");
        // It has a name of its own, whatever becomes of the kept one.
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!(loaded.memory.metadata().unwrap().nlink(), 1);
        drop(loaded);
        assert_eq!(fs::read_dir(home).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_template_without_room_where_it_is_needed_is_kept() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Where its memory is to be there is a file, and so no room.
        let home = outside.path().join("memory");
        fs::write(&home, "").unwrap();
        let store = Store::open(dir.path().to_owned(), Home::Disk(home.clone())).unwrap();
        save(&store, "a", outside.path()).await;
        assert!(store.lock("a").await.unwrap().load().await.is_err());
        assert!(dir.path().join("a/memory").exists(), "it is as good as it was");
        fs::remove_file(home).unwrap();
        assert!(store.lock("a").await.unwrap().load().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_cannot_be_saved_leaves_nothing() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path().to_owned(), Home::Sealed).unwrap();
        // In the way of the last step.
        fs::write(dir.path().join("a"), "").unwrap();
        let slot = store.lock("a").await.unwrap();
        assert!(slot.save(frozen(outside.path(), b"a")).await.is_err());
        assert!(!dir.path().join("a.new").exists());
    }

    #[tokio::test]
    async fn one_that_was_cut_short_is_built_again() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path().to_owned(), Home::Sealed).unwrap();
        // Killed while it wrote: nothing of it counts.
        fs::create_dir(dir.path().join("a.new")).unwrap();
        fs::write(dir.path().join("a.new/memory"), "half").unwrap();
        assert!(store.lock("a").await.unwrap().load().await.unwrap().is_none());
        save(&store, "a", outside.path()).await;
        assert!(!dir.path().join("a.new").exists());
        // Damaged afterwards.
        fs::write(dir.path().join("a/devices"), "").unwrap();
        assert!(store.lock("a").await.unwrap().load().await.unwrap().is_none());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let (theirs, link) = (parent.path().join("theirs"), parent.path().join("link"));
        fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        assert!(Store::open(link, Home::Sealed).is_err(), "a link");
        // Only root can give something away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&theirs, Some(1), None).unwrap();
            assert!(Store::open(theirs, Home::Sealed).is_err());
        }
    }

    #[tokio::test]
    async fn the_longest_unused_go() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path().to_owned(), Home::Sealed).unwrap();
        for number in 0..MAX_TEMPLATES {
            let key = format!("k{number}");
            save(&store, &key, outside.path()).await;
            let age = Duration::from_secs(1000 - number as u64);
            let devices = File::options().append(true).open(dir.path().join(&key).join("devices")).unwrap();
            devices.set_modified(SystemTime::now() - age).unwrap();
        }
        store.lock("k0").await.unwrap().load().await.unwrap().unwrap();
        save(&store, "new", outside.path()).await;
        let there = |key: &str| dir.path().join(key).exists();
        assert!(there("new") && there("k0") && !there("k1") && there("k2"));
    }

    #[tokio::test]
    async fn only_one_builds() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path().to_owned(), Home::Sealed).unwrap();
        let first = store.lock("a").await.unwrap();
        let second = store.lock("a");
        tokio::pin!(second);
        let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
        assert!(waited.is_err(), "the second waits");
        first.save(frozen(outside.path(), b"a")).await.unwrap();
        drop(first);
        assert!(second.await.unwrap().load().await.unwrap().is_some());
    }
}
