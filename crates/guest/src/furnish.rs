//! Makes a sandbox what its description says, before programs run in it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::PathBuf;

use bouvet_wire::v1;
use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};

/// Why it could not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not mount memory at `{0}`")]
    Tmpfs(PathBuf, #[source] io::Error),
    #[error("could not make the working directory `{0}`")]
    Directory(PathBuf, #[source] io::Error),
    #[error("could not share mounts with programs")]
    Shared(#[source] io::Error),
    #[error("could not make the root file system read-only")]
    ReadOnly(#[source] io::Error),
}

/// Mounts what `request` says, and makes its working directory. The rest of it is about programs.
pub(crate) fn furnish(request: &v1::FurnishRequest) -> Result<(), Error> {
    for tmpfs in &request.tmpfs {
        mount_tmpfs(tmpfs).map_err(|error| Error::Tmpfs((&tmpfs.path).into(), error))?;
    }
    if !request.working_dir.is_empty() {
        let failed = |error| Error::Directory((&request.working_dir).into(), error);
        fs::create_dir_all(&request.working_dir).map_err(failed)?;
    }
    if request.read_only {
        make_read_only().map_err(Error::ReadOnly)?;
    }
    if request.confinement.is_some() {
        // The namespaces to come see what is mounted later.
        let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        mount_change("/", shared).map_err(|error| Error::Shared(error.into()))?;
    }
    Ok(())
}

fn mount_tmpfs(tmpfs: &v1::Tmpfs) -> io::Result<()> {
    fs::create_dir_all(&tmpfs.path)?;
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, tmpfs.read_only);
    flags.set(MountFlags::NOEXEC, !tmpfs.exec);
    flags.set(MountFlags::NOSUID, !tmpfs.suid);
    flags.set(MountFlags::NODEV, !tmpfs.dev);
    let mut options = format!("mode={:o}", tmpfs.mode);
    if tmpfs.size_bytes > 0 {
        options.push_str(&format!(",size={}", tmpfs.size_bytes));
    }
    mount("tmpfs", &tmpfs.path, "tmpfs", flags, &*CString::new(options)?)?;
    Ok(())
}

/// Of the mount alone: what lies below stays as it is.
fn make_read_only() -> io::Result<()> {
    let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME;
    let now = rustix::fs::statvfs("/")?.f_flag;
    flags.set(MountFlags::NODEV, now.contains(StatVfsMountFlags::NODEV));
    Ok(mount_remount("/", flags, c"")?)
}
