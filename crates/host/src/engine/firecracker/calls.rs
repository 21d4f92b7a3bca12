//! The calls of Firecracker's API that we make, and no others. Their form is that of its OpenAPI description
//! (`src/firecracker/swagger/firecracker.yaml`), against which tests hold every one of them.

use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{FirecrackerOptions, jail};
use crate::engine::VmSpec;

/// How long a call may take that only changes the VM's configuration.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to load or write a VM's memory.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);

/// The guest's address on vsock: the first that is nobody else's. Each VM has a vsock of its own.
const GUEST_CID: u32 = 3;

/// What calls say of a VM's size and disks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hardware {
    pub(super) vcpus: u32,
    pub(super) memory_mb: u32,
    /// Whether the scratch disk outlives the VM.
    pub(super) durable: bool,
    /// Whether there is a disk of a sidecar.
    pub(super) sidecar: bool,
}

impl From<&VmSpec> for Hardware {
    fn from(spec: &VmSpec) -> Self {
        let VmSpec { vcpus, memory_mb, durable, .. } = *spec;
        Self { vcpus, memory_mb, durable, sidecar: spec.sidecar.is_some() }
    }
}

/// What a VM is told to be that boots.
pub(super) fn boot<'a>(
    options: &'a FirecrackerOptions,
    boot_args: &'a str,
    hardware: Hardware,
) -> Vec<Call<'a>> {
    let Hardware { vcpus, memory_mb, durable, sidecar } = hardware;
    let rate_limiter = options.rate_limiter();
    // Flushes are for a disk that outlives the VM.
    let cache_type = if durable { "Writeback" } else { "Unsafe" };
    let drive = |drive_id, path_on_host, is_read_only| {
        let is_root_device = false;
        Call::Drive(Drive { drive_id, path_on_host, is_root_device, is_read_only, cache_type, rate_limiter })
    };
    let machine = [
        Call::Machine(Machine {
            vcpu_count: vcpus,
            mem_size_mib: memory_mb,
            smt: false,
            cpu_template: options.cpu_template.as_deref(),
            huge_pages: options.huge_pages.then_some("2M"),
        }),
        Call::BootSource(BootSource {
            kernel_image_path: jail::KERNEL,
            initrd_path: jail::INITRAMFS,
            boot_args,
        }),
        // The guest knows them by this order.
        drive(DriveId::Base, jail::BASE, true),
        drive(DriveId::Scratch, jail::SCRATCH, false),
    ];
    let sidecar = sidecar.then(|| drive(DriveId::Sidecar, jail::SIDECAR, true));
    let vsock = Call::Vsock(Vsock { guest_cid: GUEST_CID, uds_path: jail::LINK_SOCKET });
    machine.into_iter().chain(sidecar).chain([vsock, Call::Start]).collect()
}

/// What a paused VM is told that is to be frozen.
pub(super) fn freeze() -> Call<'static> {
    Call::Freeze(Freeze { snapshot_type: "Full", snapshot_path: jail::STATE, mem_file_path: jail::MEMORY })
}

/// What a VM is told that goes on as a frozen one.
pub(super) fn load() -> Call<'static> {
    Call::Load(Load {
        snapshot_path: jail::STATE,
        mem_backend: MemoryBackend { backend_type: "File", backend_path: jail::MEMORY },
        resume_vm: true,
    })
}

/// One call.
#[derive(Debug)]
pub(super) enum Call<'a> {
    /// Processors and memory. Before the start only.
    Machine(Machine<'a>),
    /// What is booted. Before the start only.
    BootSource(BootSource<'a>),
    /// A disk. Before the start only.
    Drive(Drive<'a>),
    /// The device by which the link goes. Before the start only.
    Vsock(Vsock<'a>),
    /// Boots.
    Start,
    /// Stops the processors; see [`Call::Freeze`].
    Pause,
    /// Writes devices and memory of a paused VM into files.
    Freeze(Freeze<'a>),
    /// Becomes a VM that was frozen, and lets it go on.
    Load(Load<'a>),
}

impl Call<'_> {
    /// Method and path, for messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Machine(_) => "PUT /machine-config",
            Self::BootSource(_) => "PUT /boot-source",
            Self::Drive(_) => "PUT /drives",
            Self::Vsock(_) => "PUT /vsock",
            Self::Start => "PUT /actions InstanceStart",
            Self::Pause => "PATCH /vm Paused",
            Self::Freeze(_) => "PUT /snapshot/create",
            Self::Load(_) => "PUT /snapshot/load",
        }
    }

    pub(super) fn method(&self) -> Method {
        match self {
            Self::Pause => Method::PATCH,
            _ => Method::PUT,
        }
    }

    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Machine(_) => "/machine-config",
            Self::BootSource(_) => "/boot-source",
            Self::Drive(drive) => drive.drive_id.path(),
            Self::Vsock(_) => "/vsock",
            Self::Start => "/actions",
            Self::Pause => "/vm",
            Self::Freeze(_) => "/snapshot/create",
            Self::Load(_) => "/snapshot/load",
        }
    }

    pub(super) fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Machine(machine) => serde_json::to_vec(machine),
            Self::BootSource(source) => serde_json::to_vec(source),
            Self::Drive(drive) => serde_json::to_vec(drive),
            Self::Vsock(vsock) => serde_json::to_vec(vsock),
            Self::Start => serde_json::to_vec(&serde_json::json!({ "action_type": "InstanceStart" })),
            Self::Pause => serde_json::to_vec(&serde_json::json!({ "state": "Paused" })),
            Self::Freeze(freeze) => serde_json::to_vec(freeze),
            Self::Load(load) => serde_json::to_vec(load),
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        match self {
            Self::Freeze(_) | Self::Load(_) | Self::Start => SNAPSHOT_DEADLINE,
            _ => DEADLINE,
        }
    }
}

/// `MachineConfiguration`.
#[derive(Debug, Serialize)]
pub(super) struct Machine<'a> {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u32,
    /// Threads of one core would see each other's caches.
    pub(super) smt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_template: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) huge_pages: Option<&'a str>,
}

/// `BootSource`. Paths are those that the VMM sees.
#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    pub(super) kernel_image_path: &'a str,
    pub(super) initrd_path: &'a str,
    pub(super) boot_args: &'a str,
}

/// Names of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DriveId {
    Base,
    Scratch,
    Sidecar,
}

impl DriveId {
    fn path(self) -> &'static str {
        match self {
            Self::Base => "/drives/base",
            Self::Scratch => "/drives/scratch",
            Self::Sidecar => "/drives/sidecar",
        }
    }
}

/// `Drive`.
#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    pub(super) drive_id: DriveId,
    pub(super) path_on_host: &'a str,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    /// `Unsafe`: without flushes, as the disk does not outlive the VM.
    pub(super) cache_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate_limiter: Option<RateLimiter>,
}

/// `RateLimiter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// So many bytes and operations each second; `None` where neither is limited.
    pub(super) fn per_second(bytes: Option<u64>, operations: Option<u64>) -> Option<Self> {
        let bucket = |size| TokenBucket { size, refill_time: 1000 };
        let limiter = Self { bandwidth: bytes.map(bucket), ops: operations.map(bucket) };
        (bytes.is_some() || operations.is_some()).then_some(limiter)
    }
}

/// `TokenBucket`: `size` bytes or operations each `refill_time` milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct TokenBucket {
    pub(super) size: u64,
    pub(super) refill_time: u64,
}

/// `Vsock`.
#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    /// 3 or more: 2 is the host, in every guest.
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a str,
}

/// `SnapshotCreateParams`.
#[derive(Debug, Serialize)]
pub(super) struct Freeze<'a> {
    pub(super) snapshot_type: &'a str,
    pub(super) snapshot_path: &'a str,
    pub(super) mem_file_path: &'a str,
}

/// `SnapshotLoadParams`.
#[derive(Debug, Serialize)]
pub(super) struct Load<'a> {
    pub(super) snapshot_path: &'a str,
    pub(super) mem_backend: MemoryBackend<'a>,
    pub(super) resume_vm: bool,
}

/// `MemoryBackend`.
#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend<'a> {
    /// `File`: mapped privately, so that clones share what they do not write.
    pub(super) backend_type: &'a str,
    pub(super) backend_path: &'a str,
}

/// `FirecrackerVersion`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Version {
    pub(super) firecracker_version: String,
}
