//! The sandbox's root: the shared base below, its own scratch disk above.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bouvet_wire::disk::{self, BASE as BASE_DISK, SCRATCH as SCRATCH_DISK};
use rustix::mount::{MountFlags, mount};

use super::{Error, modules, mount_new};

const BASE: &str = "/base";
const SCRATCH: &str = "/scratch";

/// Mounts the overlay of base and scratch at `target`.
pub(super) fn mount_root(target: &Path) -> Result<(), Error> {
    let base = find(BASE_DISK)?;
    let kind = file_system(&base).map_err(|error| Error::Disk(BASE_DISK, error))?;
    let kind = kind.ok_or(Error::UnknownFileSystem)?;
    modules::load(kind)?;
    modules::load("overlay")?;
    // No journal may be replayed on a disk that others share.
    let options = if kind == "ext4" { c"noload" } else { c"" };
    let flags = MountFlags::NOATIME | MountFlags::NODEV;
    mount_new(&base.to_string_lossy(), BASE, kind, flags | MountFlags::RDONLY, options)?;
    // Unused parts of a disk that is thrown away need not be written in the background.
    let options = c"noinit_itable";
    mount_new(&find(SCRATCH_DISK)?.to_string_lossy(), SCRATCH, "ext4", flags, options)?;

    let failed = |error: io::Error| Error::Mount(target.into(), error);
    let (upper, work) = (format!("{SCRATCH}/upper"), format!("{SCRATCH}/work"));
    for dir in [Path::new(&upper), Path::new(&work), target] {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    // Volatile: nothing is synced, where this disk does not outlive the VM that wrote it.
    let volatile = if is_durable().map_err(failed)? { "" } else { ",volatile" };
    let options = format!("lowerdir={BASE},upperdir={upper},workdir={work}{volatile}");
    let options = std::ffi::CString::new(options).map_err(|error| failed(error.into()))?;
    mount("overlay", target, "overlay", MountFlags::NOATIME, &*options).map_err(|error| failed(error.into()))
}

/// Whether the kernel's command line says that the scratch disk outlives the VM.
pub(super) fn is_durable() -> io::Result<bool> {
    let line = fs::read_to_string("/proc/cmdline")?;
    Ok(line.split_whitespace().any(|word| word == disk::DURABLE_WORD))
}

/// The device node of the disk with this serial number. Firecracker gives its disks none that we could choose: there
/// the base is the only disk that cannot be written, and the scratch disk the only one that can. Drivers probe before
/// their module's load returns, so a disk is there by now or not at all.
fn find(serial: &'static str) -> Result<PathBuf, Error> {
    let disks = fs::read_dir("/sys/block").map_err(|error| Error::Disk(serial, error))?;
    let disks: Vec<PathBuf> = disks.flatten().map(|disk| disk.path()).collect();
    let attribute = |disk: &PathBuf, name: &str| {
        fs::read_to_string(disk.join(name)).map(|text| text.trim_end().to_owned()).unwrap_or_default()
    };
    let mut named = disks.iter().filter(|disk| attribute(disk, "serial") == serial);
    let read_only = if serial == BASE_DISK { "1" } else { "0" };
    // Of memory disks and the like there is no device below.
    let real = disks.iter().filter(|disk| disk.join("device").exists());
    let mut fitting = real.filter(|disk| attribute(disk, "ro") == read_only);
    let found = match (named.next(), fitting.next(), fitting.next()) {
        (Some(disk), ..) | (None, Some(disk), None) => disk,
        _ => return Err(Error::NoDisk(serial)),
    };
    Ok(Path::new("/dev").join(found.file_name().unwrap_or_default()))
}

fn file_system(device: &Path) -> io::Result<Option<&'static str>> {
    let mut start = [0; 2048];
    File::open(device)?.read_exact(&mut start)?;
    Ok(disk::file_system(&start))
}
