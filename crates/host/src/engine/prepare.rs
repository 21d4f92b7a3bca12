//! What is checked, and made, before the first VM of any engine.

use std::fs::{self, File};
use std::io;
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

/// The cgroup of the VM of `spec`, whose process may use `limit_mb` MiB, where VMs get one.
pub(super) fn cgroup(
    parent: Option<&cgroup::Parent>,
    spec: &VmSpec,
    limit_mb: u64,
    undo: &mut Undo,
) -> Result<Option<Arc<Cgroup>>, EngineError> {
    let Some(parent) = parent else {
        return match spec.limits.first_for_the_host() {
            Some(field) => Err(CgroupError::NoController { field, controller: "memory" }.into()),
            None => Ok(None),
        };
    };
    let cgroup = Arc::new(parent.create(&spec.name, limit_mb * 1024 * 1024, &spec.limits)?);
    let made = cgroup.clone();
    undo.push("the VM's cgroup", move || made.remove());
    Ok(Some(cgroup))
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
