//! Archives and layers, well made and hostile.

use std::io::{Seek as _, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::entries::{ArchiveError, Entry, EntryKind};
use super::*;
use crate::handmade::{Archive, read, read_within};

fn transferred(stored: &[u8], digest: Digest, diff_id: Digest) -> Transferred<&[u8]> {
    Transferred { from: stored, bytes: stored.len() as u64, digest: Some(digest), diff_id }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn unpacked_within(stored: &[u8], plain: &[u8], limits: &Limits) -> Result<Vec<u8>, LayerError> {
    let dir = tempfile::tempdir().unwrap();
    let budget = Budget::new(limits);
    let unpacked = unpack(transferred(stored, Digest::of(stored), Digest::of(plain)), dir.path(), &budget);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no name in the directory");
    let mut bytes = Vec::new();
    let Unpacked { mut file, len } = unpacked?;
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, len);
    Ok(bytes)
}

fn unpacked(stored: &[u8], plain: &[u8]) -> Result<Vec<u8>, LayerError> {
    unpacked_within(stored, plain, &Limits::default())
}

#[test]
fn every_compression_is_told_by_its_magic_number() {
    let plain: Vec<u8> = (0..300_000_u32).flat_map(|n| (n % 1000).to_le_bytes()).collect();
    let (first, second) = plain.split_at(400_000);
    let skippable = [&b"\x5a\x2a\x4d\x18\x03\0\0\0abc"[..]].concat();
    for stored in [
        plain.clone(),
        gzipped(&plain),
        [gzipped(first), gzipped(second)].concat(),
        zstd(&plain),
        [zstd(first), skippable.clone(), zstd(second), skippable].concat(),
    ] {
        assert!(unpacked(&stored, &plain).unwrap() == plain);
    }
    assert!(unpacked(b"", b"").unwrap().is_empty());
    assert_eq!(unpacked(b"ab", b"ab").unwrap(), b"ab");
}

#[test]
fn damaged_streams_are_refused() {
    let plain = vec![7; 300_000];
    for whole in [gzipped(&plain), zstd(&plain)] {
        for stored in [&whole[..whole.len() / 2], &whole[..5], &[&whole[..], b"garbage"].concat()] {
            let error = unpacked(stored, &plain).unwrap_err();
            assert!(matches!(error, LayerError::Unpack { .. } | LayerError::DiffId { .. }), "{error}");
        }
    }
    let skip_past_end = b"\x50\x2a\x4d\x18\xff\xff\xff\xffabc";
    assert!(matches!(unpacked(skip_past_end, b"").unwrap_err(), LayerError::Unpack { .. }));
}

#[test]
fn another_content_is_refused_before_and_behind_the_compression() {
    let (dir, budget) = (tempfile::tempdir().unwrap(), Budget::new(&Limits::default()));
    let stored = gzipped(b"plain");
    let (right, wrong) = (Digest::of(&stored), Digest::of(b"other"));
    let error =
        unpack(transferred(&stored, wrong.clone(), Digest::of(b"plain")), dir.path(), &budget).unwrap_err();
    assert!(matches!(error, LayerError::Digest { layer, found } if (&layer, &found) == (&wrong, &right)));
    let error = unpack(transferred(&stored, right.clone(), wrong.clone()), dir.path(), &budget).unwrap_err();
    assert!(
        matches!(error, LayerError::DiffId { layer, expected, .. } if (&layer, &expected) == (&right, &wrong))
    );
}

#[test]
fn layers_and_images_are_limited_in_size() {
    let plain = vec![1; 1000];
    let limits =
        |max_layer_bytes, max_image_bytes| Limits { max_layer_bytes, max_image_bytes, ..Limits::default() };
    assert!(unpacked_within(&plain, &plain, &limits(1000, 1000)).is_ok());
    let error = unpacked_within(&plain, &plain, &limits(999, 1000)).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { max_bytes: 999, .. }));
    let error = unpacked_within(&plain, &plain, &limits(1000, 999)).unwrap_err();
    assert!(matches!(error, LayerError::ImageTooLarge { max_bytes: 999 }));
}

#[test]
fn a_bomb_is_stopped_while_it_grows() {
    let plain = vec![0; usize::try_from(FREE_BYTES).unwrap() + 200_000];
    let stored = gzipped(&plain);
    let limits = |max_compression_ratio| Limits { max_compression_ratio, ..Limits::default() };
    let error = unpacked_within(&stored, &plain, &limits(200)).unwrap_err();
    assert!(matches!(error, LayerError::Bomb { max_ratio: 200, .. }));
    assert!(unpacked_within(&stored, &plain, &limits(2000)).is_ok());
}

#[test]
fn metadata_is_read_in_all_its_sizes() {
    let capability = b"\x01\0\0\x02\0\n\0\0";
    let bytes = Archive::default()
        .pax(&[("uid", b"70000"), ("mtime", b"-1.5"), ("SCHILY.xattr.security.capability", capability)])
        .changed(b'0', "./bin//tool", "", b"x", |header| header.set_mode(0o104_755))
        .changed(b'3', "/dev/null", "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_gid(2_147_483_647);
        })
        .with(b'6', "pipe", "", b"")
        .with(b'0', "old-style/", "", b"")
        .with(b'1', "hard", "./bin/tool", b"")
        .with(b'2', "soft", "../../anywhere", b"")
        .finish();
    let entries = read(&bytes).unwrap();
    let names: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.path)).collect();
    assert_eq!(names, ["bin/tool", "dev/null", "pipe", "old-style", "hard", "soft"]);
    let tool = &entries[0].meta;
    assert_eq!((tool.mode, tool.uid, tool.mtime_secs, tool.mtime_nanos), (0o4755, 70_000, -2, 500_000_000));
    assert_eq!(tool.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
    assert_eq!(entries[1].kind, EntryKind::CharDevice { major: 1, minor: 3 });
    assert_eq!(entries[1].meta.gid, 2_147_483_647);
    assert_eq!(entries[3].kind, EntryKind::Directory);
    assert_eq!(entries[4].kind, EntryKind::HardLink(b"bin/tool".to_vec()));
    assert_eq!(entries[5].kind, EntryKind::Symlink(b"../../anywhere".to_vec()));
}

#[test]
fn long_names_of_both_formats_are_read() {
    let long = "d/".repeat(300) + "f";
    let gnu = Archive::default().with(b'L', "long", "", long.as_bytes()).file("x", b"1").finish();
    let pax = Archive::default().pax(&[("path", long.as_bytes())]).file("x", b"1").finish();
    for bytes in [gnu, pax] {
        assert_eq!(read(&bytes).unwrap()[0].path, long.as_bytes());
    }
    let link = Archive::default().with(b'K', "l", "", long.as_bytes()).with(b'2', "x", "", b"").finish();
    assert_eq!(read(&link).unwrap()[0].kind, EntryKind::Symlink(long.into_bytes()));
}

#[test]
fn a_size_in_pax_records_goes_before_the_header_s() {
    let bytes = Archive::default()
        .pax(&[("size", b"3")])
        .changed(b'0', "a", "", b"abc", |header| header.set_size(0))
        .file("b", b"")
        .finish();
    let entries = read(&bytes).unwrap();
    assert!(matches!(&entries[0].kind, EntryKind::File(content) if content.size == 3));
    assert_eq!(entries[1].path, b"b");
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "a/../../x", "..", "/../etc/passwd"] {
        let bytes = Archive::default().file(name, b"").finish();
        assert!(matches!(read(&bytes), Err(ArchiveError::Escapes(_))), "{name}");
        let bytes = Archive::default().with(b'1', "link", name, b"").finish();
        assert!(matches!(read(&bytes), Err(ArchiveError::Escapes(_))), "{name}");
    }
    // An absolute name is one below the root of the tree.
    assert_eq!(read(&Archive::default().file("/etc/x", b"").finish()).unwrap()[0].path, b"etc/x");
}

#[test]
fn names_are_limited_at_the_limit() {
    let pax =
        |name: &str| read(&Archive::default().pax(&[("path", name.as_bytes())]).file("x", b"").finish());
    assert!(pax(&"n".repeat(255)).is_ok());
    assert!(matches!(pax(&"n".repeat(256)), Err(ArchiveError::TooLong { max: 255, .. })));
    let path = |len: usize| "d/".repeat(len / 2);
    assert!(pax(&path(4096)).is_ok());
    assert!(matches!(pax(&path(4098)), Err(ArchiveError::TooLong { max: 4096, .. })));
    assert!(matches!(pax("a\0b"), Err(ArchiveError::Field { field: "name", .. })));
    assert!(read(&Archive::default().file("", b"").finish()).is_err());
    let link = |len: usize| {
        let records = [("linkpath", vec![b'l'; len])];
        read(&Archive::default().pax(&[(records[0].0, &records[0].1)]).with(b'2', "x", "", b"").finish())
    };
    assert!(link(4095).is_ok());
    assert!(matches!(link(4096), Err(ArchiveError::TooLong { .. })));
    assert!(read(&Archive::default().with(b'2', "x", "", b"").finish()).is_err(), "a link to nothing");
}

#[test]
fn extensions_are_limited_before_they_are_read() {
    let bytes =
        Archive::default().changed(b'L', "long", "", b"short", |header| header.set_size(1 << 40)).finish();
    assert!(matches!(read(&bytes), Err(ArchiveError::TooLong { field: "extension", .. })));
}

#[test]
fn entries_and_their_metadata_are_limited_at_the_limit() {
    let bytes = Archive::default().file("aa", b"").file("bb", b"").finish();
    let limits =
        |max_entries, max_metadata_bytes| Limits { max_entries, max_metadata_bytes, ..Limits::default() };
    assert!(read_within(&bytes, &limits(2, 4)).is_ok());
    assert!(matches!(read_within(&bytes, &limits(1, 4)), Err(ArchiveError::TooManyEntries(1))));
    assert!(matches!(read_within(&bytes, &limits(2, 3)), Err(ArchiveError::TooMuchMetadata(3))));
}

#[test]
fn archives_that_end_too_early_are_refused() {
    let whole = Archive::default().file("a", &[1; 1000]).bytes();
    for len in [1, 511, 600, 1511] {
        assert!(matches!(read(&whole[..len]), Err(ArchiveError::Truncated(_))), "{len}");
    }
    // The end mark may be missing, and the last block need not be full.
    assert_eq!(read(&whole).unwrap().len(), 1);
    assert_eq!(read(&whole[..1512]).unwrap().len(), 1);
    let announced = Archive::default().with(b'L', "long", "", b"name").bytes();
    assert!(matches!(read(&announced), Err(ArchiveError::Truncated(_))));
}

#[test]
fn sizes_and_numbers_that_cannot_be_are_refused() {
    let sized =
        |size| Archive::default().changed(b'0', "a", "", b"", |header| header.set_size(size)).finish();
    assert!(matches!(read(&sized(i64::MAX as u64)), Err(ArchiveError::Truncated(_))));
    for size in [1 << 63, u64::MAX - 100] {
        assert!(matches!(read(&sized(size)), Err(ArchiveError::Field { field: "size", .. })));
    }
    let negative = Archive::default().changed(b'0', "a", "", b"", |header| {
        header.as_gnu_mut().unwrap().size = [0xff; 12];
    });
    assert!(read(&negative.finish()).is_err());
    let words = Archive::default().changed(b'0', "a", "", b"", |header| {
        header.as_gnu_mut().unwrap().size = *b"-0000000001\0";
    });
    assert!(matches!(read(&words.finish()), Err(ArchiveError::Field { field: "size", .. })));
    let device = Archive::default().changed(b'4', "a", "", b"", |header| {
        header.set_device_major(4096).unwrap();
        header.set_device_minor(0).unwrap();
    });
    assert!(matches!(read(&device.finish()), Err(ArchiveError::Field { field: "device number", .. })));
    let kind = Archive::default().with(b'M', "a", "", b"");
    assert!(matches!(read(&kind.finish()), Err(ArchiveError::Unsupported { .. })));
}

#[test]
fn owners_out_of_range_are_refused() {
    for (id, is_fine) in [(i32::MAX as u64, true), (1 << 31, false), (u64::from(u32::MAX), false)] {
        let user = Archive::default().changed(b'0', "a", "", b"", |header| header.set_uid(id)).finish();
        let group = Archive::default().pax(&[("gid", id.to_string().as_bytes())]).file("a", b"").finish();
        for (archive, field) in [(user, "user id"), (group, "group id")] {
            let result = read(&archive);
            assert_eq!(result.is_ok(), is_fine, "{id}");
            assert!(
                is_fine || matches!(result, Err(ArchiveError::Field { field: named, .. }) if named == field)
            );
        }
    }
}

#[test]
fn numbers_that_are_left_blank_are_zero() {
    let blank = Archive::default().changed(b'5', "a", "", b"", |header| {
        let old = header.as_old_mut();
        (old.mode, old.uid, old.gid) = ([0; 8], *b"        ", [0; 8]);
        (old.size, old.mtime) = ([0; 12], [b' '; 12]);
    });
    let entries = read(&blank.file("after", b"").finish()).unwrap();
    let meta = &entries[0].meta;
    assert_eq!((meta.mode, meta.uid, meta.gid, meta.mtime_secs, entries.len()), (0, 0, 0, 0, 2));
}

#[test]
fn garbage_is_no_archive() {
    assert!(matches!(read(&[b'x'; 2048]), Err(ArchiveError::Garbage(0))));
    let mut bytes = Archive::default().file("a", b"1").finish();
    bytes[600] = 1;
    bytes[1024] = 1;
    assert!(matches!(read(&bytes), Err(ArchiveError::Garbage(1024))));
}

fn sparse(parts: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let change = |header: &mut tar::Header| {
        let gnu = header.as_gnu_mut().unwrap();
        for (slot, (at, len)) in gnu.sparse.iter_mut().zip(parts) {
            slot.offset.copy_from_slice(format!("{at:011o}\0").as_bytes());
            slot.numbytes.copy_from_slice(format!("{len:011o}\0").as_bytes());
        }
        gnu.realsize.copy_from_slice(format!("{size:011o}\0").as_bytes());
    };
    Archive::default().changed(b'S', "s", "", data, change).file("after", b"").finish()
}

#[test]
fn sparse_files_have_their_data_where_the_map_says() {
    let entries = read(&sparse(&[(1000, 3), (5000, 2), (9000, 0)], 9000, b"abcde")).unwrap();
    let EntryKind::File(content) = &entries[0].kind else { panic!("a file") };
    let extents: Vec<_> = content.extents.iter().map(|extent| (extent.at, extent.from, extent.len)).collect();
    assert_eq!((content.size, extents), (9000, vec![(1000, 512, 3), (5000, 515, 2)]));
    assert_eq!(entries[1].path, b"after");
}

#[test]
fn maps_that_lie_are_refused() {
    for (parts, size) in [
        (vec![(1000, 3), (999, 2)], 9000),
        (vec![(1000, 3), (1002, 2)], 9000),
        (vec![(0, 5)], 4),
        (vec![(0, 4)], 9000),
        (vec![(0, 6)], 9000),
    ] {
        let read = read(&sparse(&parts, size, b"abcde"));
        assert!(matches!(read, Err(ArchiveError::Field { .. })), "{parts:?}");
    }
}

/// A sparse file of 9000 bytes as PAX records describe it, and a file after it.
fn sparse_by_records(records: &[(&str, &str)], data: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
    read(&Archive::default().pax(&records).file("GNUSparseFile.7/s", data).file("after", b"").finish())
}

fn map_in_front(map: &str, data: &[u8]) -> Vec<u8> {
    let mut stored = map.as_bytes().to_vec();
    stored.resize(stored.len().next_multiple_of(512), 0);
    [&stored, data].concat()
}

#[test]
fn sparse_files_of_pax_archives_keep_their_holes() {
    let named = [("GNU.sparse.name", "d/s"), ("GNU.sparse.numblocks", "3")];
    let pairs = [("1000", "3"), ("5000", "2"), ("9000", "0")];
    let pairs = pairs.map(|(at, len)| [("GNU.sparse.offset", at), ("GNU.sparse.numbytes", len)]);
    let size = [("GNU.sparse.size", "9000")];
    let map = [("GNU.sparse.map", "1000,3,5000,2,9000,0")];
    let version = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9000")];
    let front = map_in_front("3\n1000\n3\n5000\n2\n9000\n0\n", b"abcde");
    for (records, data, skipped) in [
        ([&size[..], &named, &pairs.concat()].concat(), b"abcde".to_vec(), 0),
        ([&size[..], &named, &map].concat(), b"abcde".to_vec(), 0),
        ([&version[..], &named[..1]].concat(), front, 512),
    ] {
        let entries = sparse_by_records(&records, &data).unwrap();
        let EntryKind::File(content) = &entries[0].kind else { panic!("a file") };
        let extents: Vec<_> = content.extents.iter().map(|part| (part.at, part.from, part.len)).collect();
        // Two blocks are the records, one is the header.
        let from = extents[0].1;
        assert_eq!((content.size, &extents[..]), (9000, &[(1000, from, 3), (5000, from + 3, 2)][..]));
        assert_eq!(from, 512 * 3 + skipped);
        assert_eq!((&entries[0].path[..], &entries[1].path[..]), (&b"d/s"[..], &b"after"[..]));
    }
}

#[test]
fn hostile_maps_of_pax_archives_are_refused() {
    let size = ("GNU.sparse.size", "9000");
    let maps = [
        "1000,3,999,2",
        "1000,3,1002,2",
        "0,4",
        "0,6",
        "8999,5",
        "0,5,1",
        "x,5",
        "0,-5",
        "0,5,,",
        "18446744073709551615,5",
    ];
    for map in maps {
        let read = sparse_by_records(&[size, ("GNU.sparse.map", map)], b"abcde");
        assert!(matches!(read, Err(ArchiveError::Field { .. })), "{map}");
    }
    for records in [
        &[("GNU.sparse.map", "0,5")][..],
        &[size, ("GNU.sparse.map", "0,5"), ("GNU.sparse.numblocks", "2")],
        &[size, ("GNU.sparse.offset", "0"), ("GNU.sparse.offset", "5")],
        &[size, ("GNU.sparse.numbytes", "5")],
        &[size, ("GNU.sparse.map", "0,5"), ("GNU.sparse.major", "2")],
        &[size, ("GNU.sparse.map", "0,5"), ("GNU.sparse.surprise", "1")],
    ] {
        assert!(
            matches!(sparse_by_records(records, b"abcde"), Err(ArchiveError::Field { .. })),
            "{records:?}"
        );
    }
    let front = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9000")];
    for map in [
        "1\n0\n",
        "",
        "2\n0\n5\n",
        "1\n0\n6\n",
        "-1\n",
        "1\n0 \n5\n",
        "43691\n",
        "000000000000000000001\n0\n5\n",
    ] {
        let read = sparse_by_records(&front, &map_in_front(map, b"abcde"));
        assert!(matches!(read, Err(ArchiveError::Field { .. })), "{map}");
    }
}

#[test]
fn maps_are_limited_at_the_limit() {
    let map = |parts: usize| vec!["0,0"; parts].join(",");
    let read = |map: &str| sparse_by_records(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", map)], b"");
    assert!(read(&map(43_690)).is_ok());
    assert!(matches!(read(&map(43_691)), Err(ArchiveError::Field { .. })));
    let front = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")];
    let whole = format!("43690\n{}", "0\n".repeat(2 * 43_690));
    assert!(sparse_by_records(&front, &map_in_front(&whole, b"")).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        drop(read(&bytes));
    }

    #[test]
    fn no_header_makes_the_reader_panic(
        kind in prop::sample::select(b"0123456xgLKSVD7".to_vec()),
        noise in prop::collection::vec((0..512_usize, any::<u8>()), 0..20),
        data in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let change = |header: &mut tar::Header| {
            for (at, byte) in noise {
                header.as_mut_bytes()[at] = byte;
            }
        };
        let bytes = Archive::default().changed(kind, "name", "link", &data, change).finish();
        if let Ok(entries) = read(&bytes) {
            for entry in entries {
                prop_assert!(!entry.path.split(|byte| *byte == b'/').any(|part| part == b".."));
                if let EntryKind::File(content) = entry.kind {
                    let last = content.extents.iter().map(|extent| extent.from + extent.len).max();
                    prop_assert!(last.unwrap_or(0) <= bytes.len() as u64);
                }
            }
        }
    }
}
