//! What the programs of a sandbox see of the VM: namespaces of mounts and IPC, made by their first process.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_move, mount_remount,
};
use rustix::thread::UnshareFlags;

use super::{Error, step};

/// Where the directory of devices is put together.
const STAGING: &str = "/run/bouvet/dev";

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

/// Makes the namespaces, in which `/proc` shows the sandbox's processes alone; with `masked`, also without the VM's
/// devices and settings.
pub(super) fn make(masked: bool) -> Result<(), Error> {
    #[expect(unsafe_code, reason = "some of the flags that we do not pass would be unsafe")]
    // SAFETY: no flag that is passed touches descriptors or memory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWIPC) }
        .map_err(step("make the sandbox's namespaces"))?;
    // What the VM mounts later, it sees; what it mounts, the VM does not.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).map_err(step("make the sandbox's mounts its own"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("proc", "/proc", "proc", flags, c"")?;
    if !masked {
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
