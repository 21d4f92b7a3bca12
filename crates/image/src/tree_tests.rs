//! Merging, case by case.

use std::collections::BTreeMap;
use std::io::Cursor;

use super::*;
use crate::handmade::Archive;
use crate::layer::entries::{self, EntryKind};

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
    merged_within(layers, &crate::Limits::default())
}

fn merged_within(layers: Vec<Vec<Entry>>, limits: &crate::Limits) -> Result<Tree, MergeError> {
    let (mut tree, mut allowance) = (Tree::default(), Allowance::new(limits));
    for layer in layers {
        tree.apply(layer, &mut allowance)?;
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
fn whiteouts_alone_replace_nothing() {
    let below = vec![file("f", 1), directory("data"), file("data/x", 2), symlink("s", "data")];
    let above = vec![
        file("no/.wh.such", 0),
        file("f/.wh.x", 0),
        file("s/.wh.x", 0),
        file("s/deep/.wh.x", 0),
        file(".wh..wh.plnk/1.2", 0),
        file(".wh..wh.aufs", 0),
        file("data/.wh..wh.orph/x", 0),
    ];
    let expected = &[("/f", "1"), ("/data", "dir"), ("/data/x", "2"), ("/s", "-> data"), ("/no", "dir")];
    shows(vec![below, above], expected);
}

#[test]
fn replaced_link_protects_its_target_from_whiteouts() {
    for name in [".wh..wh..opq", ".wh.keep", ".wh.none"] {
        let mut above =
            vec![directory("srv/site"), file(&format!("srv/site/{name}"), 0), file("srv/site/new", 9)];
        for _ in 0..above.len() {
            above.rotate_left(1);
            let below =
                vec![directory("data"), file("data/keep", 1), directory("srv"), symlink("srv/site", "/data")];
            let expected = &[
                ("/data", "dir"),
                ("/data/keep", "1"),
                ("/srv", "dir"),
                ("/srv/site", "dir"),
                ("/srv/site/new", "9"),
            ];
            shows(vec![below, above.clone()], expected);
        }
    }
}

#[test]
fn directory_removed_and_made_again_is_empty() {
    let below = || vec![directory("d"), file("d/a", 1), file("d/b/c", 2)];
    let expected = &[("/d", "dir"), ("/d/new", "9")];
    let (mark, made, new) = (file(".wh.d", 0), directory("d"), file("d/new", 9));
    shows(vec![below(), vec![mark.clone(), made.clone(), new.clone()]], expected);
    shows(vec![below(), vec![made, new.clone(), mark.clone()]], expected);
    shows(vec![below(), vec![new, mark]], expected);
}

#[test]
fn links_of_lower_layers_are_replaced_not_followed() {
    let below = vec![directory("usr/lib"), file("usr/lib/a", 1), symlink("lib", "usr/lib")];
    let expected =
        &[("/usr", "dir"), ("/usr/lib", "dir"), ("/usr/lib/a", "1"), ("/lib", "dir"), ("/lib/x", "2")];
    shows(vec![below, vec![file("lib/x", 2)]], expected);
}

#[test]
fn links_of_the_layer_lead_to_lower_directories() {
    let below = vec![directory("real"), file("real/a", 1), file("real/b", 2)];
    let above = vec![symlink("s", "/real"), file("s/c", 3), file("s/.wh.a", 0)];
    let expected = &[("/real", "dir"), ("/real/b", "2"), ("/real/c", "3"), ("/s", "-> /real")];
    shows(vec![below, above], expected);
}

#[test]
fn hard_links_find_targets_in_any_order() {
    shows(vec![vec![link("c", "b"), link("b", "a"), file("a", 7)]], &[("/a", "7"), ("/b", "7"), ("/c", "7")]);
    // The layer's own file comes before that of a lower layer.
    shows(vec![vec![file("a", 1)], vec![link("b", "a"), file("a", 2)]], &[("/a", "2"), ("/b", "2")]);
    // A layer that renames a file of a lower one.
    for above in [vec![link("b", "a"), file(".wh.a", 0)], vec![file(".wh.a", 0), link("b", "a")]] {
        shows(vec![vec![file("a", 1)], above], &[("/b", "1")]);
    }
    let circle = vec![link("a", "b"), link("b", "a")];
    assert!(matches!(merged(vec![circle]), Err(MergeError::Link { .. })));
}

#[test]
fn pseudo_links_of_aufs_are_targets_without_names() {
    let layer = vec![
        directory(".wh..wh.plnk"),
        file(".wh..wh.plnk/1.2", 5),
        link("a", ".wh..wh.plnk/1.2"),
        link("b", ".wh..wh.plnk/1.2"),
        link(".wh.gone", ".wh..wh.aufs"),
    ];
    let tree = merged(vec![vec![file("gone", 1)], layer]).unwrap();
    assert_eq!(
        listed(&tree).into_iter().collect::<Vec<_>>(),
        [("/a".to_owned(), "5".to_owned()), ("/b".to_owned(), "5".to_owned())]
    );
    assert_eq!(tree.child(ROOT, b"a"), tree.child(ROOT, b"b"));
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
    let layer = vec![
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("out", "../../../../etc"),
        symlink("abs", "/etc"),
        file("lib/x", 1),
        file("out/y", 2),
        file("abs/z", 3),
    ];
    let tree = listed(&merged(vec![layer]).unwrap());
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
fn paths_with_their_links_are_limited_in_parts() {
    let deep = |parts: usize| format!("{}f", "d/".repeat(parts));
    assert!(merged(vec![vec![file(&deep(1024), 1)]]).is_ok());
    assert!(matches!(merged(vec![vec![file(&deep(1025), 1)]]), Err(MergeError::TooDeep(_))));
    // The link itself is a part, and each of its target.
    let by_link = |parts: usize| {
        let target = "d/".repeat(parts);
        vec![symlink("l", target.trim_end_matches('/')), file("l/f", 1), file("l/.wh.x", 0), link("h", "l/f")]
    };
    let tree = merged(vec![by_link(1023)]).unwrap();
    assert_eq!(tree.walk().0.len(), 1 + 1 + 1023 + 1, "root, link, directories, file");
    assert!(matches!(merged(vec![by_link(1024)]), Err(MergeError::TooDeep(_))));
}

#[test]
fn directories_made_by_paths_count_as_entries() {
    // Each makes three directories, which no entry describes.
    let layers = [
        vec![file("a/b/c/f", 1)],
        vec![file("a/b/c/.wh.f", 0)],
        vec![file("a/b/c/.wh..wh..opq", 0)],
        vec![link("a/b/c/l", "f"), file("f", 1)],
        vec![symlink("s", "a/b/c"), file("s/f", 1)],
        vec![file("a/f", 1), file("a/b/c/f", 1), file("a/b/g", 1)],
    ];
    for layer in layers {
        let within = |max_entries| {
            merged_within(vec![layer.clone()], &crate::Limits { max_entries, ..crate::Limits::default() })
        };
        assert!(within(3).is_ok(), "{layer:?}");
        assert!(matches!(within(2), Err(MergeError::TooManyEntries(2))), "{layer:?}");
    }
    // With the entries, and of all layers together.
    let archive = Archive::default().file("a/b/f", b"").file("a/g", b"").finish();
    let twice = |max_entries| {
        let mut allowance = Allowance::new(&crate::Limits { max_entries, ..crate::Limits::default() });
        let mut tree = Tree::default();
        for layer in 0..2 {
            let entries = entries::read(Cursor::new(&archive), archive.len() as u64, layer, &mut allowance);
            tree.apply(entries.unwrap(), &mut allowance)?;
        }
        Ok(())
    };
    assert!(twice(8).is_ok());
    assert!(matches!(twice(7), Err(MergeError::TooManyEntries(7))));
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
fn files_in_place_of_mount_points_are_refused() {
    for place in ["proc", "sys", "dev", "run", "tmp", "etc"] {
        for layer in [vec![file(place, 1)], vec![file("f", 1), symlink(place, "f")]] {
            let mut tree = merged(vec![layer.clone()]).unwrap();
            let refused = tree.furnish().unwrap_err();
            assert!(matches!(refused, MergeError::Place(named) if named == place), "{layer:?}: {refused}");
        }
        let mut tree = merged(vec![vec![symlink(place, "there/none")]]).unwrap();
        tree.furnish().unwrap();
    }
    let mut tree = merged(vec![vec![file("run/bouvet", 1)]]).unwrap();
    assert!(matches!(tree.furnish(), Err(MergeError::Place("run/bouvet"))));
    let mut tree = merged(vec![vec![file("run", 1)]]).unwrap();
    let text = tree.furnish().unwrap_err().to_string();
    assert!(text.starts_with("`/run` of the image is not a directory"), "{text}");
}

#[test]
fn files_are_limited_in_sum_at_the_limit() {
    let tree = merged(vec![vec![file("a", 6), link("b", "a"), file("c", 4)], vec![file("c", 5)]]).unwrap();
    assert!(tree.check_size(11).is_ok());
    assert!(matches!(tree.check_size(10), Err(MergeError::TooLarge(10))));
    let huge = merged(vec![vec![file("a", u64::MAX), file("b", u64::MAX)]]).unwrap();
    assert!(huge.check_size(u64::MAX - 1).is_err());
}

#[path = "tree_model.rs"]
mod model;
