//! VMs by Firecracker, on KVM.
//!
//! Every VM is a process with a root directory of its own: [`jail`] says what is in there. It is told what to be over
//! its API ([`api`], [`calls`]), and its guest is linked over vsock.

mod api;
mod calls;
#[cfg(test)]
mod contract;
mod jail;
mod linkage;
mod release;
#[cfg(test)]
mod scripted;
mod vm;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use tracing::{debug, info, warn};

use self::api::ApiError;
use self::calls::RateLimiter;
use self::jail::{Jail, Programs, Shown};
use self::release::Release;
use self::vm::{FirecrackerVm, ToFreeze};
use super::memory::Home;
use super::{Acceleration, Engine, EngineError, Freezing, Frozen, Layer, Options, Vm, VmSpec, prepare};
use crate::attest::Launch;
use crate::cgroup;
use crate::confine::Spawner;
use crate::images;
use crate::kvm::Kvm;
use crate::undo::Undo;

/// What can be asked of Firecracker beside what every VM is.
///
/// ```
/// use bouvet_host::{EngineChoice, FirecrackerOptions, HostOptions};
///
/// let firecracker = FirecrackerOptions { disk_mb_per_second: Some(200), ..FirecrackerOptions::default() };
/// let options = HostOptions {
///     engine: EngineChoice::Firecracker,
///     firecracker,
///     ..HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4")
/// };
/// assert_eq!(options.firecracker.cpu_template, None, "guests see the processor as it is");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirecrackerOptions {
    /// The executable, with the jailer beside it where VMs are to be jailed.
    pub binary: PathBuf,
    /// Whether guests' memory is made of pages of 2 MiB, which the administrator must have set aside. Such VMs cannot
    /// be cloned.
    pub huge_pages: bool,
    /// The CPU template: `T2`, say. `None` shows guests the processor as it is.
    pub cpu_template: Option<String>,
    /// The most that a VM may read from and write to each of its disks, in MiB per second.
    pub disk_mb_per_second: Option<u32>,
    /// The same in operations per second.
    pub disk_operations_per_second: Option<u32>,
}

impl Default for FirecrackerOptions {
    fn default() -> Self {
        Self {
            binary: "/usr/local/bin/firecracker".into(),
            huge_pages: false,
            cpu_template: None,
            disk_mb_per_second: None,
            disk_operations_per_second: None,
        }
    }
}

impl FirecrackerOptions {
    /// Whether Firecracker can run here: it is installed, and hardware stands behind KVM.
    pub(crate) fn can_run(&self) -> bool {
        self.binary.is_file() && Kvm::find() == Kvm::Hardware
    }

    fn rate_limiter(&self) -> Option<RateLimiter> {
        let bandwidth = self.disk_mb_per_second.map(|mb| u64::from(mb) * 1024 * 1024);
        RateLimiter::per_second(bandwidth, self.disk_operations_per_second.map(u64::from))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Firecracker {
    programs: Programs,
    release: Release,
    /// Whether it was built with its seccomp filters.
    seccomp: bool,
    options: FirecrackerOptions,
    /// What VMs are made of: see [`Engine::freezes`].
    identity: String,
    kernel: PathBuf,
    initramfs: PathBuf,
    boot_args: String,
    hardware: bool,
    /// Where the memory of frozen VMs is.
    frozen: PathBuf,
    cgroups: Option<cgroup::Parent>,
    first_uid: Option<u32>,
    spawner: Arc<Spawner>,
}

impl Firecracker {
    /// Checks that VMs can be made, and prepares what they share.
    pub(crate) async fn prepare(options: Options<'_>, own: &FirecrackerOptions) -> Result<Self, EngineError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(EngineError::Architecture("Firecracker"));
        }
        let programs = Programs::find(&own.binary, options.first_uid.is_some());
        if programs.jail == Jail::Jailer
            && let Some(why) = linkage::obstacle(&programs.firecracker)
        {
            return Err(EngineError::NoFirecracker { path: programs.firecracker, why });
        }
        let spawner = match programs.jail {
            Jail::Jailer => Arc::new(Spawner::start_contained().map_err(EngineError::Confine)?),
            Jail::Ours | Jail::Unprivileged => options.spawner.clone(),
        };
        let Probed { release, seccomp } = probe(&programs, &spawner, options.dir, options.first_uid).await?;
        check_release(release, own)?;
        // The jailer makes a device of the VM's own.
        if programs.jail == Jail::Ours {
            prepare::check_kvm_group(options.first_uid)?;
        }
        images::check_kernel(options.kernel)?;
        images::check_rootfs(options.rootfs)?;
        if options.first_uid.is_some() {
            images::check_readable("kernel", options.kernel)?;
            images::check_readable("rootfs", options.rootfs)?;
        }
        let initramfs = options.dir.join("initramfs");
        prepare::write_initramfs(&initramfs, options.kernel)?;
        let binary = prepare::file_identity(&own.binary)
            .map_err(|error| EngineError::Prepare("the identity of Firecracker", error))?;
        let identity = format!("firecracker {release} {binary} {}", prepare::identity(&options, &initramfs)?);
        let hardware = Kvm::find() == Kvm::Hardware;
        if !hardware {
            warn!("no hardware stands behind KVM here: VMs are slow, and only as isolated as what does");
        }
        if !seccomp {
            warn!("this Firecracker was built without seccomp filters: its releases have them");
        }
        info!(%release, jail = ?programs.jail, "Firecracker is ready");
        Ok(Self {
            programs,
            release,
            seccomp,
            options: own.clone(),
            identity,
            kernel: options.kernel.to_owned(),
            initramfs,
            boot_args: kernel_command_line(options.kernel_args),
            hardware,
            frozen: options.dir.join("frozen"),
            cgroups: options.cgroups,
            first_uid: options.first_uid,
            spawner,
        })
    }

    /// Starts a Firecracker that is no VM yet, and sees `shown` beside its disk.
    async fn start(
        &self,
        spec: &VmSpec,
        mut shown: Vec<Shown>,
        undo: &mut Undo,
    ) -> Result<FirecrackerVm, EngineError> {
        let own_mb = self.acceleration().process_mb(spec.memory_mb) + template_mb(spec)?;
        let cgroup = prepare::cgroup(self.cgroups.as_ref(), spec, own_mb, undo)?;
        shown.push(self.shown(jail::BASE, &spec.rootfs)?);
        if let Some(sidecar) = &spec.sidecar {
            shown.push(self.shown(jail::SIDECAR, sidecar)?);
        }
        let uid = self.first_uid.map(|first| first + spec.slot);
        let mounts = self
            .programs
            .lay_out(&spec.dir, uid, &shown, Some(&spec.scratch))
            .map_err(|error| EngineError::Prepare("the VM's root directory", error))?;
        debug!(name = %spec.name, jail = ?self.programs.jail, "starting Firecracker");
        let program = self.programs.program(&spec.dir, uid);
        let confinement = self.programs.confinement(uid, mounts);
        let child = self.spawner.spawn(program, confinement).await.map_err(EngineError::Spawn)?;
        let socket = self.programs.root(&spec.dir).join(jail::API_SOCKET);
        // No guest runs before it is told to, so the process may enter its cgroup as it starts.
        let (process, api) = vm::begin(child, &socket, cgroup, (&spec.name, spec.aloud)).await?;
        let to_freeze = spec.to_freeze.then(|| ToFreeze {
            memory_bytes: u64::from(spec.memory_mb) * 1024 * 1024,
            dir: self.frozen.clone(),
        });
        Ok(FirecrackerVm::new(process, api, self.programs.root(&spec.dir), to_freeze, shown))
    }

    fn command_line(&self, durable: bool) -> String {
        let durable = if durable { bouvet_wire::disk::DURABLE_WORD } else { "" };
        format!("{} {durable}", self.boot_args).trim_end().to_owned()
    }

    fn shown(&self, name: &'static str, path: &Path) -> Result<Shown, EngineError> {
        let file = File::open(path).map_err(|error| EngineError::Prepare(name, error))?;
        Ok(Shown { name, file: file.into() })
    }
}

#[async_trait::async_trait]
impl Engine for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn acceleration(&self) -> Acceleration {
        if self.hardware { Acceleration::Hardware } else { Acceleration::SoftwareKvm }
    }

    fn version(&self) -> String {
        format!("Firecracker {}", self.release)
    }

    fn confinement(&self) -> Vec<Layer> {
        let (root, jailer) = (self.first_uid.is_some(), self.programs.jail == Jail::Jailer);
        vec![
            Layer::new("the jailer: a root directory and devices of its own", jailer),
            Layer::new("a user id of its own", root),
            Layer::new("empty network and IPC namespaces", root),
            Layer::new("no new privileges", true),
            Layer::new("seccomp filters", self.seccomp),
        ]
    }

    async fn boot(&self, spec: VmSpec, undo: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        let kernel = self.shown(jail::KERNEL, &self.kernel)?;
        let initramfs = self.shown(jail::INITRAMFS, &self.initramfs)?;
        let vm = self.start(&spec, vec![kernel, initramfs], undo).await?;
        let command_line = self.command_line(spec.durable);
        vm.begin(&calls::boot(&self.options, &command_line, calls::Hardware::from(&spec))).await
    }

    fn launch(&self, durable: bool) -> Option<Launch> {
        Some(Launch {
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            command_line: self.command_line(durable),
        })
    }

    fn freezes(&self) -> Option<Freezing> {
        // Its memory cannot be restored from a file (its docs/hugepages.md).
        if self.options.huge_pages {
            return None;
        }
        let basis = format!("{} {:?} {}", self.identity, self.options, self.boot_args);
        Some(Freezing { basis, home: Home::Disk(self.frozen.clone()) })
    }

    async fn restore(
        &self,
        spec: VmSpec,
        frozen: &Frozen,
        undo: &mut Undo,
    ) -> Result<Box<dyn Vm>, EngineError> {
        let failed = |error| EngineError::Prepare("the state of a frozen VM", error);
        let root = self.programs.root(&spec.dir);
        fs::create_dir_all(&root).map_err(failed)?;
        fs::write(root.join(jail::STATE), &frozen.devices).map_err(failed)?;
        let memory: OwnedFd = frozen.memory.try_clone().map_err(failed)?.into();
        let vm = self.start(&spec, vec![Shown { name: jail::MEMORY, file: memory }], undo).await?;
        vm.begin(&[calls::load()]).await
    }
}

/// MiB of the host's memory that the VM of `spec` takes for good by writing its memory to a file, to be frozen. Its clones
/// fill no holes of that file: it has none where it is in memory.
fn template_mb(spec: &VmSpec) -> Result<u64, EngineError> {
    let failed = |error| EngineError::Prepare("the file of a template's memory", error);
    let is_in_memory = || prepare::is_in_memory(File::open(&spec.dir)?);
    Ok(if spec.to_freeze && is_in_memory().map_err(failed)? { u64::from(spec.memory_mb) } else { 0 })
}

/// What was found out about Firecracker.
struct Probed {
    release: Release,
    seccomp: bool,
}

/// Starts a Firecracker as a VM's will be, to do nothing but say which it is. What would fail every VM fails here.
async fn probe(
    programs: &Programs,
    spawner: &Spawner,
    dir: &Path,
    uid: Option<u32>,
) -> Result<Probed, EngineError> {
    let dir = dir.join("probe");
    let mut undo = Undo::default();
    let made = dir.clone();
    undo.push("the directory of a trial", move || fs::remove_dir_all(&made));
    let mounts = programs
        .lay_out(&dir, uid, &[], None)
        .map_err(|error| EngineError::Prepare("the directory of a trial", error))?;
    let no_vmm = |why: String| EngineError::NoFirecracker { path: programs.firecracker.clone(), why };
    let child = spawner.spawn(programs.program(&dir, uid), programs.confinement(uid, mounts)).await;
    let child = child.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        // What may not be taken from a process is not Firecracker's fault.
        Some(Errno::PERM) => EngineError::Confine(error),
        _ => no_vmm(error.to_string()),
    })?;
    let socket = programs.root(&dir).join(jail::API_SOCKET);
    let (mut process, mut api) =
        vm::begin(child, &socket, None, ("", false)).await.map_err(|error| no_vmm(crate::chain(&error)))?;
    let version = api.version().await;
    let seccomp = process.id().is_some_and(has_seccomp)
        && release::carries_filters(&programs.firecracker).unwrap_or(false);
    process.stop().await;
    let version = version.map_err(|error| no_vmm(crate::chain(&error)))?.firecracker_version;
    let release = Release::parse(&version);
    let release = release.ok_or_else(|| no_vmm(format!("it says that it is version `{version}`")))?;
    Ok(Probed { release, seccomp })
}

/// Whether a seccomp filter is in force on any thread of the process `pid`: on Firecracker's of the API it is from the
/// beginning (proc_pid_status(5), `Seccomp`).
fn has_seccomp(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses.any(|status| status.lines().any(|line| line == "Seccomp:\t2"))
}

/// Whether `release` has what we need, and what is asked of it.
fn check_release(release: Release, options: &FirecrackerOptions) -> Result<(), EngineError> {
    if release < release::OLDEST {
        let (found, needed) = (release.to_string(), "1.5.0");
        return Err(EngineError::OldVmm { vmm: "firecracker", found, needed });
    }
    if options.huge_pages && release < release::HUGE_PAGES {
        let (needed, found) = (release::HUGE_PAGES.to_string(), release.to_string());
        return Err(EngineError::Lacking { what: "memory in huge pages", needed, found });
    }
    if release < release::ACPI {
        warn!(
            %release,
            "before 1.8.0, Firecracker tells kernels of its devices by their command line alone: the kernel needs \
             CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES, which that of `make kernel` has not"
        );
    }
    Ok(())
}

/// What the kernel is told, with the operator's own words last, so that they win. See QEMU's for each.
fn kernel_command_line(own: &str) -> String {
    let words = "quiet console=ttyS0 reboot=k panic=-1 random.trust_cpu=on audit=0 nowatchdog psi=0 \
                 cryptomgr.notests=1 rcupdate.rcu_expedited=1 i8042.noaux i8042.nomux i8042.dumbkbd";
    format!("{words} {own}").trim_end().to_owned()
}

impl From<ApiError> for EngineError {
    fn from(error: ApiError) -> Self {
        Self::Control(Box::new(error))
    }
}
