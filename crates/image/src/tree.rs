//! The file system of an image: its layers merged, in memory, without the contents of files.
//!
//! Nothing here touches the host's file systems, so a hostile archive has nothing to escape to. Each layer is read as a
//! tree of its own and then laid over the layers below. Symbolic links on the way to an entry are followed if they are
//! of the same layer; `..` at the root stays there.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::shortened;
use crate::layer::entries::{Allowance, Content, Entry, Meta};
use crate::limits::{MAX_LINKS_FOLLOWED, MAX_PATH_PARTS};

mod sheet;

use sheet::Sheet;

/// A node of a [`Tree`], by number.
pub(crate) type Id = usize;

/// The root's number.
pub(crate) const ROOT: Id = 0;

const WHITEOUT: &[u8] = b".wh.";
/// Names that AUFS, which invented whiteouts, keeps for itself.
const RESERVED: &[u8] = b".wh..wh.";

/// The merged layers.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Replaced nodes stay here, and no path leads to them. An [`Allowance`] limits entries and directories together.
    nodes: Vec<Node>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(BTreeMap<Box<[u8]>, Id>),
    File(Content),
    Symlink(Vec<u8>),
    Fifo,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// Why layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Something on the way to the entry is no directory.
    #[error("the entry `{0}` is below something that is no directory")]
    Below(String),
    /// The way to the entry goes over too many symbolic links.
    #[error("the way to the entry `{0}` goes over more than {MAX_LINKS_FOLLOWED} symbolic links")]
    Loop(String),
    /// The path to the entry is too deep.
    #[error("the path of the entry `{0}` has more than {MAX_PATH_PARTS} parts, with those of symbolic links")]
    TooDeep(String),
    /// Paths make more directories than an image may have.
    #[error("the layers have more entries and directories than the limit of {0}")]
    TooManyEntries(u64),
    /// A hard link to nothing, or to a directory.
    #[error("the hard link `{name}` is to `{target}`, which is no file of the image")]
    Link {
        /// The link.
        name: String,
        /// What it should be a link to.
        target: String,
    },
    /// A file is where a guest needs a directory.
    #[error(
        "`/{0}` of the image is not a directory: a sandbox mounts file systems and has its own files there"
    )]
    Place(&'static str),
    /// The root is something else than a directory.
    #[error("the root of the file system is no directory")]
    Root,
    /// A whiteout of nothing, or of its own directory; or an entry below a whiteout.
    #[error("the whiteout `{0}` names nothing that could be removed")]
    Whiteout(String),
    /// The files are too large together.
    #[error("the files of the image have more than the limit of {0} bytes")]
    TooLarge(u64),
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node { meta: plain_meta(0o755), kind: Kind::Directory(BTreeMap::new()) }] }
    }
}

fn plain_meta(mode: u16) -> Meta {
    Meta { mode, uid: 0, gid: 0, mtime_secs: 0, mtime_nanos: 0, xattrs: Vec::new() }
}

impl Tree {
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// Lays one more layer over the tree, whose whiteouts are about the layers below alone (image specification,
    /// "Whiteouts"). Directories that the entries' paths make are charged to `allowance`.
    pub(crate) fn apply(&mut self, entries: Vec<Entry>, allowance: &mut Allowance) -> Result<(), MergeError> {
        Sheet::new(entries, self, allowance)?.cover(self);
        Ok(())
    }

    /// Removes names from a directory: all, or some.
    fn hide(&mut self, directory: Id, all: bool, some: &BTreeSet<Box<[u8]>>) {
        let Kind::Directory(children) = &mut self.nodes[directory].kind else { return };
        if all {
            children.clear();
        }
        for name in some {
            children.remove(name);
        }
    }

    /// The target of a hard link to `path`, if it is not a directory.
    fn linkable(&self, path: &[u8]) -> Result<Option<Id>, MergeError> {
        let (parent, name) = split(path);
        let found = self.directory(parent)?.and_then(|parent| self.child(parent, name));
        Ok(found.filter(|id| !matches!(self.nodes[*id].kind, Kind::Directory(_))))
    }

    /// The directory at `path`, over symbolic links inside the tree.
    fn directory(&self, path: &[u8]) -> Result<Option<Id>, MergeError> {
        let behind = descend(path, ROOT, |here, part| self.step(here, part, path))?;
        Ok(behind.and_then(|behind| behind.last().copied()))
    }

    /// The same. Missing directories are made.
    fn make_directory(&mut self, path: &[u8]) -> Result<Option<Id>, MergeError> {
        let behind = descend(path, ROOT, |here, part| match self.step(here, part, path)? {
            // By way of a link; in a lower layer of the guest it would hide something.
            Step::Missing if part.starts_with(WHITEOUT) => Err(MergeError::Whiteout(shown(path))),
            Step::Missing => {
                let made = Node { meta: plain_meta(0o755), kind: Kind::Directory(BTreeMap::new()) };
                let made = self.add(made);
                self.put(here, part, made);
                Ok(Step::Directory(made))
            }
            step => Ok(step),
        })?;
        Ok(behind.and_then(|behind| behind.last().copied()))
    }

    fn step(&self, here: Id, part: &[u8], path: &[u8]) -> Result<Step, MergeError> {
        let Some(next) = self.child(here, part) else { return Ok(Step::Missing) };
        match &self.nodes[next].kind {
            Kind::Directory(_) => Ok(Step::Directory(next)),
            Kind::Symlink(target) => Ok(Step::Symlink(target.clone())),
            _ => Err(MergeError::Below(shown(path))),
        }
    }

    /// The contents of the file at `path`, over symbolic links inside the tree.
    pub(crate) fn file(&self, path: &[u8]) -> Option<&Content> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS_FOLLOWED {
            let (parent, name) = split(&path);
            let id = self.directory(parent).ok().flatten().and_then(|parent| self.child(parent, name))?;
            let Kind::Symlink(target) = &self.nodes[id].kind else {
                return match &self.nodes[id].kind {
                    Kind::File(content) => Some(content),
                    _ => None,
                };
            };
            path = match target.strip_prefix(b"/") {
                Some(absolute) => absolute.to_vec(),
                None => [parent, b"/", target].concat(),
            };
        }
        None
    }

    fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        match &self.nodes[parent].kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn put(&mut self, parent: Id, name: &[u8], id: Id) {
        if let Kind::Directory(children) = &mut self.nodes[parent].kind {
            children.insert(name.into(), id);
        }
    }

    /// Adds what a guest mounts on and writes to at its start, where it is missing. An image that has links or
    /// directories of its own there keeps them; one that has files there is refused: no guest would start.
    pub(crate) fn furnish(&mut self) -> Result<(), MergeError> {
        for (path, mode) in
            [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777), ("etc", 0o755)]
        {
            // A link may lead to what is missing: the guest makes it.
            if matches!(self.directory(path.as_bytes()), Err(MergeError::Below(_))) {
                return Err(MergeError::Place(path));
            }
            self.furnish_one(path.as_bytes(), mode, Kind::Directory(BTreeMap::new()))?;
        }
        // The guest's own directory, which it makes.
        if matches!(self.directory(b"run/bouvet"), Err(MergeError::Below(_))) {
            return Err(MergeError::Place("run/bouvet"));
        }
        for path in ["etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id"] {
            self.furnish_one(path.as_bytes(), 0o644, Kind::File(Content::default()))?;
        }
        Ok(())
    }

    fn furnish_one(&mut self, path: &[u8], mode: u16, kind: Kind) -> Result<(), MergeError> {
        let (parent, name) = split(path);
        let Some(parent) = self.make_directory(parent)? else { return Ok(()) };
        if self.child(parent, name).is_none() {
            let id = self.add(Node { meta: plain_meta(mode), kind });
            self.put(parent, name, id);
        }
        Ok(())
    }

    /// All nodes that can be reached, the root first and each once; and for each node by number how many names it
    /// has, counting `.` and `..`.
    pub(crate) fn walk(&self) -> (Vec<Id>, Vec<u32>) {
        let mut names = vec![0; self.nodes.len()];
        names[ROOT] = 1;
        let mut order = vec![ROOT];
        let mut next = 0;
        while let Some(&id) = order.get(next) {
            next += 1;
            let Kind::Directory(children) = &self.nodes[id].kind else { continue };
            names[id] += 1;
            for &child in children.values() {
                if names[child] == 0 {
                    order.push(child);
                }
                names[child] += 1;
                if matches!(self.nodes[child].kind, Kind::Directory(_)) {
                    names[id] += 1;
                }
            }
        }
        (order, names)
    }

    /// Refuses a tree whose files are larger together than `max_image_bytes`, holes counted.
    pub(crate) fn check_size(&self, max_image_bytes: u64) -> Result<(), MergeError> {
        let mut total: u64 = 0;
        for id in self.walk().0 {
            if let Kind::File(content) = &self.nodes[id].kind {
                total = total.saturating_add(content.size);
            }
        }
        if total > max_image_bytes { Err(MergeError::TooLarge(max_image_bytes)) } else { Ok(()) }
    }
}

/// Kinds of parts of a path.
enum Step {
    Directory(usize),
    /// With what it holds.
    Symlink(Vec<u8>),
    Missing,
}

/// Follows `path` from directory to directory, over symbolic links, as far as `look` finds its parts. Returns the
/// directories from `root` to the last; `None` if one is missing.
fn descend(
    path: &[u8],
    root: usize,
    mut look: impl FnMut(usize, &[u8]) -> Result<Step, MergeError>,
) -> Result<Option<Vec<usize>>, MergeError> {
    // The next part of the way is last.
    let mut ahead: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
    let mut behind = vec![root];
    let (mut followed, mut passed) = (0, 0);
    while let Some(part) = ahead.pop() {
        passed += 1;
        if passed > MAX_PATH_PARTS {
            return Err(MergeError::TooDeep(shown(path)));
        }
        if part == b".." {
            behind.truncate(behind.len().saturating_sub(1).max(1));
            continue;
        }
        match look(behind[behind.len() - 1], &part)? {
            Step::Directory(next) => behind.push(next),
            Step::Missing => return Ok(None),
            Step::Symlink(target) => {
                followed += 1;
                if followed > MAX_LINKS_FOLLOWED {
                    return Err(MergeError::Loop(shown(path)));
                }
                if target.starts_with(b"/") {
                    behind.truncate(1);
                }
                ahead.extend(parts(&target).rev().map(<[u8]>::to_vec));
            }
        }
    }
    Ok(Some(behind))
}

/// Whether a part of the path is a name that AUFS keeps for itself.
fn is_reserved(path: &[u8]) -> bool {
    parts(path).any(|part| part.starts_with(RESERVED))
}

/// The parent's path and the last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

fn shown(path: &[u8]) -> String {
    shortened(&String::from_utf8_lossy(path))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
