use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::super::{PackError, Source, pack};
use super::links::MAX_LINKS;
use super::*;

fn packed(path: &Path, name: &str) -> (Vec<u8>, Vec<Skipped>) {
    let (mut out, mut skipped) = (Vec::new(), Vec::new());
    let source = Source { path: path.to_owned(), name: name.into() };
    pack(&source, &mut out, &mut |one| skipped.push(one)).unwrap();
    (out, skipped)
}

fn into(path: &Path, name: Option<&str>, links: Links) -> Destination {
    let name = name.map(PathBuf::from);
    Destination { path: path.to_owned(), name, owner: Owner::Process, links, mode_mask: 0o1777 }
}

fn unpacked(archive: &[u8], destination: &Destination) -> Result<Vec<Skipped>, UnpackError> {
    let mut skipped = Vec::new();
    unpack(archive, destination, &mut |one| skipped.push(one)).map(|_| skipped)
}

/// An archive of entries: kind, name, target or content.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = Header::new_gnu();
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(if is_link { 0 } else { text.len() as u64 });
        if is_link {
            header.set_link_name_literal(text).unwrap();
        }
        header.set_cksum();
        let content = if is_link { "" } else { text };
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

#[test]
fn tree_survives_with_links_modes_times_and_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let deep = from.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("a"), "content").unwrap();
    fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(from.join("a"), deep.join("b")).unwrap();
    symlink("./x//../a", deep.join("l")).unwrap();
    symlink("t".repeat(300), deep.join("long")).unwrap();
    let sparse = File::create(from.join("s")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"middle", 32 << 20).unwrap();
    drop(std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap());
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::open(&from).unwrap().set_modified(old).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o555)).unwrap();

    let (bytes, skipped) = packed(&from, "new");
    assert!(bytes.len() < 1 << 20, "holes are not sent: {} bytes", bytes.len());
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].path.ends_with("/socket") && skipped[0].reason == "is a socket");
    assert_eq!(unpacked(&bytes, &into(&to, Some("new"), Links::Refuse)).unwrap(), []);
    let new = to.join("new");
    let deep = new.join("d".repeat(200)).join("e".repeat(200));
    let about = fs::metadata(new.join("a")).unwrap();
    assert_eq!((about.mode() & 0o7777, about.nlink()), (0o750, 2), "nothing becomes setuid");
    assert_eq!(fs::metadata(deep.join("b")).unwrap().ino(), about.ino());
    assert_eq!(fs::read_link(deep.join("l")).unwrap(), Path::new("./x//../a"));
    assert_eq!(fs::read_link(deep.join("long")).unwrap(), PathBuf::from("t".repeat(300)));
    let sparse = fs::metadata(new.join("s")).unwrap();
    assert!(sparse.len() == 64 << 20 && sparse.blocks() * 512 < 1 << 20, "holes are kept");
    assert!(fs::read(new.join("s")).unwrap() == fs::read(from.join("s")).unwrap());
    let about = fs::metadata(&new).unwrap();
    assert_eq!((about.mode() & 0o7777, about.mtime()), (0o555, 1_000_000_000));
    // Directories that nobody may write to could not be removed.
    for dir in [&from, &new] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn content_of_directory_has_no_top_name() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("sub/f"), "1").unwrap();
    let (bytes, _) = packed(&from, CONTENT);
    let mut names = tar::Archive::new(&bytes[..]);
    let names: Vec<_> =
        names.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["./", "sub/", "sub/f"]);
    unpacked(&bytes, &into(&to, Some(CONTENT), Links::Refuse)).unwrap();
    assert_eq!(fs::read_to_string(to.join("sub/f")).unwrap(), "1");
}

#[test]
fn hostile_names_do_not_leave_the_destination() {
    let dir = tempfile::tempdir().unwrap();
    let (out, to) = (dir.path().join("out"), dir.path().join("to"));
    fs::create_dir(&out).unwrap();
    fs::write(out.join("secret"), "secret").unwrap();
    let refused: &[&[(EntryType, &str, &str)]] = &[
        &[(FILE, "top/../../out/x", "1")],
        &[(FILE, "/top/x", "1")],
        &[(FILE, "other", "1")],
        &[(FILE, "", "1")],
        &[(LINK, "top", "../out"), (FILE, "top/x", "1")],
        &[(LINK, "top/l", "../../out"), (FILE, "top/l/x", "1")],
        &[(LINK, "top/l", "../../out"), (EntryType::Directory, "top/l", "")],
        &[(HARD, "top/h", "../out/secret")],
        &[(HARD, "top/h", "top/there")],
        &[(LINK, "top/l", "../../out"), (HARD, "top/h", "top/l/secret")],
    ];
    for entries in refused {
        fs::create_dir_all(to.join("top")).unwrap();
        fs::write(to.join("top/there"), "old").unwrap();
        if entries[0].1 == "top" {
            fs::remove_dir_all(to.join("top")).unwrap();
        }
        let result = unpacked(&archive(entries), &into(&to, Some("top"), Links::Refuse));
        assert!(result.is_err(), "{entries:?}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{entries:?}");
        fs::remove_dir_all(&to).unwrap();
    }
    // A link in the way is replaced, and not written through; one made on the way is not followed.
    fs::create_dir_all(to.join("top")).unwrap();
    symlink("../../out/secret", to.join("top/f")).unwrap();
    unpacked(&archive(&[(FILE, "top/f", "new")]), &into(&to, Some("top"), Links::Refuse)).unwrap();
    let twice = archive(&[(LINK, "top/g", "../../out/secret"), (FILE, "top/g", "new")]);
    unpacked(&twice, &into(&to, Some("top"), Links::Refuse)).unwrap();
    assert_eq!(fs::read_to_string(out.join("secret")).unwrap(), "secret");
    assert!(fs::symlink_metadata(to.join("top/f")).unwrap().is_file());
}

#[test]
fn links_of_the_destination_are_followed_where_allowed() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
    symlink("usr/lib", dir.path().join("lib")).unwrap();
    let entries =
        [(EntryType::Directory, "lib/", ""), (FILE, "/lib/new/f", "1"), (HARD, "lib/h", "lib/new/f")];
    unpacked(&archive(&entries), &into(dir.path(), None, Links::Follow)).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("usr/lib/h")).unwrap(), "1");
    assert!(
        unpacked(&archive(&[(FILE, "lib/../../x", "1")]), &into(dir.path(), None, Links::Follow)).is_err()
    );
}

#[test]
fn links_of_the_archive_are_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (out, to) = (dir.path().join("out"), dir.path().join("to"));
    fs::create_dir(&out).unwrap();
    fs::write(out.join("secret"), "secret").unwrap();
    let absolute = out.to_str().unwrap();
    let through: &[&[(EntryType, &str, &str)]] = &[
        &[(LINK, "s", absolute), (FILE, "s/evil", "1")],
        &[(LINK, "s", absolute), (FILE, "/s/evil", "1")],
        &[(LINK, "s", "../out"), (FILE, "./s/new/evil", "1")],
        &[(LINK, "s", "../out"), (EntryType::Directory, "s", "")],
        &[(LINK, "s", absolute), (LINK, "s/l", "x")],
        &[(LINK, "s", absolute), (HARD, "h", "s/secret")],
        &[(LINK, "s", absolute), (FILE, "f", "1"), (HARD, "s/h", "f")],
        &[(LINK, "s", absolute), (LINK, "t", "s"), (FILE, "t/evil", "1")],
        &[(LINK, "s", absolute), (HARD, "h", "s"), (FILE, "h/evil", "1")],
        // By a link that was there before, to the one that the archive makes, or to its directory.
        &[(LINK, "s", absolute), (FILE, "old/evil", "1")],
        &[(LINK, "real/s", absolute), (FILE, "alias/s/evil", "1")],
    ];
    for links in [Links::Follow, Links::Refuse] {
        for entries in through {
            fs::create_dir_all(to.join("real")).unwrap();
            symlink("s", to.join("old")).unwrap();
            symlink("real", to.join("alias")).unwrap();
            let refused = unpacked(&archive(entries), &into(&to, None, links));
            assert!(refused.is_err(), "{links:?} {entries:?}");
            assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{links:?} {entries:?}");
            assert_eq!(fs::metadata(out.join("secret")).unwrap().nlink(), 1, "{links:?} {entries:?}");
            fs::remove_dir_all(&to).unwrap();
        }
    }
    fs::create_dir(&to).unwrap();
    let error = unpacked(&archive(through[0]), &into(&to, None, Links::Follow)).unwrap_err().to_string();
    assert_eq!(
        error,
        "`s/evil` is below a symbolic link that the archive made: nothing is written through it"
    );
}

#[test]
fn older_links_are_followed_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("real/deep")).unwrap();
    symlink(dir.path().join("real"), dir.path().join("l0")).unwrap();
    for n in 1..=MAX_LINKS {
        symlink(format!("./real/../l{}", n - 1), dir.path().join(format!("l{n}"))).unwrap();
    }
    let write = |n: usize| {
        let name = format!("l{n}/deep/f");
        unpacked(&archive(&[(FILE, &name, "1")]), &into(dir.path(), None, Links::Follow))
    };
    write(MAX_LINKS - 1).unwrap();
    assert!(dir.path().join("real/deep/f").exists());
    assert!(matches!(write(MAX_LINKS), Err(UnpackError::Through(_))));
}

#[test]
fn hard_links_without_target_are_refused_by_name() {
    for links in [Links::Follow, Links::Refuse] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), "old").unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        for (name, target) in [
            ("h", "missing"),
            ("h", "no/where"),
            ("h", "/etc/passwd"),
            ("h", "h"),
            ("old", "old"),
            ("old", "./missing"),
            ("h", "d"),
            ("h", "."),
        ] {
            let error = unpacked(&archive(&[(HARD, name, target)]), &into(dir.path(), None, links));
            let error = error.unwrap_err().to_string();
            let is_absolute = links == Links::Refuse && target.starts_with('/');
            let start = format!("the hard link `{name}` leads to `{target}`, which ");
            assert!(is_absolute || error.starts_with(&start), "{links:?} {name} {target}: {error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is made on the way to a target");
        assert_eq!(fs::read_to_string(dir.path().join("old")).unwrap(), "old");
    }
}

#[test]
fn pipes_and_sockets_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mode, at) = (Mode::from_raw_mode(0o600), rustix::fs::CWD);
    rustix::fs::mknodat(at, dir.path().join("p"), FileType::Fifo, mode, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap());
    for links in [Links::Follow, Links::Refuse] {
        for name in ["p", "s"] {
            for entry in [(FILE, name, "1"), (LINK, name, "x")] {
                let entries = [(FILE, "f", "1"), entry];
                let error = unpacked(&archive(&entries), &into(dir.path(), None, links)).unwrap_err();
                assert!(matches!(error, UnpackError::Kind { .. }), "{error}");
            }
        }
    }
    assert!(!fs::symlink_metadata(dir.path().join("p")).unwrap().is_file());
    assert!(!fs::symlink_metadata(dir.path().join("s")).unwrap().is_file());
}

#[test]
fn kinds_do_not_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("f"), "old").unwrap();
    let destination = into(dir.path(), None, Links::Refuse);
    for entries in [(FILE, "d", "1"), (LINK, "d", "x"), (EntryType::Directory, "f", "")] {
        let error = unpacked(&archive(&[entries]), &destination).unwrap_err();
        assert!(matches!(error, UnpackError::Kind { .. }), "{error}");
    }
    let specials = [(EntryType::Fifo, "p", ""), (EntryType::Char, "c", ""), (FILE, "f", "new")];
    let skipped = unpacked(&archive(&specials), &destination).unwrap();
    assert_eq!(skipped.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), ["p", "c"]);
    assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "new");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn broken_streams_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let destination = into(dir.path(), None, Links::Refuse);
    let error = |bytes: &[u8]| unpacked(bytes, &destination).unwrap_err().to_string();
    assert_eq!(error(b""), "this is not a tar archive: there is no header at byte 0");
    assert_eq!(error(&[b'x'; 2048]), "this is not a tar archive: there is no header at byte 0");
    assert_eq!(error(&[0x1f, 0x8b, 8, 0]), "the archive is compressed by gzip");
    let whole = archive(&[(FILE, "f", &"x".repeat(2000))]);
    assert!(unpacked(&whole[..1024], &destination).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no half file is left");
    let mut long = Header::new_gnu();
    long.set_entry_type(EntryType::GNULongName);
    long.set_size(1 << 40);
    long.set_cksum();
    assert!(error(long.as_bytes()).starts_with("the extension at byte 0 has 1099511627776 bytes; 8192 are"));
    let missing = Source { path: dir.path().join("none"), name: "x".into() };
    let error = pack(&missing, &mut Vec::new(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, PackError::Read(..)));
}

/// PAX records: key and value of each.
type Records<'a> = &'a [(&'a str, &'a str)];

/// A PAX archive of files: records, name and content of each.
fn by_records(entries: &[(Records<'_>, &str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (records, name, content) in entries {
        let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
        builder.append_pax_extensions(records).unwrap();
        let mut header = Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn paths_are_limited_at_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let deep = format!("{}a/", format!("{}/", "x".repeat(255)).repeat(15));
    for (length, is_fine) in [(254, true), (255, false)] {
        let path = format!("{deep}{}", "y".repeat(length));
        assert_eq!(path.len() <= 4096, is_fine);
        let unpacked = |key| {
            let stream = by_records(&[(&[(key, &path)], "short", b"1")]);
            unpacked(&stream, &into(dir.path(), None, Links::Refuse))
        };
        assert_eq!(unpacked("path").is_ok(), is_fine, "{length}");
        let refused = unpacked("linkpath");
        let is_refused = matches!(refused, Err(UnpackError::Archive(ReadError::TooLong(_, "link target"))));
        assert_eq!(is_refused, !is_fine, "{length}");
    }
}

#[test]
fn entries_and_directories_are_limited_at_the_limit() {
    let within = |max_entries, max_directories_bytes, entries: &[(EntryType, &str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { max_entries, max_directories_bytes };
        let destination = into(dir.path(), None, Links::Refuse);
        unpack_within(&bounds, &archive(entries)[..], &destination, &mut |_| {})
    };
    // A file, and two directories that nothing describes.
    let deep = &[(FILE, "a/b/c", "1")];
    assert_eq!(within(3, 0, deep).unwrap(), 1);
    assert!(matches!(within(2, 0, deep), Err(UnpackError::TooMany(2))));
    let directory = |name| (EntryType::Directory, name, "");
    let one = DIRECTORY_BYTES + 1;
    assert!(within(9, 2 * one, &[directory("a"), directory("b")]).is_ok());
    let refused = within(9, 2 * one - 1, &[directory("a"), directory("b")]);
    assert!(matches!(refused, Err(UnpackError::TooManyDirectories(max)) if max == 2 * one - 1));
    // The same one again takes no more memory.
    assert_eq!(within(9, one, &[directory("a"), directory("./a/"), directory("a")]).unwrap(), 3);
}

#[test]
fn owners_out_of_range_are_refused_where_used() {
    let dir = tempfile::tempdir().unwrap();
    let ours = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    for (id, is_fine) in [("2147483647", true), ("2147483648", false), ("4294967295", false)] {
        for key in ["uid", "gid"] {
            let stream = by_records(&[(&[(key, id)], "f", b"1")]);
            let mut destination = into(dir.path(), None, Links::Refuse);
            assert_eq!(unpacked(&stream, &destination).unwrap(), [], "the owner is not used");
            destination.owner = Owner::Archive;
            let refused = matches!(unpacked(&stream, &destination), Err(UnpackError::Owner { .. }));
            assert_eq!(refused, !is_fine, "{key} {id}");
        }
    }
    // A directory that is described after what is in it is its owner's too.
    let [uid, gid] = if ours.0 == 0 { [70_000, 70_001] } else { [ours.0, ours.1] };
    let (user, group) = (uid.to_string(), gid.to_string());
    let owned = [("uid", &*user), ("gid", &*group)];
    let stream = by_records(&[(&owned, "d/f", b"1"), (&owned, "d/", b"")]);
    unpacked(&stream, &Destination { owner: Owner::Archive, ..into(dir.path(), None, Links::Refuse) })
        .unwrap();
    for name in ["d", "d/f"] {
        let about = fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!((about.uid(), about.gid()), (uid, gid), "{name}");
    }
}

#[test]
fn sizes_beyond_any_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let destination = into(dir.path(), None, Links::Refuse);
    for (size, kind) in
        [(i64::MAX as u64, FILE), (1 << 63, FILE), (u64::MAX, FILE), (u64::MAX - 100, EntryType::XHeader)]
    {
        let mut header = Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0);
        header.set_cksum();
        let error = unpacked(header.as_bytes(), &destination).unwrap_err();
        let is_size = matches!(error, UnpackError::Archive(ReadError::Field(0, "size")));
        assert_eq!(is_size, size > i64::MAX as u64, "{size}: {error}");
        let stream = by_records(&[(&[("size", &size.to_string())], "f", b"")]);
        let error = unpacked(&stream, &destination).unwrap_err();
        let is_record = matches!(error, UnpackError::Archive(ReadError::Field(0, "PAX record")));
        assert_eq!(is_record, size > i64::MAX as u64, "{size}: {error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn sparse_files_of_pax_archives_keep_their_holes() {
    const SIZE: usize = 32 << 20;
    let (size, end) = (SIZE.to_string(), (SIZE - 2).to_string());
    let map = format!("4096,3,{end},2");
    let front = |map: &str, data: &str| {
        let mut stored = map.as_bytes().to_vec();
        stored.resize(stored.len().next_multiple_of(512), 0);
        [&stored, data.as_bytes()].concat()
    };
    let text = front(&format!("2\n4096\n3\n{end}\n2\n"), "abcde");
    let old: &[(&str, &str)] = &[
        ("GNU.sparse.size", &size),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "4096"),
        ("GNU.sparse.numbytes", "3"),
        ("GNU.sparse.offset", &end),
        ("GNU.sparse.numbytes", "2"),
        ("path", "d/s"),
    ];
    let middle = &[("GNU.sparse.name", "d/s"), ("GNU.sparse.size", &*size), ("GNU.sparse.map", &map)];
    let new: &[(&str, &str)] = &[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "d/s"),
        ("GNU.sparse.realsize", &size),
    ];
    for (records, data) in [(old, &b"abcde"[..]), (middle, b"abcde"), (new, &text)] {
        let dir = tempfile::tempdir().unwrap();
        let stream = by_records(&[(records, "GNUSparseFile.7/s", data), (&[], "after", b"1")]);
        unpacked(&stream, &into(dir.path(), None, Links::Refuse)).unwrap();
        let file = fs::read(dir.path().join("d/s")).unwrap();
        assert_eq!((file.len(), &file[4096..4100], &file[SIZE - 3..]), (SIZE, &b"abc\0"[..], &b"\0de"[..]));
        assert_eq!(file.iter().filter(|byte| **byte != 0).count(), 5);
        assert!(fs::metadata(dir.path().join("d/s")).unwrap().blocks() * 512 < 1 << 20, "holes are kept");
        assert_eq!(fs::read(dir.path().join("after")).unwrap(), b"1");
    }
    let lies = front("2\n4096\n3\n4097\n2\n", "abcde");
    let short = front("1\n0\n9\n", "abcde");
    let hostile: &[(Records<'_>, &[u8])] = &[
        (&old[..6], b"abcdef"),
        (&old[1..], b"abcde"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5,4,5")], b"abcdefghij"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "18446744073709551615,5")], b"abcde"),
        (&[("GNU.sparse.size", "9223372036854775808"), ("GNU.sparse.map", "0,5")], b"abcde"),
        (new, &lies),
        (new, &short),
        (new, b""),
    ];
    for (records, data) in hostile {
        let dir = tempfile::tempdir().unwrap();
        let stream = by_records(&[(records, "s", data)]);
        let error = unpacked(&stream, &into(dir.path(), None, Links::Refuse)).unwrap_err();
        let is_map = matches!(error, UnpackError::Archive(ReadError::Field(1024, "map of a sparse file")));
        assert!(is_map, "{records:?}: {error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..4096), fix in any::<bool>(), huge in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        if fix && bytes.len() >= 512 {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[..512]);
            if !huge {
                header.set_size(u64::try_from(bytes.len() - 512).unwrap());
            }
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
        }
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        // Whatever comes of it: nothing beside the destination.
        unpacked(&bytes, &into(&to, None, Links::Refuse)).ok();
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
