//! PID 1: brings the VM up from the initramfs, starts the service, and reaps.
//!
//! ```text
//! initramfs      /init (this binary), /modules
//! base disk      read-only, shared by all sandboxes        ┐
//! scratch disk   the sandbox's own, ext4: upper and work   ┴─ overlay = the sandbox's root
//! sidecar disk   where there is one: the same, with directories of its own on the scratch disk
//! cgroups        /user/program-N                           what clients run; the service is outside
//! ```

mod disks;
mod kernel;
mod modules;

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_move, move_mount, open_tree};
use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;

use crate::netlink::Netlink;
use crate::{RUN_DIR, places};

const VIRTIO_ID_VSOCK: u32 = 19;
const NEW_ROOT: &str = "/newroot";
const SIDECAR: &str = "/newsidecar";
const CGROUPS: &str = "/sys/fs/cgroup";
const USER_CGROUP: &str = "/sys/fs/cgroup/user";

/// Memory that programs cannot have: for the kernel, the service, and the pages that calls pass through.
const RESERVED_BYTES: u64 = 48 * 1024 * 1024;
/// The size of `/dev/shm` in Docker's containers.
const MIN_SHM_BYTES: u64 = 64 * 1024 * 1024;
/// Memory for each process of all programs together, background ones included.
const BYTES_PER_PROCESS: u64 = 256 * 1024;

/// Why a VM could not be brought up.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not mount `{0}`")]
    Mount(PathBuf, #[source] io::Error),
    #[error("could not load the kernel module `{0}`")]
    Module(String, #[source] io::Error),
    #[error("the VM has no disk `{0}`")]
    NoDisk(&'static str),
    #[error("could not read the disk `{0}`")]
    Disk(&'static str, #[source] io::Error),
    #[error("the base disk holds no file system that is known here: ext4, squashfs and erofs are")]
    UnknownFileSystem,
    #[error("could not prepare `{0}`")]
    Prepare(&'static str, #[source] io::Error),
    #[error("could not start the service")]
    Service(#[source] io::Error),
    #[error("the service ended")]
    ServiceEnded,
}

/// Runs as PID 1. Never returns while the VM lives.
pub fn run() -> ExitCode {
    let error = match bring_up().and_then(start_service) {
        Ok(service) => reap(service),
        Err(error) => error,
    };
    // Nobody but the console can be told; without one this goes nowhere.
    open_console().ok();
    writeln!(io::stderr(), "bouvet-guest: {}", crate::chain(&error)).ok();
    rustix::fs::sync();
    // The VMM takes a restart for the end of the VM, which is how the host learns of it.
    rustix::system::reboot(RebootCommand::Restart).ok();
    ExitCode::FAILURE
}

/// By which device the host's calls come.
#[derive(Debug, Clone, Copy)]
enum Link {
    Serial,
    Vsock,
}

impl Link {
    /// The one that this VM has. Its driver is loaded while the modules can still be reached.
    fn find() -> Result<Self, Error> {
        if !has_virtio_device(VIRTIO_ID_VSOCK) {
            return Ok(Self::Serial);
        }
        modules::load("vmw_vsock_virtio_transport")?;
        Ok(Self::Vsock)
    }
}

/// Whether the VM has a virtio device of this kind (`include/uapi/linux/virtio_ids.h`).
fn has_virtio_device(kind: u32) -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/devices") else { return false };
    let text = format!("0x{kind:04x}");
    devices.flatten().any(|device| {
        fs::read_to_string(device.path().join("device")).is_ok_and(|found| found.trim_end() == text)
    })
}

fn bring_up() -> Result<Link, Error> {
    // Device nodes take no space; a file that somebody writes here by mistake takes memory.
    mount_new("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, c"mode=755,size=1M")?;
    mount_new("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    mount_new("sysfs", "/sys", "sysfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    modules::load("virtio_mmio")?;
    modules::load("virtio_blk")?;
    let link = Link::find()?;
    // For volumes and the network, which come when the modules can no longer be reached.
    modules::load("fuse")?;
    modules::load("tun")?;
    disks::mount_root(Path::new(NEW_ROOT))?;
    let sidecar = prepare_sidecar()?;
    switch_root()?;
    mount_rest()?;
    if let Some(sidecar) = sidecar {
        show_sidecar(&sidecar)?;
    }
    bring_loopback_up().map_err(|error| Error::Prepare("the loopback interface", error))?;
    let is_durable = disks::is_durable().map_err(|error| Error::Prepare("the kernel's settings", error))?;
    kernel::set_up(is_durable)?;
    limit_programs().map_err(|error| Error::Prepare("cgroups", error))?;
    Ok(link)
}

/// Programs talk to their own servers over it.
fn bring_loopback_up() -> io::Result<()> {
    let netlink = Netlink::open()?;
    netlink.bring_up(netlink.index("lo")?, None)
}

/// Mounts the sidecar's root, if the VM has one, and takes hold of it before it is out of reach.
fn prepare_sidecar() -> Result<Option<OwnedFd>, Error> {
    if !disks::mount_sidecar(Path::new(SIDECAR))? {
        return Ok(None);
    }
    // By which the host speaks to a sidecar that listens on vsock, in VMs that have no such device too.
    modules::load("vsock_loopback")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, SIDECAR, flags).map_err(|error| Error::Mount(SIDECAR.into(), error.into()))?;
    Ok(Some(tree))
}

/// Mounts the sidecar's root where the service finds it.
fn show_sidecar(tree: &OwnedFd) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Mount(crate::SIDECAR_ROOT.into(), error);
    fs::create_dir_all(crate::SIDECAR_ROOT).map_err(failed)?;
    move_mount(tree, "", CWD, crate::SIDECAR_ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| failed(error.into()))
}

/// Mounts `fs_type` at `target`, which is made if it is missing.
fn mount_new(source: &str, target: &str, fs_type: &str, flags: MountFlags, data: &CStr) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Mount(target.into(), error);
    places::make(Path::new(target)).map_err(failed)?;
    mount(source, target, fs_type, flags, data).map_err(|error| failed(error.into()))
}

/// Makes the console the standard streams of this process and of those that it starts. Its driver reports
/// for duty some time after its module was loaded, so this is done as late as can be.
fn open_console() -> io::Result<()> {
    let console = match fs::File::options().read(true).write(true).open("/dev/console") {
        // A VM may have none; then what we say is lost.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => return Ok(()),
        other => other?,
    };
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

/// Makes the overlay the root of this and every later process.
fn switch_root() -> Result<(), Error> {
    for dir in ["dev", "proc", "sys"] {
        let target = Path::new(NEW_ROOT).join(dir);
        let failed = |error: io::Error| Error::Mount(target.clone(), error);
        places::replace(&target).map_err(failed)?;
        mount_move(format!("/{dir}"), &target).map_err(|error| failed(error.into()))?;
    }
    let failed = |error: rustix::io::Errno| Error::Mount("/".into(), error.into());
    rustix::process::chdir(NEW_ROOT).map_err(failed)?;
    mount_move(".", "/").map_err(failed)?;
    rustix::process::chroot(".").map_err(failed)?;
    rustix::process::chdir("/").map_err(failed)
}

fn mount_rest() -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_new(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=620,ptmxmode=666",
    )?;
    // Memory that is written here stays taken when its writer is killed, so there must be little of it.
    let shm = CString::new(format!("mode=1777,size={}", shm_bytes(memory_bytes())))
        .map_err(|error| Error::Mount("/dev/shm".into(), error.into()))?;
    mount_new("tmpfs", "/dev/shm", "tmpfs", flags, &shm)?;
    // The service's own, so that programs that fill the disk can be followed by others. Programs of any user find their
    // sources there. Nothing else is mounted below /run: what the image has there stays.
    mount_new("tmpfs", RUN_DIR, "tmpfs", flags, c"mode=711,size=25%")?;
    // Every program is moved into a cgroup of its own: `favordynmods` makes that quick, and forks a little slower.
    mount_new("cgroup2", CGROUPS, "cgroup2", flags | MountFlags::NOEXEC, c"favordynmods")?;
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let path = Path::new("/dev").join(link);
        if let Err(error) = rustix::fs::symlinkat(target, CWD, &path)
            && error != rustix::io::Errno::EXIST
        {
            return Err(Error::Mount(path, error.into()));
        }
    }
    // Debian's `/var/lock` leads to `/run/lock`, which an image may have been cleared of.
    for dir in ["/tmp", "/var/lock"].map(Path::new) {
        if !dir.exists() && (dir.is_symlink() || dir == Path::new("/tmp")) {
            make_shared(dir).map_err(|error| Error::Mount(dir.into(), error))?;
        }
    }
    Ok(())
}

/// A quarter of the memory; in a small VM Docker's 64 MiB, or half of what programs may have.
fn shm_bytes(memory: u64) -> u64 {
    (memory / 4).max(MIN_SHM_BYTES.min(memory.saturating_sub(RESERVED_BYTES) / 2))
}

/// Memory of the VM, as its kernel reports it.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Makes a directory in which everybody may have files of their own.
fn make_shared(dir: &Path) -> io::Result<()> {
    places::make(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o1777))
}

/// Keeps programs within limits a little under the VM's own, so that they run into theirs first.
fn limit_programs() -> io::Result<()> {
    fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), "+memory +pids +cpu")?;
    let user = Path::new(USER_CGROUP);
    fs::create_dir(user)?;
    fs::write(user.join("cgroup.subtree_control"), "+memory +pids +cpu")?;
    let memory = memory_bytes();
    fs::write(user.join("memory.max"), memory.saturating_sub(RESERVED_BYTES).to_string())?;
    fs::write(user.join("pids.max"), (memory / BYTES_PER_PROCESS).to_string())?;
    // Inherited by the service; programs get theirs reset.
    fs::write("/proc/self/oom_score_adj", "-1000")
}

fn start_service(link: Link) -> Result<Pid, Error> {
    open_console().map_err(|error| Error::Prepare("the console", error))?;
    let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
    #[expect(clippy::disallowed_methods, reason = "PID 1 starts one process")]
    let mut service = std::process::Command::new("/proc/self/exe");
    service.args(["serve", "--owns-kernel", "--home", home]);
    service.args(["--run-dir", RUN_DIR, "--cgroup", USER_CGROUP]);
    match link {
        Link::Serial => service.args(["--port", bouvet_wire::LINK_PORT]),
        Link::Vsock => service.args(["--vsock", &bouvet_wire::LINK_VSOCK_PORT.to_string()]),
    };
    let child = service.spawn().map_err(Error::Service)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Error::Service(io::Error::other("it has no process id")))
}

/// Reaps every process that lost its parent. Returns only when the service has ended, and with it the use
/// of the VM.
fn reap(service: Pid) -> Error {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == service => return Error::ServiceEnded,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Error::Service(error.into()),
        }
    }
}
