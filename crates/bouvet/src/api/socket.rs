//! The Unix socket of a server: who may use it, and that there is one server behind it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tokio::net::{UnixListener, UnixStream};

/// Whose members may use the socket of a server that root runs.
const GROUP: &str = "bouvet";

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves there.
    #[error("another server answers on `{0}`")]
    InUse(PathBuf),
    /// Somebody else could have put things there.
    #[error("the directory `{0}` belongs to another user")]
    Foreign(PathBuf),
    /// The system would not have it.
    #[error("could not listen on `{path}`")]
    Failed {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A socket that is served. Its file is gone when this is.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    _lock: File,
}

impl Socket {
    /// Listens at `path`, whose directory is made if it is missing. What a server that was killed left is replaced.
    pub(crate) async fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |source| SocketError::Failed { path: path.to_owned(), source };
        let dir = path.parent().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        prepare(dir, path)?;
        let lock =
            File::options().create(true).append(true).open(path.with_extension("lock")).map_err(failed)?;
        let in_use = || SocketError::InUse(path.to_owned());
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| in_use())?;
        // One that locks nothing may listen there all the same.
        if UnixStream::connect(path).await.is_ok() {
            return Err(in_use());
        }
        // Nobody can connect before everything about it is as it should be.
        let young = path.with_extension("new");
        remove(&young).map_err(failed)?;
        let listener = UnixListener::bind(&young).map_err(failed)?;
        let moved = admit(&young).and_then(|()| fs::rename(&young, path));
        moved.map_err(failed)?;
        Ok((Self { path: path.to_owned(), _lock: lock }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What stays is replaced by the next server.
        remove(&self.path).ok();
    }
}

/// Makes `dir` so that nobody else can put a socket there.
fn prepare(dir: &Path, path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Failed { path: path.to_owned(), source };
    let root = rustix::process::geteuid();
    let mode = if root.is_root() { 0o755 } else { 0o700 };
    match fs::DirBuilder::new().mode(mode).recursive(true).create(dir) {
        Ok(()) => {}
        Err(source) => return Err(failed(source)),
    }
    let about = fs::metadata(dir).map_err(failed)?;
    let others_may_write = about.mode() & 0o022 != 0 && about.mode() & 0o1000 == 0;
    if (about.uid() != root.as_raw() && about.uid() != 0) || others_may_write {
        return Err(SocketError::Foreign(dir.to_owned()));
    }
    Ok(())
}

/// Says who may connect: its owner, and for root the members of the group.
fn admit(path: &Path) -> io::Result<()> {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group_id(&groups, GROUP).filter(|_| rustix::process::geteuid().is_root());
    let mode = match group {
        Some(group) => {
            std::os::unix::fs::chown(path, None, Some(group))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// The number of a group by the text of group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nbouvets:x:5:\nbouvet:x:998:ann,bob\nbroken\n";
        assert_eq!(group_id(groups, "bouvet"), Some(998));
        assert_eq!(group_id(groups, "broken"), None);
        assert_eq!(group_id(groups, "none"), None);
    }

    #[tokio::test]
    async fn a_socket_is_its_servers_alone_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/bouvet.sock");
        let (socket, listener) = Socket::bind(&path).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert!(matches!(mode(&path), 0o600 | 0o660));
        assert!(matches!(mode(path.parent().unwrap()), 0o700 | 0o755));
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::InUse(_))));
        drop((socket, listener));
        assert!(!path.exists());

        // As a server leaves it that was killed.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_socket, _listener) = Socket::bind(&path).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn one_that_answers_without_a_lock_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bouvet.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::InUse(_))));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::Foreign(_))));
    }
}
