//! VMs by stock QEMU: its `microvm` machine, on KVM where hardware backs it, else emulated.
//!
//! QEMU gets everything it needs as open descriptors, so its process needs no path of ours and runs under a
//! user id that owns nothing.

mod args;
mod tsc;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Child;
use tracing::{debug, warn};

use self::args::{Fds, Machine, TRANSLATION_MB};
use super::log::Log;
use super::{Acceleration, Engine, EngineError, Vm, VmSpec};
use crate::cgroup;
use crate::confine::{self, Confinement, Spawner, Spec};
use crate::undo::Undo;

const BINARY: &str = "qemu-system-x86_64";
const OLDEST: (u32, u32) = (7, 2);
/// What QEMU itself takes, beside the guest's memory and translated code: heap, stacks, libraries, and the
/// cached pages of its disks.
const OVERHEAD_MB: u64 = 128;
/// What of a file tells its format: an ext4 superblock lies in the second KiB.
const START_BYTES: usize = 2048;
/// How long a process that does nothing may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// What the engine is made of.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) rootfs: &'a Path,
    /// Where the initramfs is put.
    pub(crate) dir: &'a Path,
    /// The parent of the VMs' cgroups, where they get any.
    pub(crate) cgroups: Option<cgroup::Parent>,
    /// The first of the user ids that VMs run as; needs privilege.
    pub(crate) first_uid: Option<u32>,
    pub(crate) spawner: Arc<Spawner>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Qemu {
    binary: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    rootfs: PathBuf,
    hardware: bool,
    tsc_khz: u64,
    cgroups: Option<cgroup::Parent>,
    first_uid: Option<u32>,
    spawner: Arc<Spawner>,
}

impl Qemu {
    /// Checks that VMs can be made, and prepares what they share.
    pub(crate) async fn prepare(options: Options<'_>) -> Result<Self, EngineError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(EngineError::Architecture);
        }
        check_version().await?;
        check_kernel(options.kernel)?;
        check_rootfs(options.rootfs)?;
        check_confinement(&options).await?;
        let initramfs = options.dir.join("initramfs");
        write_initramfs(&initramfs, options.kernel)?;
        Ok(Self {
            binary: confine::find_program(BINARY),
            kernel: options.kernel.to_owned(),
            initramfs,
            rootfs: options.rootfs.to_owned(),
            hardware: hardware_virtualization(),
            tsc_khz: tsc::measure_khz().await,
            cgroups: options.cgroups,
            first_uid: options.first_uid,
            spawner: options.spawner,
        })
    }

    /// What QEMU inherits, in the order of [`Qemu::numbers`], and our ends of the link and the console.
    fn descriptors(&self, scratch: File) -> io::Result<(Vec<OwnedFd>, StdUnixStream, StdUnixStream)> {
        let (link, link_theirs) = StdUnixStream::pair()?;
        let (console, console_theirs) = StdUnixStream::pair()?;
        let fds = vec![
            link_theirs.into(),
            console_theirs.into(),
            File::open(&self.rootfs)?.into(),
            scratch.into(),
            File::open(&self.kernel)?.into(),
            File::open(&self.initramfs)?.into(),
        ];
        link.set_nonblocking(true)?;
        console.set_nonblocking(true)?;
        Ok((fds, link, console))
    }

    fn numbers(&self) -> Fds {
        let [link, console, base, scratch, kernel, initramfs] = std::array::from_fn(|i| self.spawner.fd(i));
        Fds { link, console, base, scratch, kernel, initramfs }
    }
}

#[async_trait::async_trait]
impl Engine for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn acceleration(&self) -> Acceleration {
        if self.hardware { Acceleration::Hardware } else { Acceleration::Software }
    }

    async fn boot(&self, spec: VmSpec, undo: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        let VmSpec { name, slot, vcpus, memory_mb, scratch, .. } = spec;
        let memory_limit_mb = u64::from(memory_mb) + u64::from(TRANSLATION_MB) + OVERHEAD_MB;
        let cgroup = match &self.cgroups {
            Some(parent) => Some(Arc::new(parent.create(&name, memory_limit_mb * 1024 * 1024)?)),
            None => None,
        };
        if let Some(cgroup) = cgroup.clone() {
            undo.push("the VM's cgroup", move || cgroup.remove());
        }
        let (fds, link, console) =
            self.descriptors(scratch).map_err(|error| EngineError::Prepare("the VM's descriptors", error))?;
        let machine = Machine { hardware: self.hardware, tsc_khz: self.tsc_khz, vcpus, memory_mb };
        let program =
            Spec { program: self.binary.clone(), args: args::command_line(machine, self.numbers()), fds };
        let confinement = Confinement {
            id: self.first_uid.map(|first| first + slot),
            groups: if self.hardware { kvm_group().into_iter().collect() } else { Vec::new() },
            cgroup: cgroup.as_deref(),
            namespaces: self.first_uid.is_some(),
        };
        debug!(%name, ?machine, "starting QEMU");
        let mut child = self.spawner.spawn(program, confinement).await.map_err(EngineError::Spawn)?;
        let stderr = child.stderr.take().map(Log::follow).unwrap_or_default();
        let console = UnixStream::from_std(console).map_err(EngineError::Spawn)?;
        let link = UnixStream::from_std(link).map_err(EngineError::Spawn)?;
        Ok(Box::new(QemuVm { child, stderr, console: Log::follow(console), link: Some(link) }))
    }
}

#[derive(Debug)]
struct QemuVm {
    child: Child,
    stderr: Log,
    console: Log,
    link: Option<UnixStream>,
}

#[async_trait::async_trait]
impl Vm for QemuVm {
    fn connect(&mut self) -> io::Result<UnixStream> {
        self.link.take().ok_or_else(|| io::ErrorKind::AlreadyExists.into())
    }

    async fn exited(&mut self) -> String {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => return format!("the VM cannot be watched: {error}"),
        };
        let (stderr, console) = (self.stderr.last_lines(3), self.console.last_lines(3));
        let said = [stderr, console].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
        match said.is_empty() {
            true => format!("the VM ended ({status})"),
            false => format!("the VM ended ({status}); the last it said: {}", said.join(" | ")),
        }
    }

    async fn stop(&mut self) {
        self.child.kill().await.ok(); // fails only for a process that is gone
    }
}

async fn check_version() -> Result<(), EngineError> {
    let printed = confine::run_tool(BINARY, ["--version"].iter())
        .await
        .map_err(|error| EngineError::NoVmm(BINARY, error))?;
    match parse_version(&printed) {
        Some(version) if version >= OLDEST => Ok(()),
        _ => {
            let found = printed.lines().next().unwrap_or_default().to_owned();
            Err(EngineError::OldVmm { vmm: BINARY, found, needed: "7.2" })
        }
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(printed: &str) -> Option<(u32, u32)> {
    let mut numbers = printed.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The first bytes of a file, where formats are told apart; zeros after its end.
fn read_start(what: &'static str, path: &Path) -> Result<[u8; START_BYTES], EngineError> {
    let failed = |source| EngineError::Missing { what, path: path.to_owned(), source };
    let mut read = Vec::with_capacity(START_BYTES);
    let file = File::open(path).map_err(failed)?;
    file.take(START_BYTES as u64).read_to_end(&mut read).map_err(failed)?;
    let mut start = [0; START_BYTES];
    start[..read.len()].copy_from_slice(&read);
    Ok(start)
}

/// Starts the VMM, confined as a VM's process will be, to do nothing. In a container without the capability
/// to unshare, every VM would fail by the same error, and later.
async fn check_confinement(options: &Options<'_>) -> Result<(), EngineError> {
    let program =
        Spec { program: confine::find_program(BINARY), args: vec!["--version".into()], fds: Vec::new() };
    let (id, namespaces) = (options.first_uid, options.first_uid.is_some());
    let confinement = Confinement { id, namespaces, ..Confinement::default() };
    let probe = async {
        let status = options.spawner.spawn(program, confinement).await?.wait().await?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the VMM ended ({status})"))) }
    };
    let probed = tokio::time::timeout(PROBE_DEADLINE, probe).await;
    probed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(EngineError::Confine)
}

fn check_kernel(path: &Path) -> Result<(), EngineError> {
    if !read_start("kernel", path)?.starts_with(b"\x7fELF") {
        return Err(EngineError::NotAKernel(path.to_owned()));
    }
    // The VM's own user id must be able to read it.
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode()).unwrap_or_default();
    if mode & 0o004 == 0 {
        let source = io::Error::other(format!("its mode is {:o}: run `chmod o+r` on it", mode & 0o777));
        return Err(EngineError::Missing { what: "kernel", path: path.to_owned(), source });
    }
    Ok(())
}

fn check_rootfs(path: &Path) -> Result<(), EngineError> {
    match bouvet_wire::disk::file_system(&read_start("rootfs", path)?) {
        Some(_) => Ok(()),
        None => Err(EngineError::NotARootfs(path.to_owned())),
    }
}

/// The initramfs for `kernel`, with the modules that lie beside it in `KERNEL.modules.cpio`, if any do.
fn write_initramfs(path: &Path, kernel: &Path) -> Result<(), EngineError> {
    let mut beside = kernel.as_os_str().to_owned();
    beside.push(".modules.cpio");
    let failed = |error| EngineError::Prepare("the initramfs", error);
    let modules = match fs::read(&beside) {
        Ok(modules) => modules,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            warn!(modules = %Path::new(&beside).display(), "no modules beside the kernel: it must have virtio built in");
            Vec::new()
        }
        Err(error) => return Err(failed(error)),
    };
    let mut file = File::create(path).map_err(failed)?;
    bouvet_image::initramfs::write(&mut file, &modules).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)
}

/// Whether KVM runs on hardware. That `/dev/kvm` exists proves nothing: there are hosts where software
/// stands behind it, which only runs kernels made for it. The processor's own flag is what counts.
fn hardware_virtualization() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_flag = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    has_flag && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The group that may open `/dev/kvm`.
fn kvm_group() -> Option<u32> {
    fs::metadata("/dev/kvm").ok().filter(|metadata| metadata.mode() & 0o060 == 0o060).map(|m| m.gid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_qemu_prints() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)"), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("bash"), None);
    }
}
