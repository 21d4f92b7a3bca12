//! Where a Firecracker runs, and what it sees there.
//!
//! Each VM has a root directory, and every path that it is told is a name in there. So what a snapshot remembers is
//! each clone's own.
//!
//! ```text
//! kernel, initramfs, base   what all VMs share, for reading only
//! sidecar                   the same, where a sandbox has one
//! memory                    of a clone: its template's
//! scratch                   its own disk
//! state                     of its processors and devices, when it is frozen or restored
//! api.sock, v.sock          made by Firecracker
//! ```
//!
//! As root, with the jailer beside Firecracker: chroot, user id, namespaces and devices are the jailer's work, and the
//! root directory lies where it wants it. As root without: the same but for the chroot is ours. Not as root: nothing
//! can be taken, and Firecracker's own seccomp filter remains.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::confine::{Bind, Confinement, Spec};
use crate::kvm::Kvm;

pub(super) const API_SOCKET: &str = "api.sock";
pub(super) const LINK_SOCKET: &str = "v.sock";
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const BASE: &str = "base";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const SIDECAR: &str = "sidecar";
pub(super) const MEMORY: &str = "memory";
pub(super) const STATE: &str = "state";

/// The name that each Firecracker is given: its directory already tells it apart.
const ID: &str = "vm";

/// What confines a Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Jail {
    /// The jailer, as root.
    Jailer,
    /// We, as root.
    Ours,
    /// Nobody but itself.
    Unprivileged,
}

/// The programs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) firecracker: PathBuf,
    pub(super) jailer: PathBuf,
    pub(super) jail: Jail,
}

/// Something that a VM sees in its root directory.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) name: &'static str,
    pub(super) file: OwnedFd,
}

impl Programs {
    /// Chooses for `firecracker`, run as root or not.
    pub(super) fn find(firecracker: &Path, root: bool) -> Self {
        let jailer = firecracker.with_file_name("jailer");
        let jail = match (root, jailer.is_file()) {
            (true, true) => Jail::Jailer,
            (true, false) => Jail::Ours,
            (false, _) => Jail::Unprivileged,
        };
        Self { firecracker: firecracker.to_owned(), jailer, jail }
    }

    /// The root directory of the VM whose directory is `dir`.
    pub(super) fn root(&self, dir: &Path) -> PathBuf {
        match (self.jail, self.firecracker.file_name()) {
            // Where the jailer puts it: `src/jailer/src/env.rs`, `Env::new`.
            (Jail::Jailer, Some(name)) => dir.join(name).join(ID).join("root"),
            _ => dir.join("root"),
        }
    }

    /// What to run for the VM whose directory is `dir`, as the user `uid`.
    pub(super) fn program(&self, dir: &Path, uid: Option<u32>) -> Spec {
        // What it says of each call would bury what it says last.
        let own = ["--api-sock", API_SOCKET, "--level", "Warning"].map(OsString::from);
        let (program, args): (_, Vec<OsString>) = match (self.jail, uid) {
            (Jail::Jailer, Some(uid)) => {
                let uid = OsString::from(uid.to_string());
                let named = [
                    ("--id", ID.into()),
                    ("--exec-file", self.firecracker.clone().into()),
                    ("--uid", uid.clone()),
                    ("--gid", uid),
                    ("--chroot-base-dir", dir.into()),
                    // With none named beside it, the jailer leaves cgroups to us.
                    ("--cgroup-version", "1".into()),
                ];
                let jailers = named.into_iter().flat_map(|(name, value)| [name.into(), value]);
                (&self.jailer, jailers.chain(["--".into()]).chain(own).collect())
            }
            _ => (&self.firecracker, ["--id".into(), ID.into()].into_iter().chain(own).collect()),
        };
        Spec { program: program.clone(), args, dir: Some(self.root(dir)), output: true, ..Spec::default() }
    }

    /// What is taken from it before it runs. `mounts` are those of [`Programs::lay_out`].
    pub(super) fn confinement(&self, uid: Option<u32>, mounts: Vec<Bind>) -> Confinement<'static> {
        let none = Confinement { mounts, ..Confinement::default() };
        match self.jail {
            // Its user id is the jailer's to change, which needs privilege for the rest of its work.
            Jail::Jailer => Confinement { namespaces: true, ..none },
            Jail::Ours => {
                let groups = Kvm::group().into_iter().collect();
                Confinement { namespaces: true, id: uid, groups, ..none }
            }
            Jail::Unprivileged => none,
        }
    }

    /// Makes the root directory of the VM whose directory is `dir`, with its own files and those that are shown to
    /// it. These must be kept open while it starts.
    pub(super) fn lay_out(
        &self,
        dir: &Path,
        uid: Option<u32>,
        shown: &[Shown],
        scratch: Option<&fs::File>,
    ) -> io::Result<Vec<Bind>> {
        let root = self.root(dir);
        fs::create_dir_all(&root)?;
        if let Some(scratch) = scratch {
            let opened = PathBuf::from(format!("/proc/self/fd/{}", scratch.as_raw_fd()));
            let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, opened, rustix::fs::CWD, root.join(SCRATCH), follow)?;
            chown(root.join(SCRATCH), uid, uid)?;
        }
        let mounts = self.show(&root, shown)?;
        chown(&root, uid, uid)?;
        Ok(mounts)
    }

    fn show(&self, root: &Path, shown: &[Shown]) -> io::Result<Vec<Bind>> {
        let mut mounts = Vec::new();
        for Shown { name, file } in shown {
            match self.jail {
                Jail::Jailer | Jail::Ours => mounts.push(Bind::new(file, &root.join(name))?),
                // The same user may open what we have open.
                Jail::Unprivileged => {
                    let open = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                    std::os::unix::fs::symlink(open, root.join(name))?;
                }
            }
        }
        Ok(mounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(jail: Jail) -> Programs {
        Programs { firecracker: "/opt/firecracker-1.9".into(), jailer: "/opt/jailer".into(), jail }
    }

    fn words(spec: &Spec) -> String {
        let args = spec.args.iter().map(|arg| arg.to_str().unwrap());
        [spec.program.to_str().unwrap()].into_iter().chain(args).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_jailer_is_told_everything_by_name() {
        let jailed = programs(Jail::Jailer);
        let spec = jailed.program(Path::new("/d/sandbox"), Some(1_900_000_007));
        assert_eq!(
            words(&spec),
            "/opt/jailer --id vm --exec-file /opt/firecracker-1.9 --uid 1900000007 --gid 1900000007 \
             --chroot-base-dir /d/sandbox --cgroup-version 1 -- --api-sock api.sock --level Warning"
        );
        assert_eq!(spec.dir.as_deref(), Some(Path::new("/d/sandbox/firecracker-1.9/vm/root")));
        let confinement = jailed.confinement(Some(1_900_000_007), Vec::new());
        assert!(confinement.id.is_none() && confinement.namespaces);
    }

    #[test]
    fn without_a_jailer_we_take_what_it_would() {
        let ours = programs(Jail::Ours);
        let spec = ours.program(Path::new("/d/sandbox"), Some(1_900_000_007));
        assert_eq!(words(&spec), "/opt/firecracker-1.9 --id vm --api-sock api.sock --level Warning");
        assert_eq!(spec.dir.as_deref(), Some(Path::new("/d/sandbox/root")));
        let confinement = ours.confinement(Some(1_900_000_007), Vec::new());
        assert!(confinement.id == Some(1_900_000_007) && confinement.namespaces);
    }

    #[test]
    fn seccomp_filters_are_never_switched_off() {
        for jail in [Jail::Jailer, Jail::Ours, Jail::Unprivileged] {
            assert!(!words(&programs(jail).program(Path::new("/d"), Some(1))).contains("seccomp"));
        }
    }

    #[test]
    fn a_root_directory_has_the_disk_and_shows_what_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let unprivileged = programs(Jail::Unprivileged);
        fs::write(dir.path().join("kernel"), "of all").unwrap();
        fs::write(dir.path().join("scratch.ext4"), "its own").unwrap();
        let scratch = fs::File::open(dir.path().join("scratch.ext4")).unwrap();
        let shown = [Shown { name: KERNEL, file: fs::File::open(dir.path().join("kernel")).unwrap().into() }];
        let mounts = unprivileged.lay_out(dir.path(), None, &shown, Some(&scratch)).unwrap();
        assert!(mounts.is_empty(), "they take privilege");
        let root = unprivileged.root(dir.path());
        assert_eq!(fs::read_to_string(root.join(KERNEL)).unwrap(), "of all");
        assert_eq!(fs::read_to_string(root.join(SCRATCH)).unwrap(), "its own");
    }
}
