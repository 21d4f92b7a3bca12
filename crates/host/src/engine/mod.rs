//! Engines: what makes VMs.
//!
//! An engine is trusted with starting a VM and knowing when it has ended; everything about what happens
//! inside goes over the link. What an engine lacks is a capability, checked before it is asked.

#[cfg(feature = "fake")]
pub(crate) mod fake;
pub(crate) mod firecracker;
pub(crate) mod log;
pub(crate) mod memory;
mod prepare;
mod process;
pub(crate) mod qemu;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::UnixStream;

use self::memory::{Home, Memory};
pub(crate) use self::prepare::file_identity;
use crate::attest::Launch;
use crate::boxconfig::limits::Limits;
use crate::cgroup::{self, CgroupError};
use crate::confine::Spawner;
use crate::undo::Undo;

/// Which engine to use.
///
/// ```
/// use bouvet_host::{EngineChoice, HostOptions};
///
/// let options = HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4");
/// assert_ne!(options.resolved_engine(), EngineChoice::Auto, "it stands for another");
/// let options = HostOptions { engine: EngineChoice::Firecracker, ..options };
/// assert_eq!(options.resolved_engine(), EngineChoice::Firecracker);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The strongest that this machine can run.
    #[default]
    Auto,
    /// Firecracker, with KVM.
    Firecracker,
    /// QEMU's `microvm` machine: with KVM where hardware backs it, else by software emulation.
    Qemu,
    /// No VM at all: for tests of everything but isolation.
    #[cfg(feature = "fake")]
    Fake,
}

impl EngineChoice {
    /// Whether it makes VMs, whose processes must be confined.
    pub(crate) fn has_vms(self) -> bool {
        match self {
            Self::Auto | Self::Firecracker | Self::Qemu => true,
            #[cfg(feature = "fake")]
            Self::Fake => false,
        }
    }
}

/// What executes a guest's instructions.
///
/// ```
/// use bouvet_host::Acceleration;
///
/// assert_eq!(Acceleration::Hardware.name(), "kvm");
/// assert_eq!(Acceleration::Software.name(), "tcg");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor, through KVM.
    Hardware,
    /// Software that stands behind KVM: there is no hardware virtualization. Far slower, and the boundary is that
    /// software's.
    SoftwareKvm,
    /// The VMM, by translating them. Slower, and the boundary is the VMM's code alone.
    Software,
    /// Nothing stands between: the `fake` engine.
    None,
}

impl Acceleration {
    /// The name that clients see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hardware => "kvm",
            Self::SoftwareKvm => "kvm-software",
            Self::Software => "tcg",
            Self::None => "none",
        }
    }

    /// MiB that the process of a VM may use in addition to the memory of its guest.
    ///
    /// ```
    /// use bouvet_host::Acceleration;
    ///
    /// assert_eq!(Acceleration::Hardware.process_mb(256), 128);
    /// assert_eq!(Acceleration::Software.process_mb(256), 128 + 128 + 8, "translated code, and tables of pages");
    /// ```
    pub fn process_mb(self, guest_mb: u32) -> u64 {
        match self {
            Self::Hardware | Self::SoftwareKvm => PROCESS_MB,
            Self::Software => PROCESS_MB + u64::from(TRANSLATION_MB) + u64::from(guest_mb) / MEMORY_PER_TLB,
            Self::None => 0,
        }
    }
}

/// MiB of a VMM itself: heap, stacks, libraries, and the cached pages of its disks.
const PROCESS_MB: u64 = 128;
/// MiB that QEMU may use for translated code. The default of 1 GiB lets a VM of 256 MiB grow to four times
/// that; 32 MiB makes Node.js translate the same code over and over.
const TRANSLATION_MB: u32 = 128;
/// Guest memory for each byte of the tables in which emulated processors look up pages (QEMU's `CPUTLBEntry`).
const MEMORY_PER_TLB: u64 = 32;

/// Why an engine cannot be used, or could not start a VM.
///
/// ```
/// use std::path::Path;
///
/// use bouvet_host::{EngineError, images};
///
/// let error = images::check_kernel(Path::new("/nonexistent/vmlinux")).unwrap_err();
/// assert!(matches!(error, EngineError::Missing { what: "kernel", .. }));
/// assert_eq!(error.to_string(), "could not open the kernel `/nonexistent/vmlinux`");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file that VMs boot from is missing or unreadable.
    #[error("could not open the {what} `{path}`")]
    Missing {
        /// `kernel`, `rootfs`.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel is in a format that cannot be booted.
    #[error("the kernel `{0}` is not an uncompressed ELF image (vmlinux)")]
    NotAKernel(PathBuf),
    /// The kernel's modules are missing, and it cannot boot without them.
    #[error("the kernel `{path}` has no modules next to it, and the driver `{driver}` is not built in")]
    NoModules {
        /// The kernel.
        path: PathBuf,
        /// The driver that VMs need.
        driver: &'static str,
    },
    /// The rootfs holds no file system that the guest can mount.
    #[error("the rootfs `{0}` is not an ext4, squashfs or erofs image")]
    NotARootfs(PathBuf),
    /// The VMM is not installed.
    #[error("could not run the VMM `{0}`")]
    NoVmm(&'static str, #[source] crate::confine::ToolError),
    /// Firecracker is not installed, or does not start.
    #[error("could not run Firecracker at `{path}`: {why}")]
    NoFirecracker {
        /// Where it was looked for.
        path: PathBuf,
        /// What happened instead.
        why: String,
    },
    /// The VMM lacks something that is asked for.
    #[error("{what} needs Firecracker {needed} or newer; this is {found}")]
    Lacking {
        /// What is asked for.
        what: &'static str,
        /// The version that it came with.
        needed: String,
        /// The version that is here.
        found: String,
    },
    /// The VMM is too old.
    #[error("the VMM `{vmm}` is version {found}; {needed} or newer is needed")]
    OldVmm {
        /// Its name.
        vmm: &'static str,
        /// What it says of itself.
        found: String,
        /// What is needed.
        needed: &'static str,
    },
    /// No engine runs on this processor.
    #[error("no engine for this architecture: the engine {0} needs x86_64")]
    Architecture(&'static str),
    /// VMs run as users of their own, and these may not open `/dev/kvm`.
    #[error("the VMs' own users may not open /dev/kvm: it belongs to no group that may")]
    KvmClosed,
    /// Processes cannot be confined as those of VMs must be.
    #[error("could not confine a process as a VM's must be")]
    Confine(#[source] io::Error),
    /// The VM's process could not be confined or started.
    #[error("could not start the VMM, confined as it must be")]
    Spawn(#[source] io::Error),
    /// The VM's process could not be bounded.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A running VM did not do as it was told.
    #[error("the VMM did not obey")]
    Control(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A VM could not begin, and its VMM said something.
    #[error("the VM did not begin; the last that its VMM said: {said}")]
    Vmm {
        /// Its last lines.
        said: String,
        /// What failed.
        #[source]
        source: Box<EngineError>,
    },
    /// The VMM's process could not be stopped or continued.
    #[error("could not signal the VMM")]
    Signal(#[source] io::Error),
    /// The memory of a clone is not mapped as it must be.
    #[error("the VMM did not load the library that maps the memory of clones")]
    CloneMemory(#[source] io::Error),
    /// A VM could not be frozen.
    #[error("could not freeze the VM: {0}")]
    Freeze(String),
    /// A file or a socket for the VM could not be made.
    #[error("could not prepare {0}")]
    Prepare(&'static str, #[source] io::Error),
}

/// What the engines of VMs are made of.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) rootfs: &'a Path,
    /// What the guest's kernel is told beside what the engine tells it.
    pub(crate) kernel_args: &'a str,
    /// Where the initramfs is put.
    pub(crate) dir: &'a Path,
    /// The parent of the VMs' cgroups, where they get any.
    pub(crate) cgroups: Option<cgroup::Parent>,
    /// The first of the user ids that VMs run as; needs privilege.
    pub(crate) first_uid: Option<u32>,
    pub(crate) spawner: Arc<Spawner>,
}

/// A VM to be.
#[derive(Debug)]
pub(crate) struct VmSpec {
    /// Unique among the VMs of this host; names its cgroup.
    pub(crate) name: String,
    /// Unique among the living VMs of this host; tells their user ids apart.
    pub(crate) slot: u32,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    /// The read-only disk below its root.
    pub(crate) rootfs: PathBuf,
    /// The same of its sidecar, if it has one.
    pub(crate) sidecar: Option<PathBuf>,
    /// The writable disk, open for reading and writing.
    pub(crate) scratch: File,
    /// Whether that disk is kept after the VM's end.
    pub(crate) durable: bool,
    /// What it may have of the host.
    pub(crate) limits: Limits,
    /// Whether the host's log repeats its console.
    pub(crate) aloud: bool,
    /// Whether it is to be frozen.
    pub(crate) to_freeze: bool,
    /// Its own directory.
    pub(crate) dir: PathBuf,
}

/// What the root of a sandbox is, below what it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rootfs {
    pub(crate) path: PathBuf,
    /// Text that differs when its content does.
    pub(crate) identity: String,
    /// Whether it is the host's base image, whose programs are known.
    pub(crate) is_base: bool,
    /// The root of a sidecar beside it, which the identity tells of too.
    pub(crate) sidecar: Option<PathBuf>,
}

impl Rootfs {
    /// The host's base image.
    pub(crate) fn base(path: &Path) -> io::Result<Self> {
        let identity = file_identity(path)?;
        Ok(Self { path: path.to_owned(), identity, is_base: true, sidecar: None })
    }
}

/// A VM that was stopped for good between two instructions, to go on as many others.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Its memory, which nobody can change.
    pub(crate) memory: Memory,
    /// The state of its processors and devices, in the engine's own form.
    pub(crate) devices: Bytes,
    /// Its writable disk as it was then.
    pub(crate) scratch: File,
}

/// What an engine needs of those who keep its frozen VMs.
#[derive(Debug, Clone)]
pub(crate) struct Freezing {
    /// What a frozen VM depends on beside its disks and its size, as text that differs when any of it does.
    pub(crate) basis: String,
    pub(crate) home: Home,
}

/// One layer of what confines the process of each VM.
///
/// ```no_run
/// use bouvet_host::{Host, HostOptions};
///
/// # async fn example(options: &HostOptions) -> Result<(), bouvet_host::StartError> {
/// for layer in Host::probe(options).await?.confinement {
///     println!("{}: {}", layer.name, if layer.in_force { "in force" } else { "missing" });
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// What it is: `seccomp filters`.
    pub name: &'static str,
    /// Whether it is in force here.
    pub in_force: bool,
}

impl Layer {
    fn new(name: &'static str, in_force: bool) -> Self {
        Self { name, in_force }
    }
}

/// What an engine is, once it was made ready.
///
/// ```no_run
/// use bouvet_host::{Acceleration, Host, HostOptions};
///
/// # async fn example(options: &HostOptions) -> Result<(), bouvet_host::StartError> {
/// let facts = Host::probe(options).await?;
/// if facts.acceleration != Acceleration::Hardware {
///     println!("{} works by {} here: everything takes longer", facts.version, facts.acceleration.name());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Its name: `firecracker`.
    pub name: &'static str,
    /// Which VMM it is, in the VMM's words.
    pub version: String,
    /// What executes its guests.
    pub acceleration: Acceleration,
    /// What confines the process of each VM.
    pub confinement: Vec<Layer>,
}

/// Makes VMs.
#[async_trait::async_trait]
pub(crate) trait Engine: Send + Sync + std::fmt::Debug {
    /// The name that clients see.
    fn name(&self) -> &'static str;

    /// What executes its guests.
    fn acceleration(&self) -> Acceleration;

    /// Which VMM it is, in the VMM's words.
    fn version(&self) -> String;

    /// What confines the process of each VM, beside its cgroup.
    fn confinement(&self) -> Vec<Layer>;

    /// Starts a VM. What it acquires it pushes to `undo`, to be released after the VM was stopped.
    async fn boot(&self, spec: VmSpec, undo: &mut Undo) -> Result<Box<dyn Vm>, EngineError>;

    /// What a VM that it boots begins with, beside its disks; `None` for an engine that boots nothing.
    fn launch(&self, durable: bool) -> Option<Launch>;

    /// What freezing takes; `None` for an engine that can freeze nothing.
    fn freezes(&self) -> Option<Freezing>;

    /// Starts a VM as the one that was frozen. Its scratch disk must be a copy of the frozen one's, and its
    /// size the same. Otherwise like [`Engine::boot`].
    async fn restore(
        &self,
        spec: VmSpec,
        frozen: &Frozen,
        undo: &mut Undo,
    ) -> Result<Box<dyn Vm>, EngineError>;
}

/// One running VM. Dropped, it is killed, but not waited for: see [`Vm::stop`].
#[async_trait::async_trait]
pub(crate) trait Vm: Send + std::fmt::Debug {
    /// The byte stream to the guest, once there is one. There is no second: another call fails.
    async fn connect(&mut self) -> io::Result<UnixStream>;

    /// Waits until the VM has ended by itself, and says what is known of the reason. May be dropped and
    /// called again.
    async fn exited(&mut self) -> String;

    /// Stops its processors: it uses no CPU until [`Vm::resume`].
    async fn pause(&mut self) -> Result<(), EngineError>;

    /// Lets its processors go on.
    async fn resume(&mut self) -> Result<(), EngineError>;

    /// Stops it for good, and returns its memory, and the state of its processors and devices. It must have been
    /// started with [`VmSpec::to_freeze`].
    async fn freeze(&mut self) -> Result<(Memory, Bytes), EngineError>;

    /// Ends the VM, and returns when its process is gone.
    async fn stop(&mut self);
}
