//! What the programs of a sandbox see of the VM: namespaces of mounts and IPC, made by their first process.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use bouvet_wire::v1;
use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

use super::{Error, step};

/// Where the directory of devices is put together.
const STAGING: &str = "/run/bouvet/dev";

/// What the sidecar is told of the VM's names.
const NAMES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/machine-id"];

/// Devices that are the same whatever they are of.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What of the kernel's own files nobody sees, and what nobody writes: as Docker has it.
const HIDDEN: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
const UNWRITABLE: [&str; 7] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys", "/sys/fs/cgroup"];

/// Makes the namespaces, in which `/proc` shows the sandbox's processes alone; if `confinement` masks, also without the
/// VM's devices and settings. With `root`, a mount, that is all that is seen of the VM's files.
pub(super) fn make(confinement: Option<&v1::Confinement>, root: Option<&Path>) -> Result<(), Error> {
    #[expect(unsafe_code, reason = "some of the flags that we do not pass would be unsafe")]
    // SAFETY: no flag that is passed touches descriptors or memory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWIPC) }
        .map_err(step("make the sandbox's namespaces"))?;
    // What the VM mounts later, it sees; what it mounts, the VM does not.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).map_err(step("make the sandbox's mounts its own"))?;
    match root {
        Some(root) => change_root(root)?,
        None => hide_sidecar()?,
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("proc", "/proc", "proc", flags, c"")?;
    crate::sysctl::set(confinement.map_or(&[], |confinement| &confinement.sysctls))?;
    if !confinement.is_some_and(|confinement| confinement.masked) {
        return Ok(());
    }
    mount_devices()?;
    UNWRITABLE.iter().try_for_each(|path| protect(path))?;
    HIDDEN.iter().try_for_each(|path| hide(path))?;
    // Whoever may make device nodes may not use them.
    let read_only =
        rustix::fs::statvfs("/").is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    let mut flags = MountFlags::BIND | MountFlags::NODEV | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, read_only);
    mount_remount("/", flags, c"").map_err(|error| Error::Mount("/".into(), error.into()))
}

/// The sidecar may watch over the programs of the sandbox: they see nothing of its files.
fn hide_sidecar() -> Result<(), Error> {
    match unmount(crate::SIDECAR_ROOT, UnmountFlags::DETACH) {
        // There is none.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::Mount(crate::SIDECAR_ROOT.into(), error.into())),
    }
}

/// Makes `root` the root directory, with the VM's devices and settings and none of its files.
///
/// What the image has in it may be anything, links too: nothing below `root` is looked up before it is the root, and so
/// the most that a link leads to.
fn change_root(root: &Path) -> Result<(), Error> {
    let devices = take_hold("/dev")?;
    let settings = take_hold("/sys")?;
    // Copies: nobody else writes what it goes by. A VM may have been made without.
    let names = NAMES.map(|name| (name, fs::read_to_string(name).ok()));
    rustix::process::chdir(root).map_err(step("enter the sidecar's root"))?;
    // The old root lies over the new one then, and is taken away (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(step("change the root directory"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("leave the VM's root directory"))?;
    rustix::process::chdir("/").map_err(step("enter the sidecar's root"))?;
    show(&devices, "/dev")?;
    show(&settings, "/sys")?;
    for (name, text) in names.iter().filter(|_| Path::new("/etc").is_dir()) {
        if let Some(text) = text {
            crate::names::put(Path::new(name), text).map_err(|error| Error::Mount(name.into(), error))?;
        }
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", "/dev/shm", "tmpfs", flags, c"mode=1777,size=25%")
}

/// What is mounted at `path` and below, to be mounted elsewhere too.
fn take_hold(path: &str) -> Result<OwnedFd, Error> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).map_err(|error| Error::Mount(path.into(), error.into()))
}

fn show(tree: &OwnedFd, target: &str) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Mount(target.into(), error);
    fs::create_dir_all(target).map_err(failed)?;
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| failed(error.into()))
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags, data: &CStr) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Mount(target.into(), error);
    fs::create_dir_all(target).map_err(failed)?;
    mount(source, target, kind, flags, data).map_err(|error| failed(error.into()))
}

/// Puts a directory in the place of `/dev` that has what every program may expect, and no disk, no link, no memory.
fn mount_devices() -> Result<(), Error> {
    let failed = |error: io::Error| Error::Mount("/dev".into(), error);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("tmpfs", STAGING, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755,size=64k")?;
    let staging = Path::new(STAGING);
    for device in DEVICES {
        let target = staging.join(device);
        File::create(&target).map_err(failed)?;
        mount_bind(Path::new("/dev").join(device), &target).map_err(|error| failed(error.into()))?;
    }
    for dir in ["pts", "shm"] {
        let target = staging.join(dir);
        fs::create_dir(&target).map_err(failed)?;
        mount_bind(Path::new("/dev").join(dir), &target).map_err(|error| failed(error.into()))?;
    }
    // A kernel may be built without.
    let queues = staging.join("mqueue");
    fs::create_dir(&queues).map_err(failed)?;
    match mount("mqueue", &queues, "mqueue", flags, c"") {
        Err(error) if error != rustix::io::Errno::NODEV => return Err(failed(error.into())),
        _ => {}
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (link, target) in links {
        rustix::fs::symlinkat(target, CWD, staging.join(link)).map_err(|error| failed(error.into()))?;
    }
    mount_move(STAGING, "/dev").map_err(|error| failed(error.into()))
}

/// Lets nobody write below `path`, if it is there.
fn protect(path: &str) -> Result<(), Error> {
    let failed = |error: rustix::io::Errno| Error::Mount(path.into(), error.into());
    if !Path::new(path).exists() {
        return Ok(());
    }
    if path.starts_with("/proc") {
        mount_bind(path, path).map_err(failed)?;
    }
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(path, flags | MountFlags::NOEXEC, c"").map_err(failed)
}

/// Puts nothing in the place of `path`, if it is there.
fn hide(path: &str) -> Result<(), Error> {
    let failed = |error: rustix::io::Errno| Error::Mount(path.into(), error.into());
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    if metadata.is_dir() {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
        return mount("tmpfs", path, "tmpfs", flags, c"size=4k").map_err(failed);
    }
    mount_bind("/dev/null", path).map_err(failed)
}
