//! Things on disk by name: whole or not there, made by one at a time, not removed while in use.
//!
//! Beside a thing called `key` are a lock, `key.lock`, and what is being made of it, `key.new`. Whoever uses the thing
//! holds the lock shared, whoever makes or removes it holds it alone. Locks belong to open files, so they work between
//! processes as within one, and end with whoever held them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;

/// How long another process may take to make a thing, and how often we look.
const LOCK_DEADLINE: Duration = Duration::from_secs(3 * 3600);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// A directory of things.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    dir: PathBuf,
}

/// While this is held, nobody removes the thing.
#[derive(Debug)]
pub(crate) struct Lease {
    _lock: File,
}

/// A thing that is there, or that the caller is now to make.
#[derive(Debug)]
pub(crate) enum Taken {
    There(Lease),
    Missing(Maker),
}

/// The right to make a thing. Nothing of it remains if this is dropped before [`Maker::finish`].
#[derive(Debug)]
pub(crate) struct Maker {
    shelf: Shelf,
    key: String,
    lock: Option<File>,
}

/// A thing on the shelf.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) used: SystemTime,
}

impl Shelf {
    /// Makes the directory if need be, and removes what was left half made.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let shelf = Self { dir };
        for entry in fs::read_dir(&shelf.dir)? {
            let name = entry?.file_name();
            let name = name.to_str().unwrap_or_default();
            if let Some(key) = name.strip_suffix(".new").or_else(|| name.strip_suffix(".lock")) {
                shelf.sweep(key)?;
            }
        }
        Ok(shelf)
    }

    fn sweep(&self, key: &str) -> io::Result<()> {
        if let Some(lock) = try_lock(&self.lock_path(key), FlockOperation::NonBlockingLockExclusive)? {
            remove_any(&self.new_path(key))?;
            if !self.path(key).exists() {
                fs::remove_file(self.lock_path(key))?;
            }
            drop(lock);
        }
        Ok(())
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.lock"))
    }

    fn new_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.new"))
    }

    /// The thing, or the right to make it. Waits while somebody else makes it; `waiting` is called when that begins.
    pub(crate) async fn take(&self, key: &str, waiting: &(dyn Fn() + Send + Sync)) -> io::Result<Taken> {
        let deadline = Instant::now() + LOCK_DEADLINE;
        let mut waited = false;
        loop {
            if let Some(taken) = self.try_take(key)? {
                return Ok(taken);
            }
            if Instant::now() > deadline {
                let held = format!("another process has held `{key}.lock` for {LOCK_DEADLINE:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, held));
            }
            if !std::mem::replace(&mut waited, true) {
                waiting();
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn try_take(&self, key: &str) -> io::Result<Option<Taken>> {
        if self.path(key).exists() {
            return Ok(self.lease(key)?.map(Taken::There));
        }
        let Some(lock) = try_lock(&self.lock_path(key), FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(None);
        };
        // It may have been made between the look and the lock.
        if self.path(key).exists() {
            return Ok(None);
        }
        remove_any(&self.new_path(key))?;
        Ok(Some(Taken::Missing(Maker { shelf: self.clone(), key: key.to_owned(), lock: Some(lock) })))
    }

    /// The thing if it is there and nobody is about to remove it. Counts as a use.
    pub(crate) fn lease(&self, key: &str) -> io::Result<Option<Lease>> {
        let path = self.path(key);
        if !path.exists() {
            return Ok(None);
        }
        let Some(lock) = try_lock(&self.lock_path(key), FlockOperation::NonBlockingLockShared)? else {
            return Ok(None);
        };
        match File::open(&path) {
            Ok(thing) => thing.set_modified(SystemTime::now())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(Lease { _lock: lock }))
    }

    /// Whether somebody uses the thing, or makes it.
    pub(crate) fn is_held(&self, key: &str) -> io::Result<bool> {
        let path = self.lock_path(key);
        // Not made anew, as a lock without a thing is nothing that anybody wants.
        let lock = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        Ok(rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Has `take` move the thing elsewhere, unless somebody uses it. Returns whether it is gone.
    pub(crate) fn set_aside(
        &self,
        key: &str,
        take: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<bool> {
        let Some(lock) = try_lock(&self.lock_path(key), FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(false);
        };
        let path = self.path(key);
        if path.exists() {
            take(&path)?;
        }
        fs::remove_file(self.lock_path(key))?;
        drop(lock);
        Ok(true)
    }

    /// Removes the thing, unless somebody uses it. Says whether it is gone.
    pub(crate) fn remove(&self, key: &str) -> io::Result<bool> {
        let Some(lock) = try_lock(&self.lock_path(key), FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(false);
        };
        // Under its other name it counts as half made, should we die here.
        let doomed = self.new_path(key);
        match fs::rename(self.path(key), &doomed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => remove_any(&doomed)?,
        }
        fs::remove_file(self.lock_path(key))?;
        drop(lock);
        Ok(true)
    }

    /// All things, the longest unused first.
    pub(crate) fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(key) = entry.file_name().into_string() else { continue };
            if key.ends_with(".lock") || key.ends_with(".new") {
                continue;
            }
            match entry
                .metadata()
                .and_then(|metadata| Ok((metadata.modified()?, bytes_on_disk(&entry.path())?)))
            {
                Ok((used, bytes)) => kept.push(Kept { key, bytes, used }),
                // Somebody else removes things too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        kept.sort_by(|a, b| (a.used, &a.key).cmp(&(b.used, &b.key)));
        Ok(kept)
    }
}

impl Maker {
    /// Where it is to be made.
    pub(crate) fn path(&self) -> PathBuf {
        self.shelf.new_path(&self.key)
    }

    /// Puts what was made, which must have reached the disk, in its place.
    pub(crate) fn finish(mut self) -> io::Result<Lease> {
        let path = self.shelf.path(&self.key);
        fs::rename(self.path(), &path)?;
        File::open(&self.shelf.dir)?.sync_all()?;
        let Some(lock) = self.lock.take() else { return Err(io::ErrorKind::InvalidInput.into()) };
        // The change is not atomic: somebody may have got in between, and removed it.
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared)?;
        if !path.exists() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it was evicted as soon as it was made"));
        }
        Ok(Lease { _lock: lock })
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // What fails here is swept by the next who opens the shelf.
            remove_any(&self.path()).ok();
            fs::remove_file(self.shelf.lock_path(&self.key)).ok();
        }
    }
}

/// The lock at `path`, which is made if it is missing; `None` if somebody holds it.
fn try_lock(path: &Path, operation: FlockOperation) -> io::Result<Option<File>> {
    loop {
        let lock = File::options().write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&lock, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        // It may have been removed with its thing; then nobody else would see our lock.
        let ours = lock.metadata()?.ino();
        if fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ours) {
            return Ok(Some(lock));
        }
    }
}

pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a file, or the files in a directory, take.
fn bytes_on_disk(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += entry?.metadata()?.blocks() * 512;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn make(shelf: &Shelf, key: &str) -> Lease {
        match shelf.take(key, &|| ()).await.unwrap() {
            Taken::There(lease) => lease,
            Taken::Missing(maker) => {
                fs::write(maker.path(), key).unwrap();
                maker.finish().unwrap()
            }
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_thing_is_made_once_and_others_wait_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().to_owned()).unwrap();
        let Taken::Missing(maker) = shelf.take("a", &|| ()).await.unwrap() else { panic!("it is new") };
        let waits = AtomicUsize::new(0);
        let waiting = || {
            waits.fetch_add(1, Ordering::Relaxed);
        };
        let second = shelf.take("a", &waiting);
        tokio::pin!(second);
        let early = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
        assert!(early.is_err() && waits.load(Ordering::Relaxed) == 1, "the second waits, and says so once");
        fs::write(maker.path(), "x").unwrap();
        let lease = maker.finish().unwrap();
        assert!(matches!(second.await.unwrap(), Taken::There(_)));
        drop(lease);
    }

    #[tokio::test]
    async fn nothing_remains_of_what_was_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().to_owned()).unwrap();
        let Taken::Missing(maker) = shelf.take("a", &|| ()).await.unwrap() else { panic!("it is new") };
        fs::write(maker.path(), "half").unwrap();
        drop(maker);
        assert!(names(dir.path()).is_empty());
        assert!(matches!(shelf.take("a", &|| ()).await.unwrap(), Taken::Missing(_)), "the next makes it");
    }

    #[tokio::test]
    async fn what_killed_processes_left_is_swept_and_what_living_ones_make_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().to_owned()).unwrap();
        drop(make(&shelf, "whole").await);
        fs::create_dir(dir.path().join("dead.new")).unwrap();
        fs::write(dir.path().join("dead.new/rootfs"), "half").unwrap();
        fs::write(dir.path().join("dead.lock"), "").unwrap();
        let Taken::Missing(maker) = shelf.take("alive", &|| ()).await.unwrap() else { panic!("it is new") };
        fs::write(maker.path(), "half").unwrap();
        Shelf::open(dir.path().to_owned()).unwrap();
        assert_eq!(names(dir.path()), ["alive.lock", "alive.new", "whole", "whole.lock"]);
    }

    #[tokio::test]
    async fn what_is_in_use_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().to_owned()).unwrap();
        let (first, second) = (make(&shelf, "a").await, make(&shelf, "a").await);
        assert!(!shelf.remove("a").unwrap() && shelf.is_held("a").unwrap());
        drop(first);
        assert!(!shelf.remove("a").unwrap());
        drop(second);
        assert!(!shelf.is_held("a").unwrap());
        assert!(shelf.remove("a").unwrap());
        assert!(names(dir.path()).is_empty());
    }

    #[tokio::test]
    async fn a_use_makes_a_thing_the_last_to_go() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().to_owned()).unwrap();
        for (key, age) in [("a", 30), ("b", 20), ("c", 10)] {
            drop(make(&shelf, key).await);
            let then = SystemTime::now() - Duration::from_secs(age);
            File::open(dir.path().join(key)).unwrap().set_modified(then).unwrap();
        }
        drop(shelf.lease("a").unwrap().unwrap());
        let order: Vec<_> = shelf.kept().unwrap().into_iter().map(|kept| kept.key).collect();
        assert_eq!(order, ["b", "c", "a"]);
    }

    #[tokio::test]
    async fn of_many_who_want_a_thing_at_once_one_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().to_owned()).unwrap();
        let made = AtomicUsize::new(0);
        let all = (0..20).map(|_| async {
            match shelf.take("a", &|| ()).await.unwrap() {
                Taken::There(lease) => lease,
                Taken::Missing(maker) => {
                    made.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    fs::write(maker.path(), "x").unwrap();
                    maker.finish().unwrap()
                }
            }
        });
        let leases = futures_util::future::join_all(all).await;
        assert_eq!((made.load(Ordering::Relaxed), leases.len()), (1, 20));
    }
}
