//! One layer by itself, with its whiteouts as marks.
//!
//! podman, Docker and containerd unpack a layer into a directory of its own and lay that over the layers below. A sheet
//! is that directory. Whiteouts therefore never reach the entries of their own layer, and symbolic links of lower layers
//! are not followed. Links of the layer itself are, in the order of its entries.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Id, Kind, MergeError, Node, Step, Tree, WHITEOUT, descend, is_reserved, parts, plain_meta, shown, split,
};
use crate::layer::entries::{Allowance, Entry, EntryKind, Meta};

/// Marks its directory as opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where AUFS keeps files that have several names. Entries here are targets of hard links, and have no name of their own.
const PSEUDO_LINKS: &[u8] = b".wh..wh.plnk";

const ROOT: usize = 0;

/// The entries of one layer.
#[derive(Debug)]
pub(super) struct Sheet<'a> {
    allowance: &'a mut Allowance,
    dirs: Vec<Dir>,
    links: Vec<Link>,
    pseudo: BTreeMap<Vec<u8>, Id>,
}

#[derive(Debug, Default)]
struct Dir {
    /// `None`: no entry describes the directory, other entries are below it.
    meta: Option<Meta>,
    /// Whether there is anything but whiteouts in it.
    has_entries: bool,
    is_opaque: bool,
    hidden: BTreeSet<Box<[u8]>>,
    children: BTreeMap<Box<[u8]>, Item>,
}

#[derive(Debug, Clone, Copy)]
enum Item {
    Directory(usize),
    Node(Id),
    /// A hard link whose target was not found yet.
    Link(usize),
}

#[derive(Debug)]
struct Link {
    path: Vec<u8>,
    target: Vec<u8>,
    found: Option<Id>,
}

/// Why a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To find something. Nothing is made.
    Lookup,
    /// To a whiteout. Missing directories are made.
    Whiteout,
    /// To any other entry. Missing directories are made.
    Entry,
}

impl<'a> Sheet<'a> {
    /// Reads a layer's entries. Their nodes are added to `tree`, where no name leads to them yet.
    pub(super) fn new(
        entries: Vec<Entry>,
        tree: &mut Tree,
        allowance: &'a mut Allowance,
    ) -> Result<Self, MergeError> {
        let dirs = vec![Dir::default()];
        let mut sheet = Self { allowance, dirs, links: Vec::new(), pseudo: BTreeMap::new() };
        for entry in entries {
            let (_, name) = split(&entry.path);
            if name != OPAQUE && is_reserved(&entry.path) {
                sheet.keep_pseudo_link(entry, tree);
            } else if parts(&entry.path).any(|part| part.starts_with(WHITEOUT)) {
                sheet.white_out(&entry.path, tree)?;
            } else {
                sheet.place(entry, tree)?;
            }
        }
        sheet.find_targets(tree)?;
        Ok(sheet)
    }

    fn keep_pseudo_link(&mut self, entry: Entry, tree: &mut Tree) {
        if let EntryKind::File(content) = entry.kind
            && split(&entry.path).0 == PSEUDO_LINKS
        {
            let id = tree.add(Node { meta: entry.meta, kind: Kind::File(content) });
            self.pseudo.insert(entry.path, id);
        }
    }

    fn white_out(&mut self, path: &[u8], tree: &Tree) -> Result<(), MergeError> {
        let (parent, name) = split(path);
        let is_below = parts(parent).any(|part| part.starts_with(WHITEOUT));
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if is_below || matches!(hidden, b"" | b"." | b"..") {
            return Err(MergeError::Whiteout(shown(path)));
        }
        let way = if name == OPAQUE { Way::Entry } else { Way::Whiteout };
        let dir = match self.directory(parent, way, tree) {
            // The layer has something else there, which hides all that is below.
            Err(MergeError::Below(_) | MergeError::Loop(_)) => return Ok(()),
            other => other?.unwrap_or(ROOT),
        };
        if name == OPAQUE {
            self.dirs[dir].is_opaque = true;
        } else {
            self.dirs[dir].hidden.insert(hidden.into());
        }
        Ok(())
    }

    fn place(&mut self, entry: Entry, tree: &mut Tree) -> Result<(), MergeError> {
        let Entry { path, meta, kind } = entry;
        if path.is_empty() {
            if kind != EntryKind::Directory {
                return Err(MergeError::Root);
            }
            self.dirs[ROOT].meta = Some(meta);
            return Ok(());
        }
        let (parent, name) = split(&path);
        // Looked for first: the link may replace a directory that the target is in.
        let linked = match &kind {
            EntryKind::HardLink(target) => self.linkable(target, tree)?,
            _ => None,
        };
        let parent = self.directory(parent, Way::Entry, tree)?.unwrap_or(ROOT);
        let kind = match kind {
            EntryKind::Directory => {
                let dir = match self.dirs[parent].children.get(name) {
                    Some(Item::Directory(dir)) => *dir,
                    _ => self.make(parent, name),
                };
                (self.dirs[dir].meta, self.dirs[dir].has_entries) = (Some(meta), true);
                return Ok(());
            }
            EntryKind::HardLink(target) => {
                let item = match linked {
                    // A file may take the place of the directory.
                    None | Some(Item::Directory(_)) => {
                        self.links.push(Link { path: path.clone(), target, found: None });
                        Item::Link(self.links.len() - 1)
                    }
                    Some(found) => found,
                };
                self.dirs[parent].children.insert(name.into(), item);
                return Ok(());
            }
            EntryKind::File(content) => Kind::File(content),
            EntryKind::Symlink(target) => Kind::Symlink(target),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
        };
        let id = tree.add(Node { meta, kind });
        self.dirs[parent].children.insert(name.into(), Item::Node(id));
        Ok(())
    }

    fn make(&mut self, parent: usize, name: &[u8]) -> usize {
        self.dirs.push(Dir::default());
        let made = self.dirs.len() - 1;
        self.dirs[parent].children.insert(name.into(), Item::Directory(made));
        made
    }

    /// The directory at `path`, over symbolic links of this layer.
    fn directory(&mut self, path: &[u8], way: Way, tree: &Tree) -> Result<Option<usize>, MergeError> {
        let behind = descend(path, ROOT, |dir, part| match self.dirs[dir].children.get(part) {
            Some(Item::Directory(next)) => Ok(Step::Directory(*next)),
            Some(Item::Node(id)) => match &tree.node(*id).kind {
                Kind::Symlink(target) => Ok(Step::Symlink(target.clone())),
                _ => Err(MergeError::Below(shown(path))),
            },
            Some(Item::Link(_)) => Err(MergeError::Below(shown(path))),
            None if way == Way::Lookup => Ok(Step::Missing),
            // By way of a link; in a lower layer of the guest it would hide something.
            None if part.starts_with(WHITEOUT) => Err(MergeError::Whiteout(shown(path))),
            None => {
                // A path of 4 KiB makes up to a thousand directories, and each takes half of one.
                self.allowance.take_one().map_err(MergeError::TooManyEntries)?;
                Ok(Step::Directory(self.make(dir, part)))
            }
        })?;
        let Some(behind) = behind else { return Ok(None) };
        if way == Way::Entry {
            for dir in &behind {
                self.dirs[*dir].has_entries = true;
            }
        }
        Ok(behind.last().copied())
    }

    /// The target of a hard link, if the layer has it already.
    fn linkable(&mut self, target: &[u8], tree: &Tree) -> Result<Option<Item>, MergeError> {
        if let Some(id) = self.pseudo.get(target) {
            return Ok(Some(Item::Node(*id)));
        }
        let (parent, name) = split(target);
        let parent = match self.directory(parent, Way::Lookup, tree) {
            // It may be in a lower layer.
            Err(MergeError::Below(_) | MergeError::Loop(_)) => None,
            other => other?,
        };
        let found = parent.and_then(|parent| self.dirs[parent].children.get(name).copied());
        // Whiteouts alone replace nothing.
        Ok(found.filter(|item| !matches!(item, Item::Directory(dir) if !self.dirs[*dir].has_entries)))
    }

    /// Finds what hard links are to that stand before their targets, or whose targets are in lower layers.
    fn find_targets(&mut self, tree: &mut Tree) -> Result<(), MergeError> {
        for first in 0..self.links.len() {
            // Links that wait for the same target, each of which is the target of the one before.
            let mut chain = vec![first];
            let mut seen = BTreeSet::from([first]);
            let found = loop {
                let link = chain[chain.len() - 1];
                if let Some(id) = self.links[link].found {
                    break id;
                }
                let Link { path, target, .. } = &self.links[link];
                let (path, target) = (path.clone(), target.clone());
                match self.linkable(&target, tree)? {
                    Some(Item::Node(id)) => break id,
                    Some(Item::Link(next)) if seen.insert(next) => chain.push(next),
                    Some(_) => return Err(no_target(&path, &target)),
                    None => break tree.linkable(&target)?.ok_or_else(|| no_target(&path, &target))?,
                }
            };
            for link in chain {
                self.links[link].found = Some(found);
            }
        }
        Ok(())
    }

    /// Lays the layer over the layers below.
    pub(super) fn cover(mut self, tree: &mut Tree) {
        let mut open = vec![(super::ROOT, ROOT)];
        while let Some((below, above)) = open.pop() {
            let Dir { meta, is_opaque, hidden, children, .. } = std::mem::take(&mut self.dirs[above]);
            if let Some(meta) = meta {
                tree.nodes[below].meta = meta;
            }
            tree.hide(below, is_opaque, &hidden);
            for (name, item) in children {
                let existing = tree.child(below, &name);
                let dir = match item {
                    Item::Directory(dir) => dir,
                    Item::Node(id) => {
                        tree.put(below, &name, id);
                        continue;
                    }
                    Item::Link(link) => {
                        if let Some(id) = self.links[link].found {
                            tree.put(below, &name, id);
                        }
                        continue;
                    }
                };
                match existing {
                    Some(id) if matches!(tree.nodes[id].kind, Kind::Directory(_)) => open.push((id, dir)),
                    // Whiteouts alone replace nothing, and bring back nothing.
                    Some(_) if !self.dirs[dir].has_entries => {}
                    None if !self.dirs[dir].has_entries && hidden.contains(&name) => {}
                    _ => {
                        let kind = Kind::Directory(BTreeMap::new());
                        let id = tree.add(Node { meta: plain_meta(0o755), kind });
                        tree.put(below, &name, id);
                        open.push((id, dir));
                    }
                }
            }
        }
    }
}

fn no_target(path: &[u8], target: &[u8]) -> MergeError {
    MergeError::Link { name: shown(path), target: shown(target) }
}
