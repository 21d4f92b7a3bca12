//! Merging, case by case and against a naive model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: path.into(), meta: plain_meta(0o600), kind }
}

fn directory(path: &str) -> Entry {
    entry(path, EntryKind::Directory)
}

/// A file that is told by its size.
fn file(path: &str, size: u64) -> Entry {
    entry(path, EntryKind::File(Content { layer: 0, size, extents: Vec::new() }))
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::HardLink(target.into()))
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

fn merged(layers: Vec<Vec<Entry>>) -> Result<Tree, MergeError> {
    let mut tree = Tree::default();
    for layer in layers {
        tree.apply(layer)?;
    }
    Ok(tree)
}

/// Every path, with what is there in a word.
fn listed(tree: &Tree) -> BTreeMap<String, String> {
    let mut listed = BTreeMap::new();
    let mut open = vec![(String::new(), ROOT)];
    while let Some((path, id)) = open.pop() {
        let Kind::Directory(children) = &tree.node(id).kind else { continue };
        for (name, &child) in children {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let what = match &tree.node(child).kind {
                Kind::Directory(_) => "dir".to_owned(),
                Kind::File(content) => format!("{}", content.size),
                Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            };
            listed.insert(path.clone(), what);
            open.push((path, child));
        }
    }
    listed
}

fn shows(layers: Vec<Vec<Entry>>, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
    assert_eq!(listed(&merged(layers).unwrap()), expected);
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let below = vec![directory("d"), file("d/a", 1), file("d/b", 2), file("e/c", 3), file("f", 4)];
    let above =
        vec![file("d/a", 10), file("d/.wh.a", 0), file("d/.wh.b", 0), file(".wh.e", 0), file(".wh.none", 0)];
    shows(vec![below, above], &[("/d", "dir"), ("/d/a", "10"), ("/f", "4")]);
}

#[test]
fn opaque_directories_hide_all_that_is_below_wherever_the_mark_stands() {
    let below = || vec![file("d/a", 1), file("d/e/b", 2), file("other", 3)];
    let mark = file("d/.wh..wh..opq", 0);
    let expected = &[("/d", "dir"), ("/d/new", "9"), ("/other", "3")];
    shows(vec![below(), vec![mark.clone(), file("d/new", 9)]], expected);
    shows(vec![below(), vec![file("d/new", 9), mark]], expected);
}

#[test]
fn whiteouts_over_nothing_or_over_files_do_nothing() {
    let above = vec![
        file("no/.wh.such", 0),
        file("f/.wh.x", 0),
        file("no/.wh..wh..opq", 0),
        file(".wh..wh.plnk/1.2", 0),
    ];
    shows(vec![vec![file("f", 1)], above], &[("/f", "1")]);
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", "d/.wh..", "d/.wh...", ".wh.a/b", "d/.wh.a/.wh.b"] {
        assert!(matches!(merged(vec![vec![file(name, 0)]]), Err(MergeError::Whiteout(_))), "{name}");
    }
}

#[test]
fn links_make_no_whiteouts_either() {
    let layer = vec![symlink("s", ".wh.x"), file("s/f", 1)];
    assert!(matches!(merged(vec![layer]), Err(MergeError::Whiteout(_))));
}

#[test]
fn a_whiteout_over_a_symbolic_link_hides_the_link_alone() {
    let below = vec![file("real/x", 1), symlink("alias", "real")];
    shows(vec![below, vec![file(".wh.alias", 0)]], &[("/real", "dir"), ("/real/x", "1")]);
}

#[test]
fn files_and_directories_replace_each_other() {
    let below = vec![directory("a"), file("a/x", 1), file("b", 2), symlink("c", "a")];
    let above = vec![file("a", 3), directory("b"), directory("c"), file("c/y", 4)];
    shows(vec![below, above], &[("/a", "3"), ("/b", "dir"), ("/c", "dir"), ("/c/y", "4")]);
}

#[test]
fn a_directory_that_comes_again_keeps_what_is_in_it() {
    let mut again = directory("d");
    again.meta.mode = 0o711;
    let tree = merged(vec![vec![directory("d"), file("d/a", 1)], vec![again]]).unwrap();
    let id = tree.child(ROOT, b"d").unwrap();
    assert_eq!(tree.node(id).meta.mode, 0o711);
    assert!(tree.child(id, b"a").is_some());
}

#[test]
fn of_duplicates_the_last_counts() {
    shows(vec![vec![file("a", 1), file("a", 2)]], &[("/a", "2")]);
}

#[test]
fn hard_links_share_a_node_across_layers_and_survive_the_first_name() {
    let below = vec![file("a", 7), link("b", "a")];
    let tree = merged(vec![below, vec![link("d/c", "b"), file(".wh.a", 0)]]).unwrap();
    let b = tree.child(ROOT, b"b").unwrap();
    let d = tree.child(ROOT, b"d").unwrap();
    assert_eq!(tree.child(d, b"c"), Some(b));
    assert_eq!(tree.child(ROOT, b"a"), None);
    assert_eq!(tree.walk().1[b], 2);
    // Replacing one name leaves the other.
    let tree = merged(vec![vec![file("a", 7), link("b", "a")], vec![file("b", 8)]]).unwrap();
    assert_eq!(listed(&tree)["/a"], "7");
}

#[test]
fn hard_links_to_links_are_to_the_link() {
    shows(
        vec![vec![symlink("s", "/etc/shadow"), link("h", "s")]],
        &[("/s", "-> /etc/shadow"), ("/h", "-> /etc/shadow")],
    );
}

#[test]
fn hard_links_to_what_is_no_file_are_refused() {
    for target in ["none", "d", "", "h", "d/none", "out/passwd"] {
        let layer = vec![directory("d"), symlink("out", "../../etc"), link("h", target)];
        assert!(matches!(merged(vec![layer]), Err(MergeError::Link { .. })), "{target}");
    }
}

#[test]
fn a_hard_link_may_replace_the_directory_of_its_target() {
    shows(vec![vec![file("d/a", 5), link("d", "d/a")]], &[("/d", "5")]);
    shows(vec![vec![file("a", 5), link("a", "a")]], &[("/a", "5")]);
}

#[test]
fn symbolic_links_are_followed_inside_the_tree_only() {
    let below = vec![
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("out", "../../../../etc"),
        symlink("abs", "/etc"),
    ];
    let above = vec![file("lib/x", 1), file("out/y", 2), file("abs/z", 3)];
    let tree = listed(&merged(vec![below, above]).unwrap());
    assert_eq!(tree["/usr/lib/x"], "1");
    assert_eq!((&*tree["/etc/y"], &*tree["/etc/z"]), ("2", "3"));
    assert_eq!(tree["/lib"], "-> usr/lib");
}

#[test]
fn links_in_a_circle_and_entries_below_files_are_refused() {
    let layer = vec![symlink("a", "b"), symlink("b", "a"), file("a/x", 1)];
    assert!(matches!(merged(vec![layer]), Err(MergeError::Loop(_))));
    let layer = vec![file("f", 1), file("f/x", 1)];
    assert!(matches!(merged(vec![layer]), Err(MergeError::Below(_))));
    let layer = vec![file("", 1)];
    assert!(matches!(merged(vec![layer]), Err(MergeError::Root)));
}

#[test]
fn the_depth_of_a_tree_costs_no_stack() {
    let mut layer = Vec::new();
    // Each link shortens the way to a deeper directory.
    for step in 0..200 {
        let from = if step == 0 { String::new() } else { format!("s{}/", step - 1) };
        let deep = format!("{from}{}", "d/".repeat(500));
        layer.push(directory(deep.trim_end_matches('/')));
        let target = if step == 0 { "d/".repeat(500) } else { format!("s{}/{}", step - 1, "d/".repeat(500)) };
        if step % 30 != 29 {
            layer.push(symlink(&format!("s{step}"), target.trim_end_matches('/')));
        } else {
            break;
        }
    }
    let tree = merged(vec![layer]).unwrap();
    assert!(tree.walk().0.len() > 10_000);
}

#[test]
fn a_guest_finds_what_it_mounts_on() {
    let mut tree = merged(vec![vec![symlink("run", "var/run"), file("etc/hosts", 5)]]).unwrap();
    tree.furnish().unwrap();
    let tree_listed = listed(&tree);
    for path in ["/proc", "/sys", "/dev", "/tmp", "/etc"] {
        assert_eq!(tree_listed[path], "dir");
    }
    assert_eq!(tree_listed["/run"], "-> var/run");
    assert_eq!((&*tree_listed["/etc/hosts"], &*tree_listed["/etc/resolv.conf"]), ("5", "0"));
    let tmp = tree.child(ROOT, b"tmp").unwrap();
    assert_eq!(tree.node(tmp).meta.mode, 0o1777);
}

#[test]
fn files_are_limited_in_sum_at_the_limit() {
    let tree = merged(vec![vec![file("a", 6), link("b", "a"), file("c", 4)], vec![file("c", 5)]]).unwrap();
    assert!(tree.check_size(11).is_ok());
    assert!(matches!(tree.check_size(10), Err(MergeError::TooLarge(10))));
    let huge = merged(vec![vec![file("a", u64::MAX), file("b", u64::MAX)]]).unwrap();
    assert!(huge.check_size(u64::MAX - 1).is_err());
}

/// The model: a map of paths. It knows no symbolic links on the way, and the strategy makes none.
#[derive(Default)]
struct Model(BTreeMap<String, String>);

impl Model {
    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.0.retain(|there, _| there != path && !there.starts_with(&below));
    }

    fn put(&mut self, path: &str, what: &str) -> bool {
        let ancestors: Vec<&str> = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]).collect();
        for ancestor in ancestors {
            if self.0.entry(ancestor.to_owned()).or_insert_with(|| "dir".to_owned()) != "dir" {
                return false;
            }
        }
        if !(what == "dir" && self.0.get(path).is_some_and(|there| there == "dir")) {
            self.remove(path);
        }
        self.0.insert(path.to_owned(), what.to_owned());
        true
    }

    /// Whether the layer is one that can be applied.
    fn apply(&mut self, layer: &[Entry]) -> bool {
        for entry in layer {
            let path = format!("/{}", String::from_utf8_lossy(&entry.path));
            let (parent, name) = path.rsplit_once('/').unwrap();
            if name == ".wh..wh..opq" {
                let below = format!("{parent}/");
                self.0.retain(|there, _| !there.starts_with(&below));
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                self.remove(&format!("{parent}/{hidden}"));
            }
        }
        layer.iter().filter(|entry| !split(&entry.path).1.starts_with(WHITEOUT)).all(|entry| {
            let what = match &entry.kind {
                EntryKind::Directory => "dir".to_owned(),
                EntryKind::File(content) => content.size.to_string(),
                EntryKind::HardLink(target) => {
                    let target = format!("/{}", String::from_utf8_lossy(target));
                    match self.0.get(&target) {
                        Some(what) if what != "dir" => what.clone(),
                        _ => return false,
                    }
                }
                _ => unreachable!("the strategy makes no other"),
            };
            self.put(&format!("/{}", String::from_utf8_lossy(&entry.path)), &what)
        })
    }
}

fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn entries() -> impl Strategy<Value = Entry> {
    let hidden = |path: String| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    prop_oneof![
        4 => paths().prop_map(|path| directory(&path)),
        4 => (paths(), 0..9u64).prop_map(|(path, size)| file(&path, size)),
        1 => (paths(), paths()).prop_map(|(path, target)| link(&path, &target)),
        2 => paths().prop_map(move |path| file(&hidden(path), 0)),
        1 => paths().prop_map(|path| file(&format!("{path}/.wh..wh..opq"), 0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn merging_does_what_the_naive_model_does(
        layers in prop::collection::vec(prop::collection::vec(entries(), 0..7), 1..4)
    ) {
        let mut model = Model::default();
        let fits = layers.iter().all(|layer| model.apply(layer));
        match merged(layers) {
            Ok(tree) => prop_assert_eq!((fits, listed(&tree)), (true, model.0)),
            Err(_) => prop_assert!(!fits),
        }
    }
}
