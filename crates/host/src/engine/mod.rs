//! Engines: what makes VMs.
//!
//! An engine is trusted with starting a VM and knowing when it has ended; everything about what happens
//! inside goes over the link. What an engine lacks is a capability, checked before it is asked.

#[cfg(feature = "fake")]
pub(crate) mod fake;
pub(crate) mod log;
pub(crate) mod qemu;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::net::UnixStream;

use crate::cgroup::CgroupError;
use crate::undo::Undo;

/// Which engine to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The strongest that this machine can run.
    #[default]
    Auto,
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
            Self::Auto | Self::Qemu => true,
            #[cfg(feature = "fake")]
            Self::Fake => false,
        }
    }
}

/// What executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor, through KVM.
    Hardware,
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
            Self::Software => "tcg",
            Self::None => "none",
        }
    }
}

/// Why an engine cannot be used, or could not start a VM.
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
    /// The rootfs holds no file system that the guest can mount.
    #[error("the rootfs `{0}` is not an ext4, squashfs or erofs image")]
    NotARootfs(PathBuf),
    /// The VMM is not installed.
    #[error("could not run the VMM `{0}`")]
    NoVmm(&'static str, #[source] crate::confine::ToolError),
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
    #[error("no engine for this architecture: the QEMU engine needs x86_64")]
    Architecture,
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
    /// The VMM's process could not be stopped or continued.
    #[error("could not signal the VMM")]
    Signal(#[source] io::Error),
    /// A VM could not be frozen.
    #[error("could not freeze the VM: {0}")]
    Freeze(String),
    /// A file or a socket for the VM could not be made.
    #[error("could not prepare {0}")]
    Prepare(&'static str, #[source] io::Error),
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
    /// The writable disk, open for reading and writing.
    pub(crate) scratch: File,
    /// What its memory is made of, if it is to be frozen: a file of this size, which it alone uses.
    pub(crate) memory: Option<File>,
    /// Its own directory.
    #[cfg_attr(not(feature = "fake"), expect(dead_code, reason = "QEMU gets descriptors, and no path"))]
    pub(crate) dir: PathBuf,
}

/// A VM that was stopped for good between two instructions, to go on as many others.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Its memory: sealed, so that nobody can change it.
    pub(crate) memory: File,
    /// The state of its processors and devices, in the engine's own form.
    pub(crate) devices: Bytes,
    /// Its writable disk as it was then.
    pub(crate) scratch: File,
}

/// Makes VMs.
#[async_trait::async_trait]
pub(crate) trait Engine: Send + Sync + std::fmt::Debug {
    /// The name that clients see.
    fn name(&self) -> &'static str;

    /// What executes its guests.
    fn acceleration(&self) -> Acceleration;

    /// Starts a VM. What it acquires it pushes to `undo`, to be released after the VM was stopped.
    async fn boot(&self, spec: VmSpec, undo: &mut Undo) -> Result<Box<dyn Vm>, EngineError>;

    /// What a frozen VM depends on beside its disks and its size, as text that differs when any of it does;
    /// `None` for an engine that can freeze nothing.
    fn freezes(&self) -> Option<String>;

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
    /// The byte stream to the guest. There is one; a second call fails.
    fn connect(&mut self) -> io::Result<UnixStream>;

    /// Waits until the VM has ended by itself, and says what is known of the reason. May be dropped and
    /// called again.
    async fn exited(&mut self) -> String;

    /// Stops its processors: it uses no CPU until [`Vm::resume`].
    async fn pause(&mut self) -> Result<(), EngineError>;

    /// Lets its processors go on.
    async fn resume(&mut self) -> Result<(), EngineError>;

    /// Stops it for good, and returns the state of its processors and devices. It must have been started
    /// with [`VmSpec::memory`], where its memory is afterwards.
    async fn freeze(&mut self) -> Result<Bytes, EngineError>;

    /// Ends the VM, and returns when its process is gone.
    async fn stop(&mut self);
}
