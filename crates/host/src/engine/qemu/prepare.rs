//! What is checked, and made, before the first VM.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{BINARY, Options};
use crate::confine::{self, Confinement, Spec};
use crate::engine::EngineError;

const OLDEST: (u32, u32) = (7, 2);
/// What of a file tells its format: an ext4 superblock lies in the second KiB.
const START_BYTES: usize = 2048;
/// How long a process that does nothing may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The version as QEMU prints it: that of the distribution's package is part of it.
pub(super) async fn check_version() -> Result<String, EngineError> {
    let printed = confine::run_tool(BINARY, ["--version"].iter())
        .await
        .map_err(|error| EngineError::NoVmm(BINARY, error))?;
    let first_line = printed.lines().next().unwrap_or_default().to_owned();
    match parse_version(&printed) {
        Some(version) if version >= OLDEST => Ok(first_line),
        _ => {
            let found = first_line;
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

/// Text that differs when the VMM, the kernel, the rootfs or the guest does. Of large files it has not the
/// content, but when and where that was written: the kernel changes both with any change of the content.
pub(super) fn identity(version: &str, options: &Options<'_>, initramfs: &Path) -> io::Result<String> {
    let of_file = |path: &Path| {
        let file = fs::metadata(path)?;
        let written = (file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec());
        io::Result::Ok(format!("{:?}", (file.dev(), file.ino(), file.len(), written)))
    };
    let (kernel, rootfs) = (of_file(options.kernel)?, of_file(options.rootfs)?);
    let guest = Sha256::digest(fs::read(initramfs)?);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    Ok(format!("{version} kernel={kernel} rootfs={rootfs} guest={guest:x} {model}"))
}

/// Starts the VMM, confined as a VM's process will be, to do nothing. In a container without the capability
/// to unshare, every VM would fail by the same error, and later.
pub(super) async fn check_confinement(options: &Options<'_>) -> Result<(), EngineError> {
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

pub(super) fn check_kernel(path: &Path) -> Result<(), EngineError> {
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

pub(super) fn check_rootfs(path: &Path) -> Result<(), EngineError> {
    match bouvet_wire::disk::file_system(&read_start("rootfs", path)?) {
        Some(_) => Ok(()),
        None => Err(EngineError::NotARootfs(path.to_owned())),
    }
}

/// The initramfs for `kernel`, with the modules that lie beside it in `KERNEL.modules.cpio`, if any do.
pub(super) fn write_initramfs(path: &Path, kernel: &Path) -> Result<(), EngineError> {
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
pub(super) fn hardware_virtualization() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_flag = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    has_flag && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The group that may open `/dev/kvm`.
pub(super) fn kvm_group() -> Option<u32> {
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
