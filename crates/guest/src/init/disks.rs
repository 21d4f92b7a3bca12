//! The roots of the sandbox and of its sidecar: each a shared image below, and above it what is its own of the scratch
//! disk.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bouvet_wire::disk::{self, BASE as BASE_DISK, SCRATCH as SCRATCH_DISK, SIDECAR as SIDECAR_DISK};
use rustix::mount::{MountFlags, mount};

use super::{Error, modules, mount_new};

const BASE: &str = "/base";
const SIDECAR: &str = "/sidecar";
const SCRATCH: &str = "/scratch";

/// Mounts the overlay of base and scratch at `target`.
pub(super) fn mount_root(target: &Path) -> Result<(), Error> {
    mount_image(&find(BASE_DISK)?.ok_or(Error::NoDisk(BASE_DISK))?, BASE_DISK, BASE)?;
    // Unused parts of a disk that is thrown away need not be written in the background.
    let options = c"noinit_itable";
    let scratch = find(SCRATCH_DISK)?.ok_or(Error::NoDisk(SCRATCH_DISK))?;
    let flags = MountFlags::NOATIME | MountFlags::NODEV;
    mount_new(&scratch.to_string_lossy(), SCRATCH, "ext4", flags, options)?;
    mount_overlay(BASE, "", target)
}

/// Mounts the overlay of the sidecar's image and scratch at `target`; says whether the VM has that image.
pub(super) fn mount_sidecar(target: &Path) -> Result<bool, Error> {
    let Some(image) = find(SIDECAR_DISK)? else { return Ok(false) };
    mount_image(&image, SIDECAR_DISK, SIDECAR)?;
    mount_overlay(SIDECAR, "sidecar-", target)?;
    Ok(true)
}

fn mount_image(disk: &Path, name: &'static str, target: &str) -> Result<(), Error> {
    let kind = file_system(disk).map_err(|error| Error::Disk(name, error))?;
    let kind = kind.ok_or(Error::UnknownFileSystem)?;
    modules::load(kind)?;
    // No journal may be replayed on a disk that others share.
    let options = if kind == "ext4" { c"noload" } else { c"" };
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::RDONLY;
    mount_new(&disk.to_string_lossy(), target, kind, flags, options)
}

/// Mounts what is written to directories of the scratch disk, whose names begin with `prefix`, over `lower`.
fn mount_overlay(lower: &str, prefix: &str, target: &Path) -> Result<(), Error> {
    modules::load("overlay")?;
    let failed = |error: io::Error| Error::Mount(target.into(), error);
    let (upper, work) = (format!("{SCRATCH}/{prefix}upper"), format!("{SCRATCH}/{prefix}work"));
    for dir in [Path::new(&upper), Path::new(&work), target] {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    // A disk comes back only after all was synced, so that what a volatile mount left there may be mounted again.
    match fs::remove_dir_all(format!("{work}/work/incompat")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Volatile: nothing is synced, where this disk does not outlive the VM that wrote it.
    let volatile = if is_durable().map_err(failed)? { "" } else { ",volatile" };
    // With redirects a directory of the image can be renamed; without, rename(2) fails with EXDEV.
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on{volatile}");
    let options = std::ffi::CString::new(options).map_err(|error| failed(error.into()))?;
    mount("overlay", target, "overlay", MountFlags::NOATIME, &*options).map_err(|error| failed(error.into()))
}

/// Whether the kernel's command line says that the scratch disk outlives the VM.
pub(super) fn is_durable() -> io::Result<bool> {
    let line = fs::read_to_string("/proc/cmdline")?;
    Ok(line.split_whitespace().any(|word| word == disk::DURABLE_WORD))
}

/// The device node of the disk with this serial number, if there is one. Firecracker gives its disks none that we could
/// choose: there the base is the first disk that cannot be written, the sidecar's the second, and the scratch disk the
/// only one that can. Drivers probe before their module's load returns, so a disk is there by now or not at all.
fn find(serial: &'static str) -> Result<Option<PathBuf>, Error> {
    let disks = fs::read_dir("/sys/block").map_err(|error| Error::Disk(serial, error))?;
    let mut disks: Vec<PathBuf> = disks.flatten().map(|disk| disk.path()).collect();
    // They are named in the order in which the VMM has them.
    disks.sort();
    let attribute = |disk: &PathBuf, name: &str| {
        fs::read_to_string(disk.join(name)).map(|text| text.trim_end().to_owned()).unwrap_or_default()
    };
    let mut named = disks.iter().filter(|disk| attribute(disk, "serial") == serial);
    let (read_only, place) = match serial {
        SCRATCH_DISK => ("0", 0),
        SIDECAR_DISK => ("1", 1),
        _ => ("1", 0),
    };
    // Of memory disks and the like there is no device below.
    let real = disks.iter().filter(|disk| disk.join("device").exists());
    let mut fitting = real.filter(|disk| attribute(disk, "ro") == read_only);
    let found = named.next().or_else(|| fitting.nth(place));
    Ok(found.map(|disk| Path::new("/dev").join(disk.file_name().unwrap_or_default())))
}

fn file_system(device: &Path) -> io::Result<Option<&'static str>> {
    let mut start = [0; 2048];
    File::open(device)?.read_exact(&mut start)?;
    Ok(disk::file_system(&start))
}
