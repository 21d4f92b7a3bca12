//! What is checked, and made, before the first VM of any engine.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{EngineError, Options, VmSpec};
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::confine::{Confinement, Spec};
use crate::images;
use crate::kvm::Kvm;
use crate::undo::Undo;

/// Guest memory for each byte of the page tables that map it: 512, by the process and once more by KVM.
const MEMORY_PER_PAGE_TABLES: u64 = 256;
/// How long a process that does nothing may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Identifies a file by when and where its content was written: the kernel changes both with any change of it.
pub(crate) fn file_identity(path: &Path) -> io::Result<String> {
    let file = fs::metadata(path)?;
    let written = (file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec());
    Ok(format!("{:?}", (file.dev(), file.ino(), file.len(), written)))
}

/// Text that differs when the kernel, the guest or the processor does. Of large files it has not the content: see
/// [`file_identity`].
pub(super) fn identity(options: &Options<'_>, initramfs: &Path) -> Result<String, EngineError> {
    let identity = || {
        let kernel = file_identity(options.kernel)?;
        let guest = Sha256::digest(fs::read(initramfs)?);
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processor.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
        let args = options.kernel_args;
        io::Result::Ok(format!("kernel={kernel} {args:?} guest={guest:x} {model}"))
    };
    identity().map_err(|error| EngineError::Prepare("the identity of the kernel", error))
}

/// Starts the VMM, confined as a VM's process will be, to do nothing. In a container without the capability
/// to unshare, every VM would fail by the same error, and later.
pub(super) async fn check_confinement(options: &Options<'_>, vmm: &Path) -> Result<(), EngineError> {
    let program = Spec { program: vmm.to_owned(), args: vec!["--version".into()], ..Spec::default() };
    let (id, namespaces) = (options.first_uid, options.first_uid.is_some());
    let confinement = Confinement { id, namespaces, ..Confinement::default() };
    let probe = async {
        let status = options.spawner.spawn(program, confinement).await?.wait().await?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the VMM ended ({status})"))) }
    };
    let probed = tokio::time::timeout(PROBE_DEADLINE, probe).await;
    probed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(EngineError::Confine)
}

/// Checks that a VM's own user, where it has one, can be given what opens `/dev/kvm`: the device's group.
pub(super) fn check_kvm_group(first_uid: Option<u32>) -> Result<(), EngineError> {
    match (first_uid, Kvm::group()) {
        (Some(_), None) => Err(EngineError::KvmClosed),
        _ => Ok(()),
    }
}

/// The cgroup of the VM of `spec`, whose VMM may use `own_mb` MiB beside the guest's memory, where VMs get one.
pub(super) fn cgroup(
    parent: Option<&cgroup::Parent>,
    spec: &VmSpec,
    own_mb: u64,
    undo: &mut Undo,
) -> Result<Option<Arc<Cgroup>>, EngineError> {
    let Some(parent) = parent else {
        return match spec.limits.first_for_the_host() {
            Some(field) => Err(CgroupError::NoController { field, controller: "memory" }.into()),
            None => Ok(None),
        };
    };
    let in_memory =
        in_memory_mb(&spec.scratch).map_err(|error| EngineError::Prepare("the scratch disk", error))?;
    let limit_mb = memory_limit_mb(spec.memory_mb, own_mb) + in_memory;
    let cgroup = Arc::new(parent.create(&spec.name, limit_mb * 1024 * 1024, &spec.limits)?);
    let made = cgroup.clone();
    undo.push("the VM's cgroup", move || made.remove());
    Ok(Some(cgroup))
}

/// MiB that a VM's process can use: the guest's memory, the page tables that map it, and `own_mb`.
fn memory_limit_mb(memory_mb: u32, own_mb: u64) -> u64 {
    let memory_mb = u64::from(memory_mb);
    memory_mb + memory_mb.div_ceil(MEMORY_PER_PAGE_TABLES) + own_mb
}

/// MiB of the host's memory that the scratch disk `file` may take for good.
fn in_memory_mb(file: &File) -> io::Result<u64> {
    match is_in_memory(file)? {
        true => Ok(file.metadata()?.len().div_ceil(1024 * 1024)),
        false => Ok(0),
    }
}

/// Whether a file system keeps its files in memory. Those of others are cached in memory too, but the kernel takes that
/// back when there is need.
pub(super) fn is_in_memory(file: impl AsFd) -> io::Result<bool> {
    const TMPFS_MAGIC: i64 = 0x0102_1994; // both by statfs(2)
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let file_system = rustix::fs::fstatfs(file)?.f_type;
    Ok([TMPFS_MAGIC, RAMFS_MAGIC].contains(&file_system))
}

/// The initramfs for `kernel`, with its modules.
pub(super) fn write_initramfs(path: &Path, kernel: &Path) -> Result<(), EngineError> {
    let beside = images::modules_of(kernel);
    let failed = |error| EngineError::Prepare("the initramfs", error);
    let modules = match fs::read(&beside) {
        Ok(modules) => modules,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            warn!(modules = %beside.display(), "no modules beside the kernel: it must have virtio built in");
            Vec::new()
        }
        Err(error) => return Err(failed(error)),
    };
    let mut file = File::create(path).map_err(failed)?;
    bouvet_image::initramfs::write(&mut file, &modules).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_limit_covers_guest_tables_and_vmm() {
        assert_eq!(memory_limit_mb(128, 128), 128 + 1 + 128);
        assert_eq!(memory_limit_mb(4096, 256), 4096 + 16 + 256);
    }

    #[test]
    fn files_in_memory_are_charged_whole() {
        let memory = super::super::memory::create(3).unwrap();
        assert_eq!(in_memory_mb(&memory).unwrap(), 3);
        memory.set_len((3 << 20) + 1).unwrap();
        assert_eq!(in_memory_mb(&memory).unwrap(), 4);
        assert!(!is_in_memory(File::open("/proc/self/status").unwrap()).unwrap());
    }
}
