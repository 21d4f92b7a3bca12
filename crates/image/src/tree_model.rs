//! Merging against a model that knows paths as text, and nothing else.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Paths = BTreeMap<String, String>;

const DIRECTORY: &str = "dir";
/// A hard link whose target is not there yet.
const LATE: &str = "late ";

/// One layer: what is at each path, and marks by path.
#[derive(Default)]
struct Layer {
    there: Paths,
    hidden: BTreeSet<String>,
    opaque: BTreeSet<String>,
    /// Directories in which there is more than whiteouts.
    firm: BTreeSet<String>,
    /// Targets of hard links that were not there yet.
    late: Vec<String>,
}

fn remove(there: &mut Paths, path: &str) {
    let below = format!("{path}/");
    there.retain(|at, _| at != path && !at.starts_with(&below));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn above(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Layer {
    /// The path of a directory without symbolic links in it; `None` if something else is on the way.
    fn real(&mut self, path: &str, make: bool) -> Option<String> {
        let (mut real, mut followed) = (String::new(), 0);
        let mut ahead: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        while let Some(part) = ahead.pop() {
            if part.is_empty() {
                continue;
            }
            if part == ".." {
                real.truncate(real.rfind('/').unwrap_or(0));
                continue;
            }
            let next = format!("{real}/{part}");
            match self.there.get(&next).cloned() {
                None if make => {
                    self.there.insert(next.clone(), DIRECTORY.to_owned());
                }
                None => return None,
                Some(what) if what == DIRECTORY => {}
                Some(what) => {
                    let target = what.strip_prefix("-> ")?;
                    followed += 1;
                    if followed > 40 {
                        return None;
                    }
                    if target.starts_with('/') {
                        real.clear();
                    }
                    ahead.extend(target.split('/').rev().map(str::to_owned));
                    continue;
                }
            }
            real = next;
        }
        Some(real)
    }

    fn at(&mut self, path: &str) -> Option<String> {
        let (parent, name) = above(path);
        let parent = self.real(parent, false)?;
        self.there.get(&format!("{parent}/{name}")).cloned()
    }

    fn mark_firm(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            self.firm.insert(path[..at].to_owned());
        }
        self.firm.insert(path.to_owned());
    }

    /// Adds an entry; false if it cannot be.
    fn add(&mut self, entry: &Entry) -> bool {
        let path = text(&entry.path);
        let (parent, name) = above(&path);
        if let Some(hidden) = name.strip_prefix(".wh.") {
            let Some(parent) = self.real(parent, true) else { return true };
            if name == ".wh..wh..opq" {
                self.mark_firm(&parent);
                self.opaque.insert(parent);
            } else {
                self.hidden.insert(format!("{parent}/{hidden}"));
            }
            return true;
        }
        let what = match &entry.kind {
            EntryKind::Directory => DIRECTORY.to_owned(),
            EntryKind::File(content) => content.size.to_string(),
            EntryKind::Symlink(target) => format!("-> {}", text(target)),
            EntryKind::HardLink(target) => match self.at(&text(target)) {
                Some(what) if what != DIRECTORY => what,
                _ => {
                    self.late.push(text(target));
                    format!("{LATE}{}", text(target))
                }
            },
            _ => unreachable!("the strategy makes no other"),
        };
        let Some(parent) = self.real(parent, true) else { return false };
        self.mark_firm(&parent);
        let at = format!("{parent}/{name}");
        let is_directory = what == DIRECTORY;
        if !is_directory || self.there.get(&at).is_none_or(|there| there != DIRECTORY) {
            remove(&mut self.there, &at);
            // Marks go with the directory that had them.
            let below = format!("{at}/");
            let stays = |mark: &String| *mark != at && !mark.starts_with(&below);
            self.opaque.retain(stays);
            self.firm.retain(stays);
            self.hidden.retain(|mark| !mark.starts_with(&below));
        }
        if is_directory {
            self.mark_firm(&at);
        }
        self.there.insert(at, what);
        true
    }

    /// The target of a late hard link, in this layer or in those below.
    fn target(&mut self, below: &mut Self, target: &str, steps: usize) -> Option<String> {
        // Where there are whiteouts alone, what is below stays.
        let (parent, name) = above(target);
        let is_firm = self.real(parent, false).is_some_and(|at| self.firm.contains(&format!("{at}/{name}")));
        let own = self.at(target).filter(|what| what != DIRECTORY || is_firm);
        let what = own.or_else(|| below.at(target)).filter(|what| what != DIRECTORY)?;
        match what.strip_prefix(LATE) {
            Some(_) if steps == 0 => None,
            Some(next) => self.target(below, next, steps - 1),
            None => Some(what),
        }
    }

    /// Lays this layer over `below`; nothing if that cannot be done.
    fn over(mut self, below: Paths) -> Option<Paths> {
        let mut below = Self { there: below, ..Self::default() };
        let steps = self.late.len();
        for target in self.late.clone() {
            self.target(&mut below, &target, steps)?;
        }
        let mut settled = self.there.clone();
        for what in settled.values_mut() {
            if let Some(target) = what.clone().strip_prefix(LATE) {
                *what = self.target(&mut below, target, steps)?;
            }
        }
        let mut merged = below.there;
        for path in &self.opaque {
            let below = format!("{path}/");
            merged.retain(|at, _| !at.starts_with(&below));
        }
        for path in &self.hidden {
            remove(&mut merged, path);
        }
        let mut skipped: Option<String> = None;
        for (path, what) in settled {
            if skipped.as_ref().is_some_and(|skipped| path.starts_with(skipped)) {
                continue;
            }
            match merged.get(&path) {
                Some(there) if what == DIRECTORY && there == DIRECTORY => {}
                found
                    if what == DIRECTORY
                        && !self.firm.contains(&path)
                        && (found.is_some() || self.hidden.contains(&path)) =>
                {
                    skipped = Some(format!("{path}/"))
                }
                _ => {
                    remove(&mut merged, &path);
                    merged.insert(path, what);
                }
            }
        }
        Some(merged)
    }
}

fn modelled(layers: &[Vec<Entry>]) -> Option<Paths> {
    let mut merged = Paths::new();
    for entries in layers {
        let mut layer = Layer::default();
        if !entries.iter().all(|entry| layer.add(entry)) {
            return None;
        }
        merged = layer.over(merged)?;
    }
    Some(merged)
}

fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn hidden(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    }
}

fn marks() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => paths().prop_map(|path| file(&hidden(&path), 0)),
        1 => paths().prop_map(|path| file(&format!("{path}/.wh..wh..opq"), 0)),
        1 => Just(file(".wh..wh..opq", 0)),
    ]
}

fn entries() -> impl Strategy<Value = Entry> {
    let targets = prop::sample::select(vec!["a", "b", "/a", "/b/c", "../c", "a/b", "a/../b", "../../../c"]);
    prop_oneof![
        6 => paths().prop_map(|path| directory(&path)),
        6 => (paths(), 0..9u64).prop_map(|(path, size)| file(&path, size)),
        2 => (paths(), paths()).prop_map(|(path, target)| link(&path, &target)),
        3 => (paths(), targets).prop_map(|(path, target)| symlink(&path, target)),
        5 => marks(),
    ]
}

/// A layer as it should be: each path once, nothing below a file, no symbolic links on the way; in any order.
fn orderly() -> impl Strategy<Value = (Vec<Entry>, Vec<Entry>)> {
    let own = prop::collection::vec((paths(), 0..12u64), 0..8);
    (own, prop::collection::vec(marks(), 0..5)).prop_flat_map(|(own, marks)| {
        let mut kept: BTreeMap<String, Entry> = BTreeMap::new();
        for (path, what) in own {
            let is_free = |at: &str, entry: &Entry| {
                entry.kind == EntryKind::Directory || !path.starts_with(&format!("{at}/"))
            };
            if !kept.iter().all(|(at, entry)| is_free(at, entry)) {
                continue;
            }
            let first = kept.iter().find(|(_, entry)| matches!(entry.kind, EntryKind::File(_)));
            let made = match (what, first) {
                (0..5, _) => directory(&path),
                (5..7, Some((target, _))) if *target != path => link(&path, &target.clone()),
                (5..9, _) => file(&path, what),
                _ => symlink(&path, "a"),
            };
            if made.kind != EntryKind::Directory {
                kept.retain(|at, _| !at.starts_with(&format!("{path}/")));
            }
            kept.entry(path).or_insert(made);
        }
        // A mark below a link is about what the link is to, once the link is there.
        let is_link = |entry: &Entry| matches!(entry.kind, EntryKind::Symlink(_));
        let links: Vec<String> =
            kept.iter().filter(|(_, entry)| is_link(entry)).map(|(at, _)| format!("{at}/")).collect();
        let marks = marks.into_iter().filter(|mark| !links.iter().any(|at| text(&mark.path).starts_with(at)));
        let all: Vec<Entry> = kept.into_values().chain(marks).collect();
        (Just(all.clone()), Just(all).prop_shuffle())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn merging_does_what_the_model_does(
        layers in prop::collection::vec(prop::collection::vec(entries(), 0..9), 1..4)
    ) {
        let model = modelled(&layers);
        match merged(layers) {
            Ok(tree) => prop_assert_eq!(Some(listed(&tree)), model),
            Err(error) => prop_assert!(model.is_none(), "{} in spite of {:?}", error, model),
        }
    }

    #[test]
    fn order_of_entries_changes_nothing(
        below in prop::collection::vec(entries(), 0..9),
        (sorted, shuffled) in orderly(),
    ) {
        if let Ok(expected) = merged(vec![below.clone(), sorted]) {
            let found = merged(vec![below, shuffled]);
            prop_assert_eq!(listed(&found.unwrap()), listed(&expected));
        }
    }
}
