//! New files and directories, which belong to the sandbox's user.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Uid};
use rustix::io::Errno;

use crate::identity::Identity;
use crate::places;

/// New files of a directory with this bit are in its group (inode(7), `S_ISGID`).
const SET_GROUP_ID: u32 = 0o2000;

/// Makes `dir` and what is missing above it. Returns what was made, the outermost first; after a failure, nothing is left.
pub(crate) fn make_directories(dir: &Path, owner: &Identity) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    let mut made = Vec::new();
    for dir in missing.into_iter().rev() {
        let done = make_directory(dir, owner);
        match done {
            Ok(true) => made.push(dir.to_owned()),
            Ok(false) => {}
            Err(error) => {
                remove_directories(&made);
                return Err(error);
            }
        }
    }
    Ok(made)
}

/// Removes what [`make_directories`] made, as far as nothing else is in it.
pub(super) fn remove_directories(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        // It may be in use by now.
        fs::remove_dir(dir).ok();
    }
}

/// Whether it was made, and not somebody else's a moment before.
fn make_directory(dir: &Path, owner: &Identity) -> io::Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Made a moment before, or a link that leads to nothing.
            return places::make(dir).map(|()| false);
        }
        Err(error) => return Err(error),
    }
    let given = new_owner(owner, dir)
        .map(|(uid, gid)| rustix::fs::chownat(CWD, dir, Some(uid), gid, AtFlags::SYMLINK_NOFOLLOW));
    if let Err(error) = settled(given) {
        fs::remove_dir(dir).ok();
        return Err(error);
    }
    Ok(true)
}

/// Gives the new `file` at `path` to `owner`.
pub(super) fn give(file: &File, path: &Path, owner: &Identity) -> io::Result<()> {
    settled(new_owner(owner, path).map(|(uid, gid)| rustix::fs::fchown(file, Some(uid), gid)))
}

/// The user, and the group unless the directory decides on it, that something new at `path` is given to; `None`: root,
/// who made it.
fn new_owner(owner: &Identity, path: &Path) -> Option<(Uid, Option<Gid>)> {
    if (owner.uid, owner.gid) == (0, 0) {
        return None;
    }
    let inherits = path.parent().and_then(|dir| fs::metadata(dir).ok());
    let inherits = inherits.is_some_and(|dir| dir.mode() & SET_GROUP_ID != 0);
    Some((Uid::from_raw(owner.uid), (!inherits).then(|| Gid::from_raw(owner.gid))))
}

/// A file system may have no owners, or let nobody give files away: then there is nothing to set.
fn settled(given: Option<rustix::io::Result<()>>) -> io::Result<()> {
    match given {
        None | Some(Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)) => Ok(()),
        Some(Err(error)) => Err(error.into()),
    }
}
