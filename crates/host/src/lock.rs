//! Locks of files between processes.

use std::fs::File;
use std::io;

use rustix::fs::FlockOperation;

/// A lock of a file, for as long as this is held. To close the file would not be to let go of it: a child that was forked
/// just now has it open too, until it becomes another program (flock(2)).
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Locks `file`, or waits for it, as `how` says.
    pub(crate) fn of(file: File, how: FlockOperation) -> io::Result<Self> {
        rustix::fs::flock(&file, how)?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        rustix::fs::flock(&self.0, FlockOperation::Unlock).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_let_go_of_though_a_child_has_its_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::create(dir.path().join("lock")).unwrap();
        let file = open();
        // As it is between fork and exec.
        let childs = file.try_clone().unwrap();
        let lock = Lock::of(file, FlockOperation::LockExclusive).unwrap();
        let another = || Lock::of(open(), FlockOperation::NonBlockingLockExclusive);
        assert_eq!(another().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        another().unwrap();
        drop(childs);
    }
}
