//! Whose files are in a volume: what a guest sees of their owners, and what becomes of those that it makes.
//!
//! **Run by root**, ids pass through, as with Docker: a file that user 1000 makes in a sandbox belongs to user 1000 on
//! the host, and root in a sandbox may give files to anybody. **Run by another user**, all is done as that user: its
//! files belong to root in the sandbox, all others' to `nobody`, as in a container without root; there is nobody to give
//! a file to.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Stat, Uid};
use rustix::io::Errno;

/// The user and group that stand for all that have no other name (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;
/// For files that are made in it: they get its group.
const SET_GROUP_ID: u32 = 0o2000;

/// Who asks, in the guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    AsTheyAre,
    /// This user and group are the guest's root.
    Root(u32, u32),
}

impl Owners {
    pub(super) fn of_this_process() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() { Self::AsTheyAre } else { Self::Root(uid.as_raw(), gid.as_raw()) }
    }

    /// The owner and group of a file, as the guest sees them.
    pub(super) fn show(self, stat: &Stat) -> (u32, u32) {
        let show = |id, own| if id == own { 0 } else { NOBODY };
        match self {
            Self::AsTheyAre => (stat.st_uid, stat.st_gid),
            Self::Root(uid, gid) => (show(stat.st_uid, uid), show(stat.st_gid, gid)),
        }
    }

    /// The user that the guest calls `id`.
    pub(super) fn uid(self, id: Option<u32>) -> Result<Option<Uid>, Errno> {
        let Some(id) = id else { return Ok(None) };
        self.known(id, |own, _| own).map(|id| Some(Uid::from_raw(id)))
    }

    /// The group that the guest calls `id`.
    pub(super) fn gid(self, id: Option<u32>) -> Result<Option<Gid>, Errno> {
        let Some(id) = id else { return Ok(None) };
        self.known(id, |_, own| own).map(|id| Some(Gid::from_raw(id)))
    }

    fn known(self, id: u32, own: fn(u32, u32) -> u32) -> Result<u32, Errno> {
        match self {
            // It says that nothing is to change, which is not what was asked for.
            Self::AsTheyAre if id == u32::MAX => Err(Errno::INVAL),
            Self::AsTheyAre => Ok(id),
            Self::Root(uid, gid) if id == 0 => Ok(own(uid, gid)),
            Self::Root(..) => Err(Errno::PERM),
        }
    }

    /// Gives a file that was just made in the directory `parent` to who asked for it.
    pub(super) fn give(self, file: &OwnedFd, asker: Asker, parent: &Stat) -> Result<(), Errno> {
        // Whoever it is there, it is this user here.
        let Self::AsTheyAre = self else { return Ok(()) };
        let gid = if parent.st_mode & SET_GROUP_ID == 0 { self.gid(Some(asker.gid))? } else { None };
        rustix::fs::chownat(file, c"", self.uid(Some(asker.uid))?, gid, AtFlags::EMPTY_PATH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_root_there_is_one_owner_and_nobody() {
        let mut stat = rustix::fs::stat("/dev/null").unwrap();
        let owners = Owners::Root(1000, 1001);
        (stat.st_uid, stat.st_gid) = (1000, 1001);
        assert_eq!(owners.show(&stat), (0, 0));
        (stat.st_uid, stat.st_gid) = (0, 0);
        assert_eq!(owners.show(&stat), (NOBODY, NOBODY));
        assert_eq!(owners.uid(Some(0)), Ok(Some(Uid::from_raw(1000))));
        assert_eq!(owners.gid(Some(0)), Ok(Some(Gid::from_raw(1001))));
        assert_eq!(owners.uid(Some(7)), Err(Errno::PERM));
        assert_eq!(owners.uid(None), Ok(None));
        assert_eq!(Owners::AsTheyAre.uid(Some(u32::MAX)), Err(Errno::INVAL));
        (stat.st_uid, stat.st_gid) = (5, 6);
        assert_eq!(Owners::AsTheyAre.show(&stat), (5, 6));
    }
}
