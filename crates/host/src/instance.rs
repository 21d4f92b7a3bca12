//! What one host has for itself: a directory to work in, and a range of user ids.
//!
//! Several hosts may share one parent directory: each takes a directory of its own in it, and holds a lock
//! there for as long as it lives. One that nobody holds was left by a host that was killed, and is cleared by
//! the next that starts. User ids are told apart by the same means, with one parent for the whole machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Hosts that may share a parent directory.
pub(crate) const MAX_HOSTS: u32 = 64;

/// Why a host found no place.
///
/// ```no_run
/// use bouvet_host::{ClaimError, Host, HostOptions, StartError};
///
/// # async fn example(options: HostOptions) {
/// if let Err(StartError::Claim(ClaimError::InUse(dir, limit))) = Host::start(options).await {
///     eprintln!("{limit} hosts work in {}", dir.display());
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The directory cannot be used.
    #[error("could not use the directory `{path}`")]
    Directory {
        /// The parent of the hosts' directories.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have put things there.
    #[error("the directory `{0}` belongs to another user")]
    Foreign(PathBuf),
    /// As many hosts as may be work there.
    #[error("the directory `{0}` is in use by {1} hosts, which is the limit")]
    InUse(PathBuf, u32),
}

/// A claim on one directory, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Its number, unique among the living hosts of the parent.
    pub(crate) number: u32,
    /// Its directory.
    pub(crate) dir: PathBuf,
    _lock: File,
}

impl Instance {
    /// Takes the first directory in `parent` that no living host holds. Calls `clear` for every such
    /// directory, this one included, before it empties it.
    pub(crate) fn claim(parent: &Path, clear: impl Fn(&Path)) -> Result<Self, ClaimError> {
        prepare(parent)?;
        let failed = |source| ClaimError::Directory { path: parent.to_owned(), source };
        let mut claimed = None;
        for number in 0..MAX_HOSTS {
            let dir = parent.join(format!("host-{number}"));
            if claimed.is_some() && !dir.exists() {
                continue;
            }
            let Some(lock) = lock(&dir).map_err(failed)? else { continue };
            clear(&dir);
            if claimed.is_none() {
                empty(&dir).map_err(failed)?;
                claimed = Some(Self { number, dir, _lock: lock });
            } else {
                fs::remove_dir_all(&dir).map_err(failed)?;
            }
        }
        claimed.ok_or_else(|| ClaimError::InUse(parent.to_owned(), MAX_HOSTS))
    }

    /// Removes the directory, and the parent if no other host uses it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)?;
        match self.dir.parent().map(fs::remove_dir) {
            // Others use it, or it was mounted there for us, as service managers do.
            Some(Err(error))
                if !matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::ResourceBusy
                        | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// Makes `parent` if need be, and checks that nobody else can put things there.
pub(crate) fn prepare(parent: &Path) -> Result<(), ClaimError> {
    let failed = |source| ClaimError::Directory { path: parent.to_owned(), source };
    if let Some(above) = parent.parent() {
        fs::create_dir_all(above).map_err(failed)?;
    }
    make(parent).map_err(failed)?;
    let metadata = fs::symlink_metadata(parent).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(ClaimError::Foreign(parent.to_owned()));
    }
    Ok(())
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The lock of `dir`, which is made if it is missing; `None` if a living host holds it.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    loop {
        make(dir)?;
        let path = dir.join("lock");
        let lock = match File::options().write(true).create(true).truncate(false).open(&path) {
            // A host that was just ending took the directory with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // The file may have been removed by a host that was ending; then nobody else would see our lock.
        let ours = lock.metadata()?.ino();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == ours) {
            return Ok(Some(lock));
        }
    }
}

/// Removes everything in `dir` but the lock.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != "lock" {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_living_host_has_a_directory_of_its_own() {
        let above = tempfile::tempdir().unwrap();
        let parent = above.path().join("a/b");
        let first = Instance::claim(&parent, |_| ()).unwrap();
        let second = Instance::claim(&parent, |_| ()).unwrap();
        assert_eq!((first.number, second.number), (0, 1));
        first.remove().unwrap();
        drop(first);
        assert!(second.dir.exists());
        assert_eq!(Instance::claim(&parent, |_| ()).unwrap().number, 0);
        second.remove().unwrap();
    }

    #[test]
    fn what_a_killed_host_left_is_cleared() {
        let above = tempfile::tempdir().unwrap();
        let parent = above.path().join("state");
        let first = Instance::claim(&parent, |_| ()).unwrap();
        let second = Instance::claim(&parent, |_| ()).unwrap();
        for host in [&first, &second] {
            fs::create_dir(host.dir.join("sandboxes")).unwrap();
            fs::write(host.dir.join("initramfs"), "x").unwrap();
        }
        drop((first, second));
        let cleared = std::cell::RefCell::new(Vec::new());
        let next = Instance::claim(&parent, |dir| cleared.borrow_mut().push(dir.to_owned())).unwrap();
        assert_eq!(cleared.into_inner(), [parent.join("host-0"), parent.join("host-1")]);
        let left: Vec<_> = fs::read_dir(&next.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
        assert!(!parent.join("host-1").exists());
    }

    #[test]
    fn there_is_a_limit() {
        let above = tempfile::tempdir().unwrap();
        let held: Vec<_> = (0..MAX_HOSTS).map(|_| Instance::claim(above.path(), |_| ()).unwrap()).collect();
        assert!(matches!(Instance::claim(above.path(), |_| ()), Err(ClaimError::InUse(_, MAX_HOSTS))));
        drop(held);
    }
}
