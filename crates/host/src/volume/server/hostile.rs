//! A guest's kernel that was taken over: raw messages, without the confinement of threads, which is a layer of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use super::*;

const SECRET: &str = "what nobody in the sandbox may see";
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const REMOVEXATTR: u32 = 24;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const CREATE: u32 = 35;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;
const RENAME2: u32 = 45;
const COPY: u32 = 47;
const ROOT: u64 = protocol::ROOT;

/// A volume, and beside it what must stay as it is.
struct Scene {
    server: Server,
    outside: TempDir,
}

impl Scene {
    fn new(read_only: bool) -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), SECRET).unwrap();
        let volume = outside.path().join("volume");
        fs::create_dir_all(volume.join("dir")).unwrap();
        fs::write(volume.join("file"), "content").unwrap();
        fs::write(volume.join("dir/inner"), "inner").unwrap();
        symlink("/etc/passwd", volume.join("passwd")).unwrap();
        symlink("../secret", volume.join("link")).unwrap();
        symlink("..", volume.join("up")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, volume.join("fifo"), fifo, Mode::RUSR, 0).unwrap();
        let root = rustix::fs::open(&volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let budget = Arc::new(tokio::sync::Semaphore::new(2000));
        Self { server: Server::new(Tree::new(Arc::new(root), read_only, budget).unwrap()), outside }
    }

    fn volume(&self) -> PathBuf {
        self.outside.path().join("volume")
    }

    fn ask(&self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let reply = self.server.serve(&message(opcode, node, body)).unwrap().unwrap();
        let error = i32::from_ne_bytes(reply[4..8].try_into().unwrap());
        if error == 0 { Ok(reply[16..].to_vec()) } else { Err(Errno::from_raw_os_error(-error)) }
    }

    /// The node of a name, and the mode of its file.
    fn lookup(&self, parent: u64, name: &str) -> Result<(u64, u32), Errno> {
        let entry = self.ask(LOOKUP, parent, &text(name))?;
        Ok((number(&entry[..8]), u32::from_ne_bytes(entry[100..104].try_into().unwrap())))
    }

    fn assert_nothing_outside_changed(&self) {
        assert_eq!(fs::read_to_string(self.outside.path().join("secret")).unwrap(), SECRET);
        let mode = fs::metadata(self.outside.path().join("secret")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let names = fs::read_dir(self.outside.path()).unwrap().count();
        assert_eq!(names, 2, "something was made or removed outside the volume");
    }
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let mut message = [length.to_ne_bytes(), opcode.to_ne_bytes()].concat();
    message.extend(7u64.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().unwrap())
}

fn words(words: &[u32], then: &[u8]) -> Vec<u8> {
    [words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>(), then.to_vec()].concat()
}

/// A `SETATTR` that changes what the bits of `valid` say.
fn set_attr(valid: u32, size: u32, mode: u32) -> Vec<u8> {
    words(&[valid, 0, 0, 0, size, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0], &[])
}

#[test]
fn the_first_message_agrees_on_what_is_wanted_and_no_more() {
    let scene = Scene::new(false);
    let agreed = scene.ask(INIT, 0, &words(&[7, 40, 128 * 1024, u32::MAX], &[0; 48])).unwrap();
    assert_eq!(agreed.len(), 64);
    assert_eq!(u32::from_ne_bytes(agreed[12..16].try_into().unwrap()), WANTED);
    assert_eq!(scene.ask(INIT, 0, &words(&[7, 34, 0, 0], &[])), Err(Errno::PROTO));
    assert_eq!(scene.ask(INIT, 0, &words(&[8, 0, 0, 0], &[])), Err(Errno::PROTO));
}

#[test]
fn no_link_is_followed() {
    let scene = Scene::new(false);
    for (name, target) in [("passwd", "/etc/passwd"), ("link", "../secret"), ("up", "..")] {
        let (node, mode) = scene.lookup(ROOT, name).unwrap();
        assert_eq!(mode & 0o170_000, 0o120_000, "{name}: it is the link itself");
        assert_eq!(scene.ask(READLINK, node, &[]).unwrap(), target.as_bytes());
        for flags in [0, 1, 2, 0o1000] {
            assert_eq!(scene.ask(OPEN, node, &words(&[flags, 0], &[])), Err(Errno::LOOP), "{name}");
        }
        assert_eq!(scene.ask(OPENDIR, node, &[]), Err(Errno::LOOP));
        assert_eq!(scene.lookup(node, "secret"), Err(Errno::NOTDIR), "{name}");
        let create = words(&[2, 0o644, 0, 0], &text("made"));
        assert_eq!(scene.ask(CREATE, node, &create), Err(Errno::NOTDIR));
        assert_eq!(scene.ask(SETATTR, node, &set_attr(8, 0, 0)), Err(Errno::LOOP));
        assert_eq!(scene.ask(SETATTR, node, &set_attr(1, 0, 0o777)), Err(Errno::OPNOTSUPP));
        let hard = [&node.to_ne_bytes()[..], &text("hard")].concat();
        assert_eq!(scene.ask(LINK, ROOT, &hard), Err(Errno::PERM));
        // As a name it is there already, and what it leads to is not touched.
        assert_eq!(scene.ask(CREATE, ROOT, &words(&[2, 0o644, 0, 0], &text(name))), Err(Errno::LOOP));
    }
    scene.assert_nothing_outside_changed();
}

/// Another sandbox, or a program on the host, puts a link where a directory was.
#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let scene = Scene::new(false);
    let (dir, _) = scene.lookup(ROOT, "dir").unwrap();
    let (inner, _) = scene.lookup(dir, "inner").unwrap();
    let outside = scene.outside.path();
    fs::write(outside.join("volume/inner"), "").unwrap();
    fs::rename(outside.join("volume/dir"), outside.join("volume/moved")).unwrap();
    symlink("..", outside.join("volume/dir")).unwrap();
    assert_eq!(scene.lookup(dir, "secret"), Err(Errno::NOENT), "it is the directory that it was");

    // With the descriptors gone, it has to be found again by its name.
    for number in 0..600 {
        fs::write(outside.join(format!("volume/{number}")), "").unwrap();
        scene.lookup(ROOT, &number.to_string()).unwrap();
    }
    for node in [dir, inner] {
        assert_eq!(scene.ask(GETATTR, node, &[0; 16]), Err(Errno::STALE));
        assert_eq!(scene.lookup(node, "secret"), Err(Errno::STALE));
        assert_eq!(scene.ask(OPEN, node, &words(&[0, 0], &[])), Err(Errno::STALE));
    }
    let (again, mode) = scene.lookup(ROOT, "dir").unwrap();
    assert!(again != dir && mode & 0o170_000 == 0o120_000);
    scene.assert_nothing_outside_changed();
}

#[test]
fn only_files_and_directories_are_opened_or_made() {
    let scene = Scene::new(false);
    let (fifo, mode) = scene.lookup(ROOT, "fifo").unwrap();
    assert_eq!(mode & 0o170_000, 0o010_000);
    // Opened, it would wait for its other end.
    assert_eq!(scene.ask(OPEN, fifo, &words(&[0, 0], &[])), Err(Errno::PERM));
    for kind in [0o010_000, 0o020_000, 0o060_000, 0o140_000, 0] {
        let node = words(&[kind | 0o666, 0x0103, 0, 0], &text("made"));
        assert_eq!(scene.ask(MKNOD, ROOT, &node), Err(Errno::PERM), "{kind:o}");
    }
    assert_eq!(scene.lookup(ROOT, "made"), Err(Errno::NOENT));
    let whiteout = words(&[1, 0, 4, 0], &[text("file"), text("gone")].concat());
    assert_eq!(scene.ask(RENAME2, ROOT, &whiteout), Err(Errno::INVAL));
}

#[test]
fn no_file_gets_the_rights_of_its_owner() {
    let scene = Scene::new(false);
    let create = words(&[2, 0o106_755, 0, 0], &text("made"));
    scene.ask(CREATE, ROOT, &create).unwrap();
    scene.ask(MKNOD, ROOT, &words(&[0o106_755, 0, 0, 0], &text("node"))).unwrap();
    let (file, _) = scene.lookup(ROOT, "file").unwrap();
    scene.ask(SETATTR, file, &set_attr(1, 0, 0o106_755)).unwrap();
    for name in ["made", "node", "file"] {
        let mode = fs::metadata(scene.volume().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
    for name in ["security.capability", "trusted.x", "system.posix_acl_access", "user"] {
        let set = words(&[1, 0], &[text(name), vec![1]].concat());
        assert_eq!(scene.ask(SETXATTR, file, &set), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(scene.ask(GETXATTR, file, &words(&[64, 0], &text(name))), Err(Errno::OPNOTSUPP));
        assert_eq!(scene.ask(REMOVEXATTR, file, &text(name)), Err(Errno::OPNOTSUPP));
    }
}

#[test]
fn a_read_only_volume_is_read_only_whatever_is_asked() {
    let scene = Scene::new(true);
    let (file, _) = scene.lookup(ROOT, "file").unwrap();
    let opened = scene.ask(OPEN, file, &words(&[0, 0], &[])).unwrap();
    let handle = number(&opened[..8]);
    let both = [text("file"), text("other")].concat();
    let with_handle = |rest: &[u8]| [&handle.to_ne_bytes()[..], rest].concat();
    let mut copy = with_handle(&[0; 16]);
    copy.extend(with_handle(&[0; 24]));
    let asked = [
        (SETATTR, file, set_attr(1, 0, 0o777)),
        (SETATTR, file, set_attr(8, 0, 0)),
        (SYMLINK, ROOT, both.clone()),
        (MKNOD, ROOT, words(&[0o100_644, 0, 0, 0], &text("other"))),
        (MKDIR, ROOT, words(&[0o755, 0], &text("other"))),
        (UNLINK, ROOT, text("file")),
        (RMDIR, ROOT, text("dir")),
        (RENAME, ROOT, [&ROOT.to_ne_bytes()[..], &both].concat()),
        (RENAME2, ROOT, [&ROOT.to_ne_bytes()[..], &[0; 8], &both].concat()),
        (LINK, ROOT, [&file.to_ne_bytes()[..], &text("other")].concat()),
        (OPEN, file, words(&[1, 0], &[])),
        (OPEN, file, words(&[2, 0], &[])),
        (OPEN, file, words(&[0o1000, 0], &[])),
        (CREATE, ROOT, words(&[0, 0o644, 0, 0], &text("file"))),
        (WRITE, file, with_handle(&words(&[0, 0, 1, 0, 0, 0, 0, 0], b"x"))),
        (SETXATTR, file, words(&[1, 0], &[text("user.x"), vec![1]].concat())),
        (REMOVEXATTR, file, text("user.x")),
        (FALLOCATE, file, with_handle(&[0; 24])),
        (COPY, file, copy),
    ];
    for (opcode, node, body) in asked {
        assert_eq!(scene.ask(opcode, node, &body), Err(Errno::ROFS), "{opcode}");
    }
    let read = scene.ask(READ, file, &with_handle(&words(&[0, 0, 100, 0, 0, 0, 0, 0], &[])));
    assert_eq!(read.unwrap(), b"content");
    assert_eq!(fs::read_dir(scene.volume()).unwrap().count(), 6);
}

#[test]
fn what_is_unknown_is_refused() {
    let scene = Scene::new(false);
    for node in [0, 2, 99, u64::MAX] {
        assert_eq!(scene.ask(GETATTR, node, &[0; 16]), Err(Errno::STALE));
        assert_eq!(scene.lookup(node, "file"), Err(Errno::STALE));
        assert_eq!(scene.ask(READ, node, &[9; 40]), Err(Errno::BADF));
        assert_eq!(scene.ask(READDIRPLUS, node, &[9; 40]), Err(Errno::BADF));
    }
    let (file, _) = scene.lookup(ROOT, "file").unwrap();
    let opened = scene.ask(OPEN, file, &words(&[2, 0], &[])).unwrap();
    let write = |offset: u64, size: u32, data: &[u8]| {
        let fields = [number(&opened[..8]).to_ne_bytes(), offset.to_ne_bytes()].concat();
        let body = [&fields[..], &words(&[size, 0, 0, 0, 0, 0], data)].concat();
        scene.ask(WRITE, file, &body)
    };
    assert_eq!(write(0, 2, b"x"), Err(Errno::INVAL));
    assert_eq!(write(u64::MAX, 1, b"x"), Err(Errno::FBIG));
    assert_eq!(write(i64::MAX.unsigned_abs(), 1, b"x"), Err(Errno::FBIG));
    let largest = vec![b'x'; MAX_VOLUME_IO_BYTES];
    let size = u32::try_from(largest.len()).unwrap();
    assert!(write(0, size, &largest).is_ok());
    assert_eq!(write(0, size + 1, &[&largest[..], b"x"].concat()), Err(Errno::INVAL));
}

#[test]
fn a_file_that_lost_its_name_can_be_used_while_it_is_open() {
    let scene = Scene::new(false);
    let (file, _) = scene.lookup(ROOT, "file").unwrap();
    scene.ask(OPEN, file, &words(&[2, 0], &[])).unwrap();
    scene.ask(UNLINK, ROOT, &text("file")).unwrap();
    for number in 0..600 {
        fs::write(scene.volume().join(number.to_string()), "").unwrap();
        scene.lookup(ROOT, &number.to_string()).unwrap();
    }
    assert!(scene.ask(GETATTR, file, &[0; 16]).is_ok());
    scene.ask(SETATTR, file, &set_attr(8, 3, 0)).unwrap();
}

/// Requests that make some sense, so that they get further than noise.
fn requests() -> impl Strategy<Value = Vec<(u32, u64, Vec<u8>)>> {
    let names =
        ["..", ".", "/", "../secret", "/etc/passwd", "file", "dir", "inner", "link", "up", "fifo", "new"];
    let part = prop_oneof![
        prop::sample::select(names.to_vec()).prop_map(text),
        (0u64..8).prop_map(|number| number.to_ne_bytes().to_vec()),
        any::<u32>().prop_map(|word| word.to_ne_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..24),
    ];
    let body = prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat());
    prop::collection::vec((0u32..55, 0u64..8, body), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_nothing_outside_is_read_or_changed(requests in requests()) {
        let scene = Scene::new(false);
        for (opcode, node, body) in requests {
            let reply = scene.server.serve(&message(opcode, node, &body)).unwrap().unwrap_or_default();
            let seen = reply.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
            prop_assert!(!seen, "opcode {}", opcode);
            prop_assert!(reply.len() <= bouvet_wire::limits::MAX_FUSE_MESSAGE_BYTES);
        }
        scene.assert_nothing_outside_changed();
    }

    #[test]
    fn any_bytes_are_answered_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        Scene::new(true).server.serve(&bytes).ok();
    }
}
