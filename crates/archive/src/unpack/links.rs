//! Symbolic and hard links of an archive, and the symbolic links that its names lead through.

use std::ffi::OsStr;
use std::hash::BuildHasher as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{About, Links, Place, UnpackError, Unpacker, chown, times};

/// Symbolic links that one name may lead through, as in the kernel.
pub(super) const MAX_LINKS: usize = 40;

impl Unpacker<'_> {
    /// Opens a directory by its name, through at most `links_left` links where links are followed. Links are resolved
    /// here and not by the kernel: an older link may lead to one that the archive made.
    pub(super) fn follow(
        &self,
        parent: &OwnedFd,
        part: &OsStr,
        links_left: &mut usize,
    ) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, part, flags, Mode::empty());
        if self.destination.links == Links::Refuse || !matches!(opened, Err(Errno::NOTDIR)) {
            return opened;
        }
        let about = rustix::fs::statat(parent, part, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(about.st_mode) != FileType::Symlink {
            return Err(Errno::NOTDIR);
        }
        if *links_left == 0 || self.made_links.contains(&self.hasher.hash_one((about.st_dev, about.st_ino))) {
            return Err(Errno::LOOP);
        }
        *links_left -= 1;
        let target = rustix::fs::readlinkat(parent, part, Vec::new())?;
        let mut at = rustix::fs::openat(parent, ".", flags, Mode::empty())?;
        for step in Path::new(OsStr::from_bytes(target.to_bytes())).components() {
            at = match step {
                Component::RootDir => rustix::fs::open("/", flags, Mode::empty())?,
                Component::ParentDir => rustix::fs::openat(&at, "..", flags, Mode::empty())?,
                Component::Normal(name) => self.follow(&at, name, links_left)?,
                Component::CurDir | Component::Prefix(_) => at,
            };
        }
        Ok(at)
    }

    pub(super) fn symlink(&mut self, target: &Path, place: &Place, about: About) -> rustix::io::Result<()> {
        let (parent, name, flags) = (&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW);
        rustix::fs::symlinkat(target, parent, name)?;
        let made = rustix::fs::statat(parent, name, flags)?;
        self.made_links.insert(self.hasher.hash_one((made.st_dev, made.st_ino)));
        chown(parent, name, about.owner)?;
        rustix::fs::utimensat(parent, name, &times(about), flags)
    }

    /// Makes `path`, at `place`, one more name of the file `target`. Nothing is made or removed when that is not possible.
    pub(super) fn hard_link(&mut self, path: &Path, target: &Path, place: &Place) -> Result<(), UnpackError> {
        let refused = |reason| UnpackError::Target {
            path: path.to_string_lossy().into_owned(),
            target: target.to_string_lossy().into_owned(),
            reason,
        };
        let failed = |error: Errno| UnpackError::Write(place.shown.clone(), error.into());
        let named = self.parts(target)?.ok_or_else(|| refused("is the destination itself"))?;
        if named == path {
            return Err(refused("is the link itself"));
        }
        let is_made = self.made.contains(&self.hasher.hash_one(&named));
        if self.destination.links == Links::Refuse && !is_made {
            return Err(refused("is not in the archive"));
        }
        let missing = || refused("does not exist below the destination");
        let from = self.walk(&named, false)?.ok_or_else(missing)?;
        match self.kind(&from).map_err(failed)?.ok_or_else(missing)? {
            FileType::Directory => return Err(refused("is a directory")),
            FileType::RegularFile | FileType::Symlink => {}
            _ => return Err(refused("is neither a file nor a symbolic link")),
        }
        let identity = |place: &Place| {
            let about = rustix::fs::statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((about.st_dev, about.st_ino))
        };
        if identity(place).is_some_and(|there| Some(there) == identity(&from)) {
            return Ok(());
        }
        self.clear(place, "a link")?;
        rustix::fs::linkat(&from.parent, &from.name, &place.parent, &place.name, AtFlags::empty())
            .map_err(failed)
    }
}
