//! Volumes: directories and files of the host in sandboxes, on any engine of VMs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use bouvet_host::{ExecRequest, PoolOptions, Program, Sandbox, VolumeError, VolumeSpec, Volumes};
use tempfile::TempDir;

use crate::drive::{assert_usable, eventually, patient, printed, run, sh};
use crate::site::{Site, Vmm, small};

/// Makes a test of every case about volumes, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_volumes {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            volumes_show_a_directory_and_a_file_both_ways
            files_in_volumes_are_like_others
            a_read_only_volume_stays_so_whatever_the_guest_mounts
            nothing_outside_a_volume_is_reached
            sandboxes_that_share_a_volume_see_each_other_s_changes
            volumes_that_are_taken_away_leave_a_usable_sandbox
            nothing_of_volumes_is_left_when_their_sandbox_ends
        }
    };
}

fn spec(host: &Path, guest: &str, read_only: bool) -> VolumeSpec {
    VolumeSpec { host: host.into(), guest: guest.into(), read_only }
}

/// A sandbox with a directory of the host at `/data`.
async fn with_volume(site: &Site, read_only: bool) -> (Sandbox, TempDir, Volumes) {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = site.host.create(small()).await.unwrap();
    let volumes = sandbox.mount(&[spec(dir.path(), "/data", read_only)]).await.unwrap();
    (sandbox, dir, volumes)
}

/// What `command` says when it fails, as it must.
async fn refused(sandbox: &Sandbox, command: &str) -> String {
    let result = run(sandbox, Program::Command, command).await;
    assert_ne!(result.exit.exit_code, 0, "`{command}` succeeded: {}", result.stdout.text());
    result.stderr.text()
}

/// Waits until this process has nothing open below `dir` any more.
async fn until_closed(dir: &Path) {
    let deadline = Instant::now() + patient(30);
    let is_open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        links.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(dir)))
    };
    while is_open() {
        assert!(Instant::now() < deadline, "files below {} are open still", dir.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn volumes_show_a_directory_and_a_file_both_ways(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, dir, _volumes) = with_volume(&site, false).await;
    fs::write(dir.path().join("from-host"), "hello").unwrap();
    assert_eq!(sh(&sandbox, "cat /data/from-host; echo there >/data/from-guest").await, "hello");
    assert_eq!(fs::read_to_string(dir.path().join("from-guest")).unwrap(), "there\n");
    fs::write(dir.path().join("from-host"), "changed").unwrap();
    assert_eq!(sh(&sandbox, "cat /data/from-host").await, "changed");
    // One that is open all the while sees it a second later.
    let follow = "import time\nfile = open('/data/followed')\nassert file.read() == 'one'\n\
        open('/data/ready', 'w').close()\nuntil = time.time() + 50\nseen = ''\n\
        while not seen and time.time() < until: time.sleep(0.2); seen = file.read()\nprint(seen)";
    fs::write(dir.path().join("followed"), "one").unwrap();
    let change = async {
        while !dir.path().join("ready").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fs::write(dir.path().join("followed"), "one and two").unwrap();
    };
    let (seen, ()) = tokio::join!(printed(&sandbox, Program::Python, follow), change);
    assert_eq!(seen, " and two");
    // The service's own way to files leads there too.
    sandbox.write("/data/made/by-call", "called".into(), false).await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("made/by-call")).unwrap(), "called");
    assert_eq!(sandbox.read("/data/followed", 0, 3).await.unwrap().bytes, b"one");

    let file = dir.path().join("one");
    fs::write(&file, "1\n").unwrap();
    let one = [spec(&file, "/etc/new/one.conf", false), spec(&file, "/data/made/one.conf", true)];
    let _one = sandbox.mount(&one).await.unwrap();
    assert_eq!(sh(&sandbox, "cat /data/made/one.conf; echo 2 >>/etc/new/one.conf").await, "1");
    assert_eq!(fs::read_to_string(&file).unwrap(), "1\n2\n");
    assert!(refused(&sandbox, "echo 3 >>/data/made/one.conf").await.contains("Read-only file system"));
    site.end().await;
}

const LIKE_OTHERS: &str = r#"
import ctypes, hashlib, mmap, os, stat, subprocess, threading
os.chdir('/data')
def fails(errno_name, call, *args, **more):
    import errno
    try: call(*args, **more)
    except OSError as error: assert error.errno == getattr(errno, errno_name), error
    else: raise AssertionError(f'{call} did not fail')

with open('log', 'a') as log: log.write('one\n')
with open('log', 'a') as log: log.write('two\n')
assert open('log').read() == 'one\ntwo\n'
os.rename('log', 'renamed'); fails('ENOENT', os.stat, 'log')
os.link('renamed', 'hard'); assert os.stat('hard').st_nlink == 2 and os.path.samefile('hard', 'renamed')
os.symlink('renamed', 'soft'); assert open('soft').read() == 'one\ntwo\n' and os.readlink('soft') == 'renamed'
os.truncate('hard', 3); assert open('renamed').read() == 'one'
with open('renamed', 'r+') as file:
    os.unlink('renamed'); os.unlink('hard')
    assert file.read() == 'one' and os.fstat(file.fileno()).st_nlink == 0
    file.write(' more'); file.flush(); os.fsync(file.fileno()); file.seek(0); assert file.read() == 'one more'
fails('ENOENT', open, 'soft')
fails('EEXIST', os.open, 'soft', os.O_CREAT | os.O_EXCL | os.O_WRONLY)

os.makedirs('a/b'); open('a/b/file', 'w').close(); fails('ENOTEMPTY', os.rmdir, 'a')
os.rename('a', 'c'); assert os.listdir('c/b') == ['file']; os.unlink('c/b/file'); os.removedirs('c/b')

with open('mapped', 'wb') as file: file.write(b'x' * 9000)
with open('mapped', 'r+b') as file:
    with mmap.mmap(file.fileno(), 0) as map: assert map[8999:] == b'x'; map[0:5] = b'first'
assert open('mapped', 'rb').read(6) == b'firstx'

os.umask(0o027); open('mode', 'w').close(); os.mkdir('dir')
assert [stat.S_IMODE(os.stat(name).st_mode) for name in ('mode', 'dir')] == [0o640, 0o750]
os.chmod('mode', 0o604); os.utime('mode', (1, 2.5))
seen = os.stat('mode'); assert (stat.S_IMODE(seen.st_mode), seen.st_atime, seen.st_mtime) == (0o604, 1, 2.5)
os.chmod('mode', 0o4755); assert stat.S_IMODE(os.stat('mode').st_mode) == 0o755
os.setxattr('mode', 'user.note', b'value'); assert os.listxattr('mode') == ['user.note']
assert os.getxattr('mode', 'user.note') == b'value'; os.removexattr('mode', 'user.note')
fails('EOPNOTSUPP', os.setxattr, 'mode', 'trusted.note', b'value')

with open('script', 'w') as file: file.write('#!/bin/sh\necho ran in $PWD'); os.fchmod(file.fileno(), 0o755)
assert subprocess.check_output(['./script']) == b'ran in /data\n'
with open('sparse', 'wb') as file: file.truncate(1 << 40)
assert os.stat('sparse').st_size == 1 << 40 and os.stat('sparse').st_blocks < 9; os.unlink('sparse')

part = os.urandom(1 << 20); large = hashlib.sha256()
with open('large', 'wb') as file:
    for number in range(8): file.write(part); large.update(part)
assert hashlib.sha256(open('large', 'rb').read()).digest() == large.digest()

os.mkdir('many')
for number in range(400): os.mknod(f'many/a-file-with-quite-a-long-name-{number}')
assert len(set(os.listdir('many'))) == 400 and sum(1 for entry in os.scandir('many') if entry.is_file()) == 400
print(hashlib.sha256(open('large', 'rb').read()).hexdigest())
"#;

pub async fn files_in_volumes_are_like_others(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, dir, _volumes) = with_volume(&site, false).await;
    printed(&sandbox, Program::Python, LIKE_OTHERS).await;
    assert_eq!(fs::read_dir(dir.path().join("many")).unwrap().count(), 400);
    let metadata = |name: &str| fs::metadata(dir.path().join(name)).unwrap();
    assert_eq!(metadata("large").len(), 8 << 20);
    assert_eq!(metadata("mode").permissions().mode() & 0o7777, 0o755, "there are no set-user-id programs");

    let owners = "cd /data; chown 1234:567 mode 2>/dev/null; chmod 777 .; \
        setpriv --reuid 1000 --regid 1000 --clear-groups touch theirs; stat -c %u:%g mode theirs";
    let seen = sh(&sandbox, owners).await;
    let of = |name| format!("{}:{}", metadata(name).uid(), metadata(name).gid());
    if rustix::process::geteuid().is_root() {
        assert_eq!((of("mode"), of("theirs")), ("1234:567".into(), "1000:1000".into()));
        assert_eq!(seen, "1234:567\n1000:1000");
        let others = "setpriv --reuid 1000 --regid 1000 --clear-groups cat /data/large";
        sh(&sandbox, "chmod 600 /data/large").await;
        assert!(refused(&sandbox, others).await.contains("Permission denied"));
    } else {
        assert_eq!(seen, "0:0\n0:0", "all is done as one user, who is root in there");
    }

    let at_once = (0..8).map(|number| {
        let sandbox = &sandbox;
        let work = format!(
            "cd /data; for i in $(seq 5); do echo {number} >>all; head -c 100000 /dev/zero >z{number}; done; \
             wc -c <z{number}"
        );
        async move { sh(sandbox, &work).await }
    });
    let sizes = futures_util::future::join_all(at_once).await;
    assert!(sizes.iter().all(|size| size == "100000"), "{sizes:?}");
    assert_eq!(fs::read_to_string(dir.path().join("all")).unwrap().lines().count(), 40);
    // A program that starts in a volume, from a volume.
    let mut request = ExecRequest::new(Program::Command, "./script; pwd");
    request.cwd = "/data".into();
    let ran = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!(ran.stdout.text(), "ran in /data\n/data\n", "{ran:?}");
    site.end().await;
}

pub async fn a_read_only_volume_stays_so_whatever_the_guest_mounts(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, dir, _volumes) = with_volume(&site, true).await;
    fs::write(dir.path().join("file"), "as it was").unwrap();
    assert_eq!(sh(&sandbox, "cat /data/file").await, "as it was");
    assert!(refused(&sandbox, "echo x >/data/file").await.contains("Read-only file system"));
    sh(&sandbox, "mount -o remount,rw /data").await;
    let attempts = [
        "echo x >/data/file",
        "echo x >>/data/file",
        "touch /data/new",
        "mkdir /data/new",
        "rm /data/file",
        "mv /data/file /data/new",
        "ln /data/file /data/new",
        "ln -s file /data/new",
        "chmod 777 /data/file",
        "truncate -s 0 /data/file",
    ];
    for attempt in attempts {
        let said = refused(&sandbox, attempt).await;
        assert!(said.contains("Read-only file system"), "{attempt}: {said}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "as it was");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    site.end().await;
}

pub async fn nothing_outside_a_volume_is_reached(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, dir, _volumes) = with_volume(&site, false).await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "of the host").unwrap();
    symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
    symlink(outside.path(), dir.path().join("dir")).unwrap();
    symlink("/etc/hostname", dir.path().join("name")).unwrap();
    for command in ["cat /data/link", "ls /data/dir/", "cat /data/dir/secret", "echo x >/data/link"] {
        let said = refused(&sandbox, command).await;
        assert!(said.contains("No such file or directory"), "{command}: {said}");
    }
    // A link means in the sandbox what it says there.
    assert_eq!(sh(&sandbox, "cat /data/name").await, sh(&sandbox, "hostname").await);
    assert_eq!(sh(&sandbox, "cd /data/..; pwd; ls -d data").await, "/\ndata");
    for command in ["mknod /data/null c 1 3", "mkfifo /data/pipe", "mknod /data/disk b 8 0"] {
        assert!(refused(&sandbox, command).await.contains("Operation not permitted"), "{command}");
    }
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "of the host");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);

    sh(&sandbox, "ln -s /proc /innocent; touch /file; ln -s /mnt /elsewhere").await;
    for (target, reason) in [
        ("/innocent/1", "leads to `/proc/1`"),
        ("/file", "is not a directory"),
        ("/file/below", "is not a directory"),
    ] {
        let error = sandbox.mount(&[spec(dir.path(), target, false)]).await.unwrap_err();
        assert!(matches!(&error, VolumeError::Failed(said) if said.contains(reason)), "{target}: {error}");
    }
    let error = sandbox.mount(&[spec(dir.path(), "/proc/x", false)]).await.unwrap_err();
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    let _there = sandbox.mount(&[spec(dir.path(), "/elsewhere/v", false)]).await.unwrap();
    assert_eq!(sh(&sandbox, "ls /mnt/v").await, "dir\nlink\nname");
    site.end().await;
}

pub async fn sandboxes_that_share_a_volume_see_each_other_s_changes(vmm: Vmm) {
    let pool = PoolOptions { size: 2, boots: 2, resources: small().resources };
    let Some(site) = Site::pooled(vmm, Some(pool)).await else { return };
    let shared = tempfile::tempdir().unwrap();
    let (one, own_of_one, _of_one) = with_volume(&site, false).await;
    let (other, own_of_other, _of_other) = with_volume(&site, false).await;
    let _one = one.mount(&[spec(shared.path(), "/shared", false)]).await.unwrap();
    let _other = other.mount(&[spec(shared.path(), "/shared", false)]).await.unwrap();

    sh(&one, "echo one >/data/whose; echo first >/shared/file").await;
    sh(&other, "echo other >/data/whose; cat /shared/file; echo second >>/shared/file").await;
    assert_eq!(sh(&one, "cat /shared/file").await, "first\nsecond");
    let whose = |dir: &TempDir| fs::read_to_string(dir.path().join("whose")).unwrap();
    assert_eq!((whose(&own_of_one), whose(&own_of_other)), ("one\n".into(), "other\n".into()));
    // A log that both write is torn by neither.
    let append = "for i in $(seq 30); do echo line >>/shared/log; done";
    tokio::join!(sh(&one, append), sh(&other, append));
    let log = fs::read_to_string(shared.path().join("log")).unwrap();
    assert!(log.lines().count() == 60 && log.lines().all(|line| line == "line"));
    sh(&one, "mv /shared/file /shared/moved").await;
    eventually(&other, "[ ! -e /shared/file ] && cat /shared/moved").await;
    site.end().await;
}

pub async fn volumes_that_are_taken_away_leave_a_usable_sandbox(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, dir, volumes) = with_volume(&site, false).await;
    let busy = "cd /data; while echo x >>file; do :; done; echo over";
    let busy = sandbox.exec(ExecRequest::new(Program::Command, busy)).await.unwrap();
    eventually(&sandbox, "[ -s /data/file ]").await;
    drop(volumes);
    let ended = busy.finish().await.unwrap();
    assert_eq!(ended.stdout.text(), "over\n", "{ended:?}");
    until_closed(dir.path()).await;
    eventually(&sandbox, "! grep -q ' /data ' /proc/self/mounts").await;
    assert_eq!(sh(&sandbox, "ls -A /data").await, "");
    assert_usable(&sandbox).await;

    let _again = sandbox.mount(&[spec(dir.path(), "/data", false)]).await.unwrap();
    sh(&sandbox, "test -s /data/file").await;
    // Its programs are root, and may unmount it: then it is gone on the host too.
    sh(&sandbox, "umount /data").await;
    until_closed(dir.path()).await;
    assert_usable(&sandbox).await;
    site.end().await;
}

pub async fn nothing_of_volumes_is_left_when_their_sandbox_ends(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (destroyed, dir, _volumes) = with_volume(&site, false).await;
    let (killed, other_dir, _other_volumes) = with_volume(&site, false).await;
    let busy = "cat /dev/zero >/data/big & while :; do ls /data >/dev/null; done";
    let mut running = Vec::new();
    for sandbox in [&destroyed, &killed] {
        running.push(sandbox.exec(ExecRequest::new(Program::Command, busy)).await.unwrap());
        eventually(sandbox, "[ -s /data/big ]").await;
    }
    tokio::time::timeout(patient(20), destroyed.destroy()).await.unwrap();
    until_closed(dir.path()).await;
    // Its programs can end the VM by ending its service.
    let last = killed.exec(ExecRequest::new(Program::Command, "kill -KILL $PPID")).await;
    until_closed(other_dir.path()).await;
    drop((running, last));
    site.end().await;
}
