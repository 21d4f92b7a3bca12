//! The files of a volume, by what the host's kernel offers. Nothing here takes a path from a guest: only single names,
//! each looked up in a directory that is open, and no symbolic link is ever followed.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatVfs, Timespec, Timestamps,
};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::nodes::{Content, Handle, Handles, Key, MAX_NODES, Nodes, Reach};
use super::owners::{Asker, Owners};
use super::protocol::{SetAttr, Time};

const ACCESS: u32 = 0o3;
const EXCLUSIVE: u32 = 0o200;
const TRUNCATE: u32 = 0o1000;
/// What is taken over of how a guest opens a file. To append is for each write to say; the others do not matter here,
/// or must not come from a guest.
const OPEN_FLAGS: OFlags = OFlags::TRUNC.union(OFlags::DSYNC).union(OFlags::SYNC);

/// The files below one directory of the host, or a single one.
#[derive(Debug)]
pub(super) struct Tree {
    root: Arc<OwnedFd>,
    /// `/proc/self/fd`: by it a descriptor that opens nothing becomes one that does, for the very same file.
    descriptors: OwnedFd,
    read_only: bool,
    pub(super) owners: Owners,
    /// Where files end: a process that writes beyond its own limit would be killed.
    pub(super) most_bytes: u64,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

/// A file as a guest's kernel gets to know it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) node: u64,
    pub(super) stat: Stat,
}

/// A file or directory that a guest has opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    pub(super) handle: u64,
    /// Whether its content is what it was when it was last opened.
    pub(super) is_same: bool,
}

impl Tree {
    /// `budget` has a place for each descriptor that it may hold.
    pub(super) fn new(
        root: Arc<OwnedFd>,
        read_only: bool,
        budget: Arc<Semaphore>,
    ) -> rustix::io::Result<Self> {
        let key = Key::from(&rustix::fs::fstat(&root)?);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        let most_bytes = limit.unwrap_or(u64::MAX).min(i64::MAX.unsigned_abs());
        let nodes = Mutex::new(Nodes::new(root.clone(), key, MAX_NODES, budget.clone()));
        let (owners, handles) = (Owners::of_this_process(), Mutex::new(Handles::new(budget)));
        Ok(Self { root, descriptors, read_only, owners, most_bytes, nodes, handles })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails in a volume that may only be read.
    pub(super) fn check_writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// A descriptor of a node.
    fn node(&self, id: u64) -> Result<Arc<OwnedFd>, Errno> {
        let reached = self.nodes().reach(id);
        let (path, key) = match reached {
            Ok(Reach::Open(fd)) => return Ok(fd),
            Ok(Reach::Path(path, key)) => (path, key),
            Err(error) => return self.handles().of(id).ok_or(error),
        };
        let found = open_beneath(&self.root, &path).and_then(|fd| {
            if Key::from(&rustix::fs::fstat(&fd)?) == key { Ok(fd) } else { Err(Errno::STALE) }
        });
        match found {
            Ok(fd) => {
                let fd = Arc::new(fd);
                self.nodes().keep(id, fd.clone());
                Ok(fd)
            }
            // Another file is there now, or none.
            Err(Errno::STALE | Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                self.handles().of(id).ok_or(Errno::STALE)
            }
            Err(error) => Err(error),
        }
    }

    /// A node's file, opened by `flags`. It must be a regular file or a directory: to open anything else does more than
    /// to open it.
    fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        match kind(&rustix::fs::fstat(fd)?) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::PERM),
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(&self.descriptors, &*number(fd), flags, Mode::empty())
    }

    pub(super) fn lookup(&self, parent: u64, name: &CStr) -> Result<Entry, Errno> {
        let dir = self.node(parent)?;
        self.enter(parent, name, open_beneath(&dir, name)?)
    }

    fn enter(&self, parent: u64, name: &CStr, fd: OwnedFd) -> Result<Entry, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let node = self.nodes().remember(Key::from(&stat), (parent, name), Arc::new(fd))?;
        Ok(Entry { node, stat })
    }

    pub(super) fn forget(&self, node: u64, lookups: u64) {
        self.nodes().forget(node, lookups);
    }

    pub(super) fn stat(&self, node: u64, handle: Option<u64>) -> Result<Stat, Errno> {
        match handle {
            Some(handle) => rustix::fs::fstat(&self.handle(handle)?.file),
            None => rustix::fs::fstat(&*self.node(node)?),
        }
    }

    pub(super) fn set_attr(&self, node: u64, change: &SetAttr) -> Result<Stat, Errno> {
        self.check_writable()?;
        let fd = self.node(node)?;
        let stat = rustix::fs::fstat(&fd)?;
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (self.owners.uid(change.uid)?, self.owners.gid(change.gid)?);
            rustix::fs::chownat(&fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            let kind = kind(&stat);
            if !matches!(kind, FileType::RegularFile | FileType::Directory) {
                return Err(Errno::OPNOTSUPP);
            }
            rustix::fs::chmodat(&self.descriptors, &*number(&fd), allowed(kind, mode), AtFlags::empty())?;
        }
        if let Some(size) = change.size {
            self.truncate(&fd, change.handle, size)?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            let times = Timestamps {
                last_access: timespec(change.accessed.as_ref()),
                last_modification: timespec(change.modified.as_ref()),
            };
            rustix::fs::utimensat(&fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        rustix::fs::fstat(&fd)
    }

    fn truncate(&self, fd: &OwnedFd, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        if size > self.most_bytes {
            return Err(Errno::FBIG);
        }
        match handle {
            Some(handle) => rustix::fs::ftruncate(&self.handle(handle)?.file, size),
            None => rustix::fs::ftruncate(self.reopen(fd, OFlags::WRONLY)?, size),
        }
    }

    pub(super) fn read_link(&self, node: u64) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&*self.node(node)?, c"", Vec::new())?.into_bytes())
    }

    pub(super) fn make_link(
        &self,
        asker: Asker,
        parent: u64,
        name: &CStr,
        target: &CStr,
    ) -> Result<Entry, Errno> {
        self.check_writable()?;
        let dir = self.node(parent)?;
        rustix::fs::symlinkat(target, &dir, name)?;
        self.adopt(asker, (parent, &dir), name, AtFlags::empty())
    }

    pub(super) fn make_dir(&self, asker: Asker, parent: u64, name: &CStr, mode: u32) -> Result<Entry, Errno> {
        self.check_writable()?;
        let dir = self.node(parent)?;
        rustix::fs::mkdirat(&dir, name, allowed(FileType::Directory, mode))?;
        self.adopt(asker, (parent, &dir), name, AtFlags::REMOVEDIR)
    }

    /// Gives what was just made at `name` to who asked for it, or unmakes it.
    fn adopt(
        &self,
        asker: Asker,
        (parent, dir): (u64, &OwnedFd),
        name: &CStr,
        unmake: AtFlags,
    ) -> Result<Entry, Errno> {
        let adopted = open_beneath(dir, name).and_then(|fd| {
            self.owners.give(&fd, asker, &rustix::fs::fstat(dir)?)?;
            self.enter(parent, name, fd)
        });
        if adopted.is_err() {
            // It failed already, and for that reason this does.
            rustix::fs::unlinkat(dir, name, unmake).ok();
        }
        adopted
    }

    /// Makes a regular file, and no other kind: a pipe, a socket or a device on the host would be none of this sandbox.
    pub(super) fn make_file(
        &self,
        asker: Asker,
        parent: u64,
        name: &CStr,
        mode: u32,
    ) -> Result<Entry, Errno> {
        self.check_writable()?;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(Errno::PERM);
        }
        let dir = self.node(parent)?;
        create(&dir, name, OFlags::WRONLY, mode)?;
        self.adopt(asker, (parent, &dir), name, AtFlags::empty())
    }

    pub(super) fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
        self.check_writable()?;
        rustix::fs::unlinkat(&*self.node(parent)?, name, flags)
    }

    pub(super) fn rename(&self, from: (u64, &CStr), to: (u64, &CStr), flags: u32) -> Result<(), Errno> {
        self.check_writable()?;
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits_retain(flags);
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old, new) = (self.node(from.0)?, self.node(to.0)?);
        let key = |dir: &OwnedFd, name| {
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Key::from(&stat))
        };
        let moved = key(&old, from.1)?;
        let back = if flags.contains(RenameFlags::EXCHANGE) { Some(key(&new, to.1)?) } else { None };
        rustix::fs::renameat_with(&old, from.1, &new, to.1, flags)?;
        let mut nodes = self.nodes();
        nodes.moved(moved, to);
        if let Some(back) = back {
            nodes.moved(back, from);
        }
        Ok(())
    }

    pub(super) fn link(&self, node: u64, parent: u64, name: &CStr) -> Result<Entry, Errno> {
        self.check_writable()?;
        let fd = self.node(node)?;
        if kind(&rustix::fs::fstat(&fd)?) != FileType::RegularFile {
            return Err(Errno::PERM);
        }
        let dir = self.node(parent)?;
        // What is followed is the descriptor.
        rustix::fs::linkat(&self.descriptors, &*number(&fd), &dir, name, AtFlags::SYMLINK_FOLLOW)?;
        self.enter(parent, name, open_beneath(&dir, name)?)
    }

    /// Opens a regular file.
    pub(super) fn open(&self, node: u64, flags: u32) -> Result<Opened, Errno> {
        let host_flags = self.host_flags(flags)?;
        self.handles().check_room()?;
        let fd = self.node(node)?;
        match kind(&rustix::fs::fstat(&fd)?) {
            FileType::Directory => Err(Errno::ISDIR),
            _ => {
                let file = self.reopen(&fd, host_flags)?;
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                let content = Content::of(&rustix::fs::fstat(&file)?, now);
                let is_same = self.nodes().same_content(node, content);
                Ok(Opened { handle: self.handles().add(node, file)?, is_same })
            }
        }
    }

    pub(super) fn open_dir(&self, node: u64) -> Result<Opened, Errno> {
        self.handles().check_room()?;
        let dir = self.reopen(&*self.node(node)?, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Opened { handle: self.handles().add(node, dir)?, is_same: false })
    }

    fn host_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        if flags & ACCESS != 0 || flags & TRUNCATE != 0 {
            self.check_writable()?;
        }
        let access = match flags & ACCESS {
            0 => OFlags::RDONLY,
            1 => OFlags::WRONLY,
            2 => OFlags::RDWR,
            _ => return Err(Errno::INVAL),
        };
        Ok(access | (OFlags::from_bits_retain(flags) & OPEN_FLAGS))
    }

    /// Makes and opens a regular file; one that is there already is opened, unless `flags` say otherwise.
    pub(super) fn create(
        &self,
        asker: Asker,
        (parent, name): (u64, &CStr),
        flags: u32,
        mode: u32,
    ) -> Result<(Entry, Opened), Errno> {
        self.check_writable()?;
        let host_flags = self.host_flags(flags)?;
        self.handles().check_room()?;
        let dir = self.node(parent)?;
        let file = match create(&dir, name, host_flags, mode) {
            Err(Errno::EXIST) if flags & EXCLUSIVE == 0 => {
                let entry = self.lookup(parent, name)?;
                let opened = self.open(entry.node, flags);
                if opened.is_err() {
                    self.forget(entry.node, 1);
                }
                return Ok((entry, opened?));
            }
            created => created?,
        };
        let entered = self.owners.give(&file, asker, &rustix::fs::fstat(&dir)?).and_then(|()| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            // Of the file that was made, whatever is at its name now.
            let fd = rustix::fs::openat(&self.descriptors, &*number(&file), flags, Mode::empty())?;
            self.enter(parent, name, fd)
        });
        match entered {
            Ok(entry) => {
                let handle = self.handles().add(entry.node, file);
                if handle.is_err() {
                    self.forget(entry.node, 1);
                }
                Ok((entry, Opened { handle: handle?, is_same: false }))
            }
            Err(error) => {
                // It failed already, and for that reason this does.
                rustix::fs::unlinkat(&dir, name, AtFlags::empty()).ok();
                Err(error)
            }
        }
    }

    pub(super) fn handle(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.handles().get(id)
    }

    pub(super) fn close(&self, id: u64) -> Result<(), Errno> {
        self.handles().remove(id)
    }

    pub(super) fn stat_fs(&self) -> Result<StatVfs, Errno> {
        rustix::fs::fstatvfs(&self.root)
    }

    /// A descriptor of a node whose extended attributes can be used: reading is enough, their own rights count.
    pub(super) fn for_xattrs(&self, node: u64) -> Result<OwnedFd, Errno> {
        match self.reopen(&*self.node(node)?, OFlags::RDONLY) {
            // There can be none of those that are let through.
            Err(Errno::LOOP | Errno::PERM) => Err(Errno::OPNOTSUPP),
            opened => opened,
        }
    }
}

/// Opens what `path` leads to from `dir`, a symbolic link included, in such a way that nothing is done to it. The path
/// leads down alone, and through no symbolic link.
fn open_beneath(dir: impl AsFd, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)
}

fn create(dir: &OwnedFd, name: &CStr, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, name, flags, allowed(FileType::RegularFile, mode), resolve)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a guest may set of a file's mode. A set-user-id program that it made would be one for the host's users too.
fn allowed(kind: FileType, mode: u32) -> Mode {
    let most = if kind == FileType::Directory { 0o3777 } else { 0o1777 };
    Mode::from_raw_mode(mode & most)
}

fn timespec(time: Option<&Time>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(Time::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(Time::At(time)) => *time,
    }
}

/// A descriptor's name in `/proc/self/fd`.
fn number(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}
