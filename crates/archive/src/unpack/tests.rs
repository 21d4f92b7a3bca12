use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::super::{PackError, Source, pack};
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

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..4096), fix in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        if fix && bytes.len() >= 512 {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[..512]);
            header.set_size(u64::try_from(bytes.len() - 512).unwrap());
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
