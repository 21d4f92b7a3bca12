//! The files that a guest's kernel knows by number, and those that it has open. Bounded: a guest that never forgets
//! gets an error in the end, and costs no more than that.
//!
//! A node is a file on the host, told by its device, number and kind. It is reached by a descriptor that opens nothing
//! (`O_PATH`). Only the last ones used are kept: any other is opened anew by the name under which the file was last
//! seen, and must be the same file.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, Timespec};
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::protocol::ROOT;

/// Nodes of one volume: some 30 MB of memory when all are there. A guest's kernel of 256 MiB knows fewer.
pub(super) const MAX_NODES: usize = 128 * 1024;
/// Descriptors that one volume keeps for its nodes, beside those of open files.
const MAX_KEPT: usize = 256;
/// Files and directories that one guest may have open in one volume.
pub(super) const MAX_HANDLES: usize = 1024;
/// Age from which a change cannot be mistaken for another.
const SETTLED_SECONDS: i64 = 1;
/// Directories above a file: no path that the kernel takes has more.
const MAX_DEPTH: usize = 2048;
/// Length of a path that the kernel takes, without its end.
const MAX_PATH_BYTES: usize = 4095;

/// Which file a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dev: u64,
    ino: u64,
    kind: u32,
}

impl From<&Stat> for Key {
    fn from(stat: &Stat) -> Self {
        Self { dev: stat.st_dev, ino: stat.st_ino, kind: FileType::from_raw_mode(stat.st_mode).as_raw_mode() }
    }
}

/// What tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    modified: (i64, i64),
    changed: (i64, i64),
    bytes: i64,
}

impl Content {
    /// `None` if it changed so lately, or seems to be from the future, that it may change again and look the same: file
    /// systems count time in steps.
    pub(super) fn of(stat: &Stat, now: Timespec) -> Option<Self> {
        let nanoseconds = |value| i64::try_from(value).unwrap_or_default();
        let content = Self {
            modified: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
            bytes: stat.st_size,
        };
        (stat.st_ctime < now.tv_sec - SETTLED_SECONDS).then_some(content)
    }
}

#[derive(Debug)]
struct Node {
    key: Key,
    /// The directory in which it was last seen, and as what. The root has none.
    place: Option<(u64, CString)>,
    lookups: u64,
    fd: Option<Kept>,
    /// What its content was when it was last opened, as far as its time and size tell.
    content: Option<Content>,
    /// Whether it was used since the last time that room was made.
    used: bool,
}

/// A descriptor with its place among those of all volumes; the root's needs none.
#[derive(Debug)]
struct Kept {
    fd: Arc<OwnedFd>,
    _place: Option<OwnedSemaphorePermit>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Nodes {
    by_id: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    last_id: u64,
    /// Those with a descriptor, but the root.
    kept: VecDeque<u64>,
    most: usize,
    budget: Arc<Semaphore>,
}

/// How a node can be reached.
#[derive(Debug)]
pub(super) enum Reach {
    Open(Arc<OwnedFd>),
    /// By this path from the root; what is there must be this file.
    Path(CString, Key),
}

impl Nodes {
    pub(super) fn new(root: Arc<OwnedFd>, key: Key, most: usize, budget: Arc<Semaphore>) -> Self {
        let root = Kept { fd: root, _place: None };
        let node = Node { key, place: None, lookups: 1, fd: Some(root), content: None, used: true };
        let (by_id, by_key) = (HashMap::from([(ROOT, node)]), HashMap::from([(key, ROOT)]));
        Self { by_id, by_key, last_id: ROOT, kept: VecDeque::new(), most, budget }
    }

    /// Counts one more use by the guest's kernel of the file `key`, seen at `place`.
    pub(super) fn remember(&mut self, key: Key, place: (u64, &CStr), fd: Arc<OwnedFd>) -> Result<u64, Errno> {
        let place = Some((place.0, place.1.to_owned()));
        if let Some(id) = self.by_key.get(&key).copied() {
            if let Some(node) = self.by_id.get_mut(&id).filter(|_| id != ROOT) {
                node.lookups = node.lookups.saturating_add(1);
                node.place = place;
            }
            self.keep(id, fd);
            return Ok(id);
        }
        if self.by_id.len() >= self.most {
            return Err(Errno::NFILE);
        }
        // Numbers are never used again: what a guest still holds of an old one reaches nothing else.
        self.last_id += 1;
        let id = self.last_id;
        self.by_id.insert(id, Node { key, place, lookups: 1, fd: None, content: None, used: false });
        self.by_key.insert(key, id);
        self.keep(id, fd);
        Ok(id)
    }

    /// Notes that `id` is opened with this content. Whether it is the same as the last time, so that what the guest's
    /// kernel has kept of it is good.
    pub(super) fn same_content(&mut self, id: u64, content: Option<Content>) -> bool {
        let Some(node) = self.by_id.get_mut(&id) else { return false };
        let before = std::mem::replace(&mut node.content, content);
        before.is_some() && before == node.content
    }

    /// Takes back `lookups` uses.
    pub(super) fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.by_id.get_mut(&id).filter(|_| id != ROOT) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            self.by_key.remove(&node.key);
            self.by_id.remove(&id);
        }
    }

    /// How `id` can be reached; `ESTALE` if it cannot.
    pub(super) fn reach(&mut self, id: u64) -> Result<Reach, Errno> {
        let node = self.by_id.get_mut(&id).ok_or(Errno::STALE)?;
        node.used = true;
        if let Some(kept) = &node.fd {
            return Ok(Reach::Open(kept.fd.clone()));
        }
        let key = node.key;
        Ok(Reach::Path(self.path(id)?, key))
    }

    /// Keeps a descriptor of `id` for a while, if there is a place for it.
    pub(super) fn keep(&mut self, id: u64, fd: Arc<OwnedFd>) {
        let Some(node) = self.by_id.get_mut(&id).filter(|node| node.fd.is_none()) else { return };
        let Ok(place) = self.budget.clone().try_acquire_owned() else { return };
        node.fd = Some(Kept { fd, _place: Some(place) });
        self.kept.push_back(id);
        while self.kept.len() > MAX_KEPT {
            let Some(oldest) = self.kept.pop_front() else { return };
            match self.by_id.get_mut(&oldest) {
                // Used since: it gets another round.
                Some(node) if node.used => {
                    node.used = false;
                    self.kept.push_back(oldest);
                }
                Some(node) => node.fd = None,
                None => {}
            }
        }
    }

    /// Notes that the file `key` is now at `place`.
    pub(super) fn moved(&mut self, key: Key, place: (u64, &CStr)) {
        let id = self.by_key.get(&key).copied();
        if let Some(node) = id.filter(|id| *id != ROOT).and_then(|id| self.by_id.get_mut(&id)) {
            node.place = Some((place.0, place.1.to_owned()));
        }
    }

    fn path(&self, id: u64) -> Result<CString, Errno> {
        let mut parts = Vec::new();
        let mut at = id;
        // What the host moved can make a circle of what was last seen.
        while at != ROOT {
            let node = self.by_id.get(&at).ok_or(Errno::STALE)?;
            let (parent, name) = node.place.as_ref().ok_or(Errno::STALE)?;
            parts.push(name.as_bytes());
            if parts.len() > MAX_DEPTH {
                return Err(Errno::STALE);
            }
            at = *parent;
        }
        parts.reverse();
        let path = parts.join(&b'/');
        if path.len() > MAX_PATH_BYTES {
            return Err(Errno::STALE);
        }
        CString::new(path).map_err(|_| Errno::STALE)
    }
}

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) node: u64,
    pub(super) file: Arc<OwnedFd>,
    /// Held while a directory is read: that moves its position.
    pub(super) reading: std::sync::Mutex<()>,
    _place: OwnedSemaphorePermit,
}

/// What a guest has open.
#[derive(Debug)]
pub(super) struct Handles {
    by_id: HashMap<u64, Arc<Handle>>,
    last_id: u64,
    budget: Arc<Semaphore>,
}

impl Handles {
    pub(super) fn new(budget: Arc<Semaphore>) -> Self {
        Self { by_id: HashMap::new(), last_id: 0, budget }
    }

    /// Whether there is room for another.
    pub(super) fn check_room(&self) -> Result<(), Errno> {
        if self.by_id.len() < MAX_HANDLES { Ok(()) } else { Err(Errno::NFILE) }
    }

    pub(super) fn add(&mut self, node: u64, file: OwnedFd) -> Result<u64, Errno> {
        self.check_room()?;
        let place = self.budget.clone().try_acquire_owned().map_err(|_| Errno::NFILE)?;
        self.last_id += 1;
        let reading = std::sync::Mutex::default();
        let handle = Handle { node, file: Arc::new(file), reading, _place: place };
        self.by_id.insert(self.last_id, Arc::new(handle));
        Ok(self.last_id)
    }

    pub(super) fn get(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.by_id.get(&id).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn remove(&mut self, id: u64) -> Result<(), Errno> {
        self.by_id.remove(&id).map(drop).ok_or(Errno::BADF)
    }

    /// An open file of `node`, for when the file has no name any more.
    pub(super) fn of(&self, node: u64) -> Option<Arc<OwnedFd>> {
        self.by_id.values().find(|handle| handle.node == node).map(|handle| handle.file.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn budget(places: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(places))
    }

    fn key(ino: u64) -> Key {
        Key { dev: 1, ino, kind: 0o100_000 }
    }

    #[test]
    fn there_is_a_most_of_nodes_and_room_again_when_some_are_forgotten() {
        let mut nodes = Nodes::new(null(), key(1), 3, budget(9));
        let a = nodes.remember(key(2), (ROOT, c"a"), null()).unwrap();
        let b = nodes.remember(key(3), (ROOT, c"b"), null()).unwrap();
        assert_eq!(nodes.remember(key(4), (ROOT, c"c"), null()), Err(Errno::NFILE));
        assert_eq!(nodes.remember(key(2), (ROOT, c"a"), null()), Ok(a), "a known one needs no room");
        nodes.forget(a, 1);
        assert!(nodes.reach(a).is_ok(), "it was looked up twice");
        nodes.forget(a, 1);
        assert_eq!(nodes.reach(a).unwrap_err(), Errno::STALE);
        let again = nodes.remember(key(2), (ROOT, c"a"), null()).unwrap();
        assert!(again > b, "numbers are not used again");
        nodes.forget(ROOT, u64::MAX);
        assert!(nodes.reach(ROOT).is_ok());
    }

    #[test]
    fn only_the_last_ones_used_stay_open() {
        let mut nodes = Nodes::new(null(), key(1), MAX_NODES, budget(9999));
        let dir = nodes.remember(key(2), (ROOT, c"dir"), null()).unwrap();
        let first = nodes.remember(key(3), (dir, c"file"), null()).unwrap();
        for ino in 10..10 + MAX_KEPT as u64 * 2 {
            nodes.remember(key(ino), (ROOT, c"x"), null()).unwrap();
        }
        assert_eq!(nodes.by_id.values().filter(|node| node.fd.is_some()).count(), MAX_KEPT + 1);
        let Reach::Path(path, of) = nodes.reach(first).unwrap() else { panic!("it is open still") };
        assert_eq!((path.as_c_str(), of), (c"dir/file", key(3)));
        nodes.moved(key(2), (first, c"circle"));
        assert_eq!(nodes.reach(first).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn there_is_a_most_of_open_files() {
        let mut handles = Handles::new(budget(9999));
        let open =
            |handles: &mut Handles| handles.add(ROOT, std::fs::File::open("/dev/null").unwrap().into());
        for _ in 0..MAX_HANDLES {
            open(&mut handles).unwrap();
        }
        assert_eq!(open(&mut handles), Err(Errno::NFILE));
        handles.remove(1).unwrap();
        assert_eq!(handles.remove(1), Err(Errno::BADF));
        open(&mut handles).unwrap();
    }

    #[test]
    fn all_volumes_together_have_a_most_of_descriptors() {
        let budget = budget(2);
        let mut nodes = Nodes::new(null(), key(1), MAX_NODES, budget.clone());
        for ino in 2..9 {
            nodes.remember(key(ino), (ROOT, c"x"), null()).unwrap();
        }
        assert_eq!(nodes.by_id.values().filter(|node| node.fd.is_some()).count(), 3);
        let mut handles = Handles::new(budget);
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        assert_eq!(handles.add(ROOT, file()), Err(Errno::NFILE));
        nodes.forget(2, 1);
        handles.add(ROOT, file()).unwrap();
    }
}
