//! The files that VMs boot from.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::engine::EngineError;

/// What of a file tells its format: an ext4 superblock lies in the second KiB.
const START_BYTES: usize = 2048;
/// Drivers of a VM's disks and of its root file system. A kernel in which they are built in has their names as strings.
const DRIVERS: [&str; 2] = ["virtio_blk", "overlay"];

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

/// Checks that the file at `path` is a kernel that can be booted, and reports whether its modules are next to it. Without
/// modules, the drivers that every VM needs must be built in.
///
/// ```
/// use bouvet_host::{EngineError, images};
///
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), "\x7fELF and so on")?;
/// assert!(matches!(images::check_kernel(file.path()), Err(EngineError::NoModules { .. })), "no driver is in it");
/// std::fs::write(file.path(), "\x7fELF with virtio_blk\0, overlay\0 and so on")?;
/// assert!(!images::check_kernel(file.path())?, "there are no modules next to it");
/// std::fs::write(file.path(), "a bzImage, say")?;
/// assert!(matches!(images::check_kernel(file.path()), Err(EngineError::NotAKernel(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_kernel(path: &Path) -> Result<bool, EngineError> {
    if !read_start("kernel", path)?.starts_with(b"\x7fELF") {
        return Err(EngineError::NotAKernel(path.to_owned()));
    }
    if modules_of(path).is_file() {
        return Ok(true);
    }
    let failed = |source| EngineError::Missing { what: "kernel", path: path.to_owned(), source };
    match missing_driver(&fs::read(path).map_err(failed)?) {
        Some(driver) => Err(EngineError::NoModules { path: path.to_owned(), driver }),
        None => Ok(false),
    }
}

/// The first of the drivers that every VM needs whose name is not in a kernel's image: such a driver is not built in.
fn missing_driver(kernel: &[u8]) -> Option<&'static str> {
    DRIVERS.into_iter().find(|driver| {
        let name = [driver.as_bytes(), &[0]].concat();
        memchr::memmem::find(kernel, &name).is_none()
    })
}

/// Checks that the file at `path` holds a root file system, and says which: `ext4`.
///
/// ```
/// use bouvet_host::{EngineError, images};
///
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), "hsqs and so on")?;
/// assert_eq!(images::check_rootfs(file.path())?, "squashfs");
/// std::fs::write(file.path(), "PK")?;
/// assert!(matches!(images::check_rootfs(file.path()), Err(EngineError::NotARootfs(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_rootfs(path: &Path) -> Result<&'static str, EngineError> {
    let file_system = bouvet_wire::disk::file_system(&read_start("rootfs", path)?);
    file_system.ok_or_else(|| EngineError::NotARootfs(path.to_owned()))
}

/// Checks that a VM's own user id can read what its VMM opens by name.
pub(crate) fn check_readable(what: &'static str, path: &Path) -> Result<(), EngineError> {
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode()).unwrap_or_default();
    if mode & 0o004 != 0 {
        return Ok(());
    }
    let source = io::Error::other(format!("its mode is {:o}: run `chmod o+r` on it", mode & 0o777));
    Err(EngineError::Missing { what, path: path.to_owned(), source })
}

/// Where the modules of `kernel` are, if it has any: `KERNEL.modules.cpio`.
pub(crate) fn modules_of(kernel: &Path) -> PathBuf {
    let mut beside = kernel.as_os_str().to_owned();
    beside.push(".modules.cpio");
    beside.into()
}
