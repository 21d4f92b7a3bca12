//! Makes a sandbox what its description says, before programs run in it.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bouvet_wire::v1;
use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount,
    move_mount, open_tree,
};

use crate::files::make_directories;
use crate::identity::{self, Identity};
use crate::{RUN_DIR, places};

/// Why it could not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not mount memory at `{0}`")]
    Tmpfs(PathBuf, #[source] io::Error),
    #[error("could not resize `/dev/shm`")]
    Shm(#[source] io::Error),
    #[error(transparent)]
    Sysctl(#[from] crate::sysctl::Error),
    #[error("could not make the working directory `{0}`")]
    Directory(PathBuf, #[source] io::Error),
    #[error(transparent)]
    User(#[from] identity::Error),
    #[error("could not share mounts with programs")]
    Shared(#[source] io::Error),
    #[error("could not make the root file system read-only")]
    ReadOnly(#[source] io::Error),
}

/// Mounts what `request` says, and makes its working directory. The rest of it is about programs.
pub(crate) fn furnish(request: &v1::FurnishRequest) -> Result<(), Error> {
    if request.shm_bytes > 0 {
        resize_shm(request.shm_bytes).map_err(Error::Shm)?;
    }
    crate::sysctl::set(&request.sysctls)?;
    for tmpfs in &request.tmpfs {
        mount_tmpfs(tmpfs).map_err(|error| Error::Tmpfs((&tmpfs.path).into(), error))?;
    }
    if !request.working_dir.is_empty() {
        make_working_dir(request)?;
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

fn resize_shm(bytes: u64) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount("/dev/shm", flags, &*CString::new(format!("size={bytes}"))?)?)
}

/// Makes the directory that programs start in, which belongs to their user.
fn make_working_dir(request: &v1::FurnishRequest) -> Result<(), Error> {
    let dir = Path::new("/").join(&request.working_dir);
    if dir.is_dir() {
        return Ok(());
    }
    let confinement = request.confinement.as_ref();
    let user = confinement.map_or("", |confinement| &confinement.user);
    let owner = Identity::find(user, &[])?;
    make_directories(&dir, &owner).map(drop).map_err(|error| Error::Directory(dir, error))
}

fn mount_tmpfs(tmpfs: &v1::Tmpfs) -> io::Result<()> {
    let path = Path::new(&tmpfs.path);
    places::make(path)?;
    // One above the service's own directory, as at `/run`, would hide what programs are started from.
    let own = match Path::new(RUN_DIR).canonicalize()?.starts_with(path.canonicalize()?) {
        true => Some(hold(RUN_DIR)?),
        false => None,
    };
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NOEXEC, !tmpfs.exec);
    flags.set(MountFlags::NOSUID, !tmpfs.suid);
    flags.set(MountFlags::NODEV, !tmpfs.dev);
    let mut options = format!("mode={:o},uid={},gid={}", tmpfs.mode, tmpfs.uid, tmpfs.gid);
    if tmpfs.size_bytes > 0 {
        options.push_str(&format!(",size={}", tmpfs.size_bytes));
    }
    let options = CString::new(options)?;
    mount("tmpfs", path, "tmpfs", flags, &*options)?;
    if let Some(own) = own {
        places::make(Path::new(RUN_DIR))?;
        move_mount(&own, "", CWD, RUN_DIR, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    if tmpfs.read_only {
        mount_remount(path, flags | MountFlags::RDONLY, &*options)?;
    }
    Ok(())
}

/// Clones the mounts at `path` and below, to mount them elsewhere.
fn hold(path: &str) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Of the mount alone: what lies below stays as it is.
fn make_read_only() -> io::Result<()> {
    let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME;
    let now = rustix::fs::statvfs("/")?.f_flag;
    flags.set(MountFlags::NODEV, now.contains(StatVfsMountFlags::NODEV));
    Ok(mount_remount("/", flags, c"")?)
}
