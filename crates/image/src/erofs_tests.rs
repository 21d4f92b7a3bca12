//! What was written is read back by the crate `erofs-rs`, which knows nothing of us. `e2e/tests/images.rs` has the
//! kernel read it.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use proptest::prelude::*;

use super::*;
use crate::handmade::{Archive, allowance, read};

fn image(archives: &[Vec<u8>]) -> Vec<u8> {
    let mut tree = Tree::default();
    let mut layers = Vec::new();
    let mut allowance = allowance();
    for (number, archive) in archives.iter().enumerate() {
        let len = archive.len() as u64;
        let entries = crate::layer::entries::read(io::Cursor::new(archive), len, number, &mut allowance);
        tree.apply(entries.unwrap(), &mut allowance).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        layers.push(file);
    }
    written(&tree, &layers)
}

fn written(tree: &Tree, layers: &[File]) -> Vec<u8> {
    let into = tempfile::NamedTempFile::new().unwrap();
    write(tree, layers, into.as_file(), &|done, total| assert!(done <= total)).unwrap();
    std::fs::read(into.path()).unwrap()
}

fn content(fs: &EroFS<SliceImage<'_>>, path: &str) -> Vec<u8> {
    let file = fs.open(path).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap()];
    let mut done = 0;
    while done < bytes.len() {
        done += file.read_at(&mut bytes[done..], done as u64).unwrap();
    }
    bytes
}

#[test]
fn the_guest_knows_the_file_system_by_its_magic() {
    let image = image(&[Archive::default().finish()]);
    assert_eq!(&image[1024..1028], &0xE0F5_E1E2_u32.to_le_bytes());
    assert_eq!(image.len() % 4096, 0);
}

#[test]
fn metadata_of_every_kind_survives() {
    let capability = b"\x01\0\0\x02\0\n\0\0";
    let image = image(&[Archive::default()
        .pax(&[("uid", b"70000"), ("gid", b"2147483647"), ("mtime", b"-1.5")])
        .changed(b'5', "./", "", b"", |header| header.set_mode(0o1751))
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.big", &[7; 9000])])
        .changed(b'0', "a", "", b"data", |header| header.set_mode(0o6755))
        .with(b'1', "z/b", "a", b"")
        .changed(b'4', "disk", "", b"", |header| {
            header.set_device_major(259).unwrap();
            header.set_device_minor(70_000).unwrap();
        })
        .with(b'6', "pipe", "", b"")
        .with(b'2', "link", "/any/where", b"")
        .finish()]);
    let fs = EroFS::new(SliceImage::new(&image)).unwrap();
    let inode = |path: &str| inode(&fs, path).unwrap();
    let root = inode("/");
    assert_eq!((root.uid(), root.gid(), root.modified_unix()), (70_000, 2_147_483_647, (-2, 500_000_000)));
    assert_eq!((mode(&root), root.nlink()), (0o1751, 3));
    let (a, b) = (inode("/a"), inode("/z/b"));
    assert_eq!((a.id(), a.nlink(), mode(&a)), (b.id(), 2, 0o6755));
    assert_eq!(content(&fs, "/z/b"), b"data");
    let xattrs = fs.xattrs("/a").unwrap();
    assert_eq!(
        (&xattrs[&b"security.capability"[..]][..], xattrs[&b"user.big"[..]].len()),
        (&capability[..], 9000)
    );
    assert_eq!(inode("/disk").device(), Some((259, 70_000)));
    assert_eq!(fs.read_link_inode(inode("/link")).unwrap().to_string_lossy(), "/any/where");
    assert!(!inode("/pipe").is_file());
}

fn inode(fs: &EroFS<SliceImage<'_>>, path: &str) -> Option<erofs_rs::types::Inode> {
    if path == "/" {
        return fs.get_inode(fs.super_block().root_inode_id()).ok();
    }
    let mut entries = fs.walk_dir("/").unwrap().map(Result::unwrap);
    entries.find(|entry| entry.dir_entry.path().to_string_lossy() == path).map(|entry| entry.inode)
}

fn mode(inode: &erofs_rs::types::Inode) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;

    inode.permissions().mode() & 0o7777
}

#[test]
fn contents_survive_at_every_border() {
    let sizes = [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8192, (1 << 20) + 5, (3 << 20) + 4096];
    let bytes =
        |size: usize| -> Vec<u8> { (0..size).map(|at| u8::try_from(at * 7 % 251 + 1).unwrap()).collect() };
    let mut archive = Archive::default();
    for size in sizes {
        archive = archive.file(&format!("f{size}"), &bytes(size));
    }
    let image = image(&[archive.finish()]);
    let fs = EroFS::new(SliceImage::new(&image)).unwrap();
    for size in sizes {
        assert!(content(&fs, &format!("/f{size}")) == bytes(size), "{size}");
    }
}

#[test]
fn large_directories_are_found_entry_by_entry() {
    let name = |number: u32| format!("{number:0>width$}", width = 1 + number as usize % 90);
    let mut archive = Archive::default();
    for number in 0..3000 {
        archive = archive.file(&format!("d/{}", name(number)), number.to_string().as_bytes());
    }
    // Before `.` in the order of names.
    let archive = archive.file("d/-", b"minus").file("d/...", b"dots");
    let image = image(&[archive.finish()]);
    let fs = EroFS::new(SliceImage::new(&image)).unwrap();
    for number in 0..3000 {
        assert_eq!(content(&fs, &format!("/d/{}", name(number))), number.to_string().as_bytes());
    }
    assert_eq!((content(&fs, "/d/-"), content(&fs, "/d/...")), (b"minus".to_vec(), b"dots".to_vec()));
    assert_eq!(fs.read_dir("/d").unwrap().count(), 3002);
    assert!(fs.open("/d/none").is_err());
}

#[test]
fn holes_and_zeros_take_no_space() {
    let zeros = vec![0; 8 << 20];
    let archive = Archive::default().file("zeros", &zeros).file("x", b"x").finish();
    let entries = read(&archive).unwrap();
    let mut tree = Tree::default();
    tree.apply(entries, &mut allowance()).unwrap();
    let mut layer = tempfile::tempfile().unwrap();
    layer.write_all(&archive).unwrap();
    let into = tempfile::NamedTempFile::new().unwrap();
    write(&tree, &[layer], into.as_file(), &|_, _| ()).unwrap();
    let metadata = into.as_file().metadata().unwrap();
    assert!(metadata.len() > 8 << 20 && metadata.blocks() * 512 < 1 << 20);
    let image = std::fs::read(into.path()).unwrap();
    let fs = EroFS::new(SliceImage::new(&image)).unwrap();
    assert!(content(&fs, "/zeros") == zeros);
}

#[test]
fn a_layer_that_shrank_is_an_error() {
    let archive = Archive::default().file("a", &[1; 5000]).finish();
    let mut tree = Tree::default();
    tree.apply(read(&archive).unwrap(), &mut allowance()).unwrap();
    let into = tempfile::tempfile().unwrap();
    assert!(write(&tree, &[tempfile::tempfile().unwrap()], &into, &|_, _| ()).is_err());
}

#[test]
fn equal_trees_give_equal_images() {
    let archive = || Archive::default().file("a/b", b"1").directory("c").finish();
    assert!(image(&[archive()]) == image(&[archive()]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_is_read_back(
        files in prop::collection::btree_map("[a-c]{1,3}(/[a-z.-]{1,60}x){0,3}", (0..20_000_usize, 0..3000_usize), 1..40)
    ) {
        let mut archive = Archive::default();
        let mut kept = std::collections::BTreeMap::new();
        for (path, (size, xattr)) in files {
            // A file cannot be a directory too.
            let is_parent = |other: &String| path.starts_with(&format!("{other}/"));
            if kept.keys().any(is_parent) || path.len() > 100 {
                continue;
            }
            let byte = u8::try_from(size % 255).unwrap() + 1;
            archive = archive
                .pax(&[("SCHILY.xattr.user.x", &vec![byte; xattr])])
                .file(&path, &vec![byte; size]);
            kept.insert(path, (size, xattr, byte));
        }
        let image = image(&[archive.finish()]);
        let fs = EroFS::new(SliceImage::new(&image)).unwrap();
        for (path, (size, xattr, byte)) in kept {
            let path = format!("/{path}");
            prop_assert!(content(&fs, &path) == vec![byte; size]);
            prop_assert!(fs.xattrs(&path).unwrap()[&b"user.x"[..]] == vec![byte; xattr]);
        }
    }
}

/// Entries of every kind, of names that meet often.
fn noise() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let part = prop::sample::select(vec!["a", "b", "c", ".wh.a", ".wh..wh..opq", "..", ".", "", "etc"]);
    let path = prop::collection::vec(part.clone(), 1..5).prop_map(|parts| parts.join("/"));
    let target = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(b"0001122345566".to_vec());
    (kind, path, target, prop::collection::vec(any::<u8>(), 0..5000))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn whatever_layers_hold_an_image_is_refused_or_whole(
        layers in prop::collection::vec(prop::collection::vec(noise(), 0..12), 1..4)
    ) {
        let mut tree = Tree::default();
        let mut files = Vec::new();
        for (number, layer) in layers.into_iter().enumerate() {
            let mut archive = Archive::default();
            for (kind, path, target, data) in layer {
                let data = if matches!(kind, b'0') { data } else { Vec::new() };
                archive = archive.changed(kind, &path, &target, &data, |header| {
                    header.set_device_major(1).unwrap();
                    header.set_device_minor(3).unwrap();
                });
            }
            let bytes = archive.finish();
            let mut allowance = allowance();
            let entries =
                crate::layer::entries::read(io::Cursor::new(&bytes), bytes.len() as u64, number, &mut allowance);
            let Ok(entries) = entries else { continue };
            let Ok(()) = tree.apply(entries, &mut allowance) else { return Ok(()) };
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            files.resize_with(number, || tempfile::tempfile().unwrap());
            files.push(file);
        }
        if tree.furnish().is_err() {
            return Ok(());
        }
        let image = written(&tree, &files);
        let fs = EroFS::new(SliceImage::new(&image)).unwrap();
        for entry in fs.walk_dir("/").unwrap() {
            let entry = entry.unwrap();
            prop_assert!(!entry.dir_entry.file_name().starts_with(b".wh."));
            if entry.inode.is_file() {
                content(&fs, &entry.dir_entry.path().to_string_lossy());
            }
        }
    }
}
