//! Files made of a tar stream, below a directory.
//!
//! Every name is walked from the destination part by part, by descriptors: with [`Links::Refuse`] no part of it may be
//! a symbolic link, so that nothing outside the destination is read or written whatever the stream says. With
//! [`Links::Follow`] a link may be part of it that was there before, never one that the archive made. A file is
//! written beside its place and then renamed: it appears whole or not at all, and nothing that is there is written
//! through.

mod links;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet, btree_map};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use tar::EntryType;

use super::entries::{Entries, Entry, ReadError};
use super::{CONTENT, Skipped, special};
use crate::format::{self, MAX_ID};

/// Entries of one archive, and directories that their names make without an entry of their own.
const MAX_ENTRIES: u64 = 10_000_000;
/// Memory for the directories of one archive, which are kept until all is in them.
const MAX_DIRECTORIES_BYTES: usize = 256 << 20;
/// Memory for each directory in the map, in addition to its name; an estimate.
const DIRECTORY_BYTES: usize = 2 * size_of::<(PathBuf, About)>();
/// Bytes that are copied at once.
const COPY_BYTES: usize = 128 * 1024;

/// Owner of the files that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The user of this process.
    Process,
    /// These numbers.
    Ids(u32, u32),
    /// Whom the archive names, by number.
    Archive,
}

/// Whether a name may lead through a symbolic link that is below the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// No: for archives that nobody trusts.
    Refuse,
    /// Yes, if the archive did not make the link: for archives of whoever owns the destination's file system.
    Follow,
}

/// Where files go.
#[derive(Debug, Clone)]
pub struct Destination {
    /// A directory.
    pub path: PathBuf,
    /// The only name that entries may have or be below; `None`: any.
    pub name: Option<PathBuf>,
    /// See [`Owner`].
    pub owner: Owner,
    /// See [`Links`].
    pub links: Links,
    /// Permission bits that files may get.
    pub mode_mask: u32,
}

/// Why unpacking stopped.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is not an archive.
    #[error(transparent)]
    Archive(#[from] ReadError),
    /// An entry has a name that no file below the destination has.
    #[error("the archive has the name `{}`, which is not below its destination", .0.escape_debug())]
    Name(String),
    /// A hard link has a target that it cannot lead to.
    #[error("the hard link `{}` leads to `{}`, which {reason}", .path.escape_debug(), .target.escape_debug())]
    Target {
        /// Name of the link.
        path: String,
        /// Name that the link leads to.
        target: String,
        /// The reason, as a sentence's end: `does not exist`.
        reason: &'static str,
    },
    /// A name leads through a symbolic link that the archive may not write through.
    #[error("`{}` is below a symbolic link that the archive made: nothing is written through it", .0.escape_debug())]
    Through(String),
    /// Something of another kind is in the way.
    #[error("cannot replace {there} `{}` by {by}", .path.display())]
    Kind {
        /// Where.
        path: PathBuf,
        /// Kind of the existing file.
        there: &'static str,
        /// Kind of the entry in the archive.
        by: &'static str,
    },
    /// There are too many entries.
    #[error("the archive has more than {0} entries and directories")]
    TooMany(u64),
    /// The names of its directories take too much memory.
    #[error("the directories of the archive take more than {0} bytes of memory")]
    TooManyDirectories(usize),
    /// The owner of an entry is not the id of a user or group.
    #[error("`{}` has the owner {uid}:{gid}; ids are 0 to {MAX_ID}", .path.escape_debug())]
    Owner {
        /// Name of the entry.
        path: String,
        /// Number of the user.
        uid: u64,
        /// Number of the group.
        gid: u64,
    },
    /// The system refused something.
    #[error("could not write `{}`", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// Unpacks `stream`. What is made before a failure stays. Returns the number of entries; names what is left out.
pub fn unpack(
    stream: impl Read,
    destination: &Destination,
    skipped: &mut dyn FnMut(Skipped),
) -> Result<u64, UnpackError> {
    unpack_within(&Bounds::default(), stream, destination, skipped)
}

/// Limits on the cost of an archive.
#[derive(Debug)]
struct Bounds {
    max_entries: u64,
    max_directories_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_entries: MAX_ENTRIES, max_directories_bytes: MAX_DIRECTORIES_BYTES }
    }
}

fn unpack_within(
    bounds: &Bounds,
    stream: impl Read,
    destination: &Destination,
    skipped: &mut dyn FnMut(Skipped),
) -> Result<u64, UnpackError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&destination.path, flags, Mode::empty());
    let root = root.map_err(|error| UnpackError::Write(destination.path.clone(), error.into()))?;
    let unpacker = Unpacker {
        bounds,
        destination,
        root,
        made: HashSet::new(),
        made_links: HashSet::new(),
        hasher: RandomState::new(),
        directories: BTreeMap::new(),
        directories_bytes: 0,
        count: 0,
        serial: 0,
    };
    unpacker.run(Entries::new(stream), skipped)
}

struct Unpacker<'a> {
    bounds: &'a Bounds,
    destination: &'a Destination,
    root: OwnedFd,
    /// Hashes of the names of files, and of directories without an entry, that were made: only to these may hard links lead.
    made: HashSet<u64>,
    /// Hashes of the devices and inodes of symbolic links that were made: no name may lead through one, by whatever way.
    made_links: HashSet<u64>,
    hasher: RandomState,
    /// Attributes that directories get when all is in them, each directory once.
    directories: BTreeMap<PathBuf, About>,
    directories_bytes: usize,
    /// Entries, and directories that were made on the way to them.
    count: u64,
    serial: u64,
}

/// Attributes of a file in the archive.
#[derive(Debug, Clone, Copy)]
struct About {
    mode: u32,
    /// The owner of a new file; `None`: the user of this process.
    owner: Option<(Uid, Gid)>,
    /// Seconds since 1970, and nanoseconds after them.
    mtime: (i64, u32),
    /// Whether the file was made now.
    is_new: bool,
}

/// The place of an entry: a directory that is open, and a name in it.
struct Place {
    parent: OwnedFd,
    name: OsString,
    shown: PathBuf,
}

impl Unpacker<'_> {
    fn run<R: Read>(
        mut self,
        mut entries: Entries<R>,
        skipped: &mut dyn FnMut(Skipped),
    ) -> Result<u64, UnpackError> {
        let mut entries_read = 0;
        while let Some(entry) = entries.next()? {
            entries_read += 1;
            self.count()?;
            let parts = self.parts(&entry.path)?;
            let Some(path) = parts else {
                // The destination itself, which stays as it is.
                continue;
            };
            if let Some(reason) = left_out(entry.kind) {
                let path = path.to_string_lossy().into_owned();
                skipped(Skipped { path, reason: reason.to_owned() });
                continue;
            }
            self.make(&path, &entry, &mut entries)?;
        }
        self.finish()?;
        Ok(entries_read)
    }

    /// Counts an entry or a directory.
    fn count(&mut self) -> Result<(), UnpackError> {
        let max = self.bounds.max_entries;
        self.count += 1;
        if self.count > max { Err(UnpackError::TooMany(max)) } else { Ok(()) }
    }

    /// `path` without `.` and empty parts; `None` for the destination itself.
    fn parts(&self, path: &Path) -> Result<Option<PathBuf>, UnpackError> {
        let wrong = || UnpackError::Name(path.to_string_lossy().into_owned());
        let mut clean = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(part) => clean.push(part),
                Component::CurDir => {}
                // As all implementations of tar do, for archives that were made with absolute names.
                Component::RootDir if self.destination.links == Links::Follow => {}
                _ => return Err(wrong()),
            }
        }
        let is_wanted = match &self.destination.name {
            Some(name) if name == Path::new(CONTENT) => true,
            Some(name) => clean.starts_with(name),
            None => true,
        };
        match is_wanted && !path.as_os_str().is_empty() {
            true => Ok((!clean.as_os_str().is_empty()).then_some(clean)),
            false => Err(wrong()),
        }
    }

    /// Opens the directory of `path`, and makes what is missing of it.
    fn place(&mut self, path: &Path) -> Result<Place, UnpackError> {
        let made = self.walk(path, true)?;
        made.ok_or_else(|| UnpackError::Write(self.destination.path.join(path), Errno::NOENT.into()))
    }

    /// Opens the directory of `path`. What is missing of it is made with `make`; else there is `None`.
    fn walk(&mut self, path: &Path, make: bool) -> Result<Option<Place>, UnpackError> {
        let shown = self.destination.path.join(path);
        let failed = |error: Errno| UnpackError::Write(shown.clone(), error.into());
        let mut parent = self.root.try_clone().map_err(|error| UnpackError::Write(shown.clone(), error))?;
        let mut above = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::components) {
            let part = part.as_os_str();
            above.push(part);
            parent = match self.enter(&parent, part) {
                Err(Errno::NOENT) if !make => return Ok(None),
                Err(Errno::NOENT) => {
                    self.count()?;
                    rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    self.made.insert(self.hasher.hash_one(&above));
                    chown(&parent, part, self.owner_of_parents()).map_err(failed)?;
                    self.enter(&parent, part).map_err(failed)?
                }
                Err(Errno::LOOP) => return Err(UnpackError::Through(path.to_string_lossy().into_owned())),
                Err(Errno::NOTDIR) => {
                    return Err(UnpackError::Kind { path: shown, there: "what is above", by: "a directory" });
                }
                entered => entered.map_err(failed)?,
            };
        }
        let name = path.file_name().unwrap_or_default().to_owned();
        Ok(Some(Place { parent, name, shown }))
    }

    fn enter(&self, parent: &OwnedFd, part: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.follow(parent, part, &mut links::MAX_LINKS.clone())
    }

    fn make<R: Read>(
        &mut self,
        path: &Path,
        entry: &Entry,
        content: &mut Entries<R>,
    ) -> Result<(), UnpackError> {
        let owner = self.owner(entry)?;
        let place = self.place(path)?;
        let about = About { mode: entry.mode, owner, mtime: entry.mtime, is_new: true };
        let failed = |error: io::Error| UnpackError::Write(place.shown.clone(), error);
        match entry.kind {
            EntryType::Directory => return self.directory(path, &place, about),
            EntryType::Symlink => {
                self.clear(&place, "a link")?;
                let target = entry.link.clone().unwrap_or_default();
                self.symlink(&target, &place, about).map_err(|error| failed(error.into()))?;
            }
            EntryType::Link => {
                let target = entry.link.clone().unwrap_or_default();
                self.hard_link(path, &target, &place)?;
            }
            _ => {
                self.check_replaceable(&place, "a file")?;
                self.file(&place, entry, about, content)?;
            }
        }
        self.made.insert(self.hasher.hash_one(path));
        Ok(())
    }

    fn directory(&mut self, path: &Path, place: &Place, about: About) -> Result<(), UnpackError> {
        let failed = |error: Errno| UnpackError::Write(place.shown.clone(), error.into());
        let is_new = match self.kind(place).map_err(failed)? {
            None => {
                rustix::fs::mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o700))
                    .map_err(failed)?;
                true
            }
            // It may have been made on the way to what is in it.
            Some(FileType::Directory) => self.made.contains(&self.hasher.hash_one(path)),
            // A link to a directory stays what it is.
            Some(FileType::Symlink)
                if self.destination.links == Links::Follow
                    && self.enter(&place.parent, &place.name).is_ok() =>
            {
                return Ok(());
            }
            Some(_) => {
                let path = place.shown.clone();
                return Err(UnpackError::Kind { path, there: "the file", by: "a directory" });
            }
        };
        let added = path.as_os_str().len() + DIRECTORY_BYTES;
        match self.directories.entry(path.to_owned()) {
            // The last entry counts, and a directory that was made now stays new.
            btree_map::Entry::Occupied(mut known) => {
                let is_new = is_new || known.get().is_new;
                known.insert(About { is_new, ..about });
            }
            btree_map::Entry::Vacant(unknown) => {
                self.directories_bytes += added;
                let max = self.bounds.max_directories_bytes;
                if self.directories_bytes > max {
                    return Err(UnpackError::TooManyDirectories(max));
                }
                unknown.insert(About { is_new, ..about });
            }
        }
        Ok(())
    }

    /// Kind of the existing file.
    fn kind(&self, place: &Place) -> rustix::io::Result<Option<FileType>> {
        match rustix::fs::statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => Ok(Some(FileType::from_raw_mode(about.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Refuses to replace what is neither a file nor a link: a directory has content, and a device or a pipe is used by
    /// others under its name. Returns whether anything is there.
    fn check_replaceable(&self, place: &Place, by: &'static str) -> Result<bool, UnpackError> {
        let kind = self.kind(place).map_err(|error| UnpackError::Write(place.shown.clone(), error.into()))?;
        let there = match kind {
            None => return Ok(false),
            Some(FileType::RegularFile | FileType::Symlink) => return Ok(true),
            Some(FileType::Directory) => "the directory",
            Some(FileType::Fifo) => "the named pipe",
            Some(FileType::Socket) => "the socket",
            Some(_) => "the device",
        };
        Err(UnpackError::Kind { path: place.shown.clone(), there, by })
    }

    /// Removes a file or a link that is there.
    fn clear(&self, place: &Place, by: &'static str) -> Result<(), UnpackError> {
        if !self.check_replaceable(place, by)? {
            return Ok(());
        }
        rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::empty())
            .map_err(|error| UnpackError::Write(place.shown.clone(), error.into()))
    }

    fn file<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry,
        about: About,
        content: &mut Entries<R>,
    ) -> Result<(), UnpackError> {
        self.serial += 1;
        let young = OsString::from(format!(".bouvet-copy-{}-{}", std::process::id(), self.serial));
        let failed = |error: io::Error| UnpackError::Write(place.shown.clone(), error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.parent, &young, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(|error| failed(error.into()))?);
        let filled = fill(&mut file, entry, content).map_err(failed).and_then(|()| {
            self.dress(&file, about).map_err(failed)?;
            rustix::fs::renameat(&place.parent, &young, &place.parent, &place.name)
                .map_err(|error| failed(error.into()))
        });
        if filled.is_err() {
            // A temporary file that stays has no name that the caller knows.
            rustix::fs::unlinkat(&place.parent, &young, AtFlags::empty()).ok();
        }
        filled
    }

    /// Gives an open file its owner, its permissions and its time, in this order: the first takes bits of the second.
    /// By its descriptor: another file may have its name by now.
    fn dress(&self, file: impl AsFd, about: About) -> io::Result<()> {
        let file = file.as_fd();
        if let Some((uid, gid)) = about.owner.filter(|_| about.is_new) {
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(about.mode & self.destination.mode_mask))?;
        Ok(rustix::fs::futimens(file, &times(about))?)
    }

    /// The owner of an entry's file. Numbers that are not ids are refused only where they would be used: the last of 32
    /// bits would leave the file to the user of this process without a word.
    fn owner(&self, entry: &Entry) -> Result<Option<(Uid, Gid)>, UnpackError> {
        if self.destination.owner != Owner::Archive {
            return Ok(self.owner_of_parents());
        }
        let Entry { path, uid, gid, .. } = entry;
        match (format::checked_id(*uid), format::checked_id(*gid)) {
            (Some(uid), Some(gid)) => Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid)))),
            _ => {
                let path = path.to_string_lossy().into_owned();
                Err(UnpackError::Owner { path, uid: *uid, gid: *gid })
            }
        }
    }

    /// The owner of directories that no entry describes.
    fn owner_of_parents(&self) -> Option<(Uid, Gid)> {
        match self.destination.owner {
            Owner::Process | Owner::Archive => None,
            Owner::Ids(uid, gid) => Some((Uid::from_raw(uid), Gid::from_raw(gid))),
        }
    }

    /// Gives directories what they must not have while files are made in them.
    fn finish(mut self) -> Result<(), UnpackError> {
        let directories = std::mem::take(&mut self.directories);
        // What is in a directory comes after it.
        for (path, about) in directories.iter().rev() {
            let place = self.place(path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&place.parent, &place.name, flags, Mode::empty());
            let dressed = opened.map_err(io::Error::from).and_then(|file| self.dress(file, *about));
            dressed.map_err(|error| UnpackError::Write(place.shown.clone(), error))?;
        }
        Ok(())
    }
}

fn chown(parent: impl AsFd, name: &OsStr, owner: Option<(Uid, Gid)>) -> rustix::io::Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(about: About) -> Timestamps {
    let (secs, nanos) = about.mtime;
    let last_modification = Timespec { tv_sec: secs, tv_nsec: nanos.into() };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access, last_modification }
}

/// Why entries of this kind are not unpacked.
fn left_out(kind: EntryType) -> Option<&'static str> {
    match kind {
        EntryType::Fifo => Some(special(FileType::Fifo)),
        EntryType::Char | EntryType::Block => Some(special(FileType::BlockDevice)),
        EntryType::Directory | EntryType::Symlink | EntryType::Link | EntryType::GNUSparse => None,
        kind if kind.is_file() || kind.is_contiguous() => None,
        _ => Some("is of a kind that this archive format does not define"),
    }
}

fn fill<R: Read>(file: &mut File, entry: &Entry, content: &mut Entries<R>) -> io::Result<()> {
    let whole = [(0, entry.size)];
    let parts = entry.parts.as_deref().unwrap_or(&whole);
    for (offset, length) in parts {
        file.seek(SeekFrom::Start(*offset))?;
        copy(file, content, *length)?;
    }
    if entry.parts.is_some() {
        file.set_len(entry.size)?;
    }
    file.flush()
}

fn copy(file: &mut File, content: &mut impl Read, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(length).unwrap_or(COPY_BYTES))];
    let mut left = length;
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = content.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all(&buffer[..read])?;
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
