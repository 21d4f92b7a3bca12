//! What the thread that serves a volume takes from itself before it answers anything, so that a fault in what it does
//! for a hostile guest reaches no further than that volume.
//!
//! | Layer | What it does | Needs |
//! |---|---|---|
//! | landlock | nothing outside the volume can be opened, made, moved or removed, and in a read-only one nothing changed; nothing can be executed; no TCP | Linux 5.13; all of it 6.10 |
//! | its own root directory | no path leads out of the volume | root, and a volume that is a directory |
//! | capabilities | root's are gone, but those that go with the ownership of files | root |
//! | `no_new_privs` | they do not come back | |
//!
//! Each happens or the volume is refused, but for landlock, which some kernels do not have: that is logged.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Once;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};
use rustix::fs::Mode;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use tracing::warn;

/// To give files away, to read and write everybody's, and to change what only their owner may. Without
/// `CAP_FSETID` a program loses its set-user-id when it is written to, and without the others there are no devices, no
/// files by number, no extended attributes that mean something to the kernel and nobody's disk quota to exceed.
const KEPT: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::DAC_OVERRIDE).union(CapabilitySet::FOWNER);

/// Why a thread could not be confined.
///
/// ```no_run
/// use bouvet_host::{ConfineError, VolumeError, VolumeSpec};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mounted = sandbox.mount(&[VolumeSpec::parse("/home/me/project:/workspace")?]).await;
/// if let Err(VolumeError::Confine(_, ConfineError::Landlock(error))) = mounted {
///     println!("this kernel refuses: {error}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refused.
    #[error("could not {0}")]
    Step(&'static str, #[source] io::Error),
    /// The kernel has landlock and refused.
    #[error("could not restrict it to the volume by landlock")]
    Landlock(#[source] landlock::RulesetError),
}

/// Confines the calling thread, and those that it starts later, to what is below `root`.
pub(super) fn confine_thread(root: &OwnedFd, is_dir: bool, read_only: bool) -> Result<(), ConfineError> {
    let step = |what| move |error: io::Error| ConfineError::Step(what, error);
    // Its own, or the next two would be the whole process's.
    crate::confine::unshare(UnshareFlags::FS).map_err(step("give it a working directory of its own"))?;
    // The guest's kernel has applied that of whoever makes a file.
    rustix::process::umask(Mode::empty());
    if is_dir && rustix::process::geteuid().is_root() {
        let enter = || {
            rustix::process::fchdir(root)?;
            Ok(rustix::process::chroot(c".")?)
        };
        enter().map_err(step("make the volume its root directory"))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| step("bar it from privileges")(error.into()))?;
    drop_capabilities().map_err(step("take its capabilities"))?;
    restrict(root, is_dir, read_only).map_err(ConfineError::Landlock)
}

fn drop_capabilities() -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let kept = if rustix::process::geteuid().is_root() { KEPT } else { CapabilitySet::empty() };
    let kept = now.permitted & kept;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn restrict(root: &OwnedFd, is_dir: bool, read_only: bool) -> Result<(), landlock::RulesetError> {
    // What an older kernel does not know is left out.
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .create()?
        .add_rule(PathBeneath::new(root, rights(is_dir, read_only)))?
        .restrict_self()?;
    static WARNED: Once = Once::new();
    if status.ruleset == RulesetStatus::NotEnforced {
        WARNED.call_once(|| {
            warn!("this kernel has no landlock: volumes are confined by how files are opened alone");
        });
    }
    Ok(())
}

/// What may be done below the volume. Never to execute, to make anything but files, directories and links, or to
/// speak to devices.
fn rights(is_dir: bool, read_only: bool) -> BitFlags<AccessFs> {
    let mut rights: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    if !read_only {
        rights |= AccessFs::WriteFile | AccessFs::Truncate;
    }
    if is_dir {
        rights |= AccessFs::ReadDir;
    }
    if is_dir && !read_only {
        rights |= AccessFs::MakeDir | AccessFs::MakeReg | AccessFs::MakeSym;
        rights |= AccessFs::RemoveDir | AccessFs::RemoveFile | AccessFs::Refer;
    }
    rights
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a thread could still do if all other rules failed.
    #[test]
    fn a_confined_thread_reaches_nothing_outside_the_volume() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let volume = tempfile::tempdir().unwrap();
        fs::write(volume.path().join("file"), "inside").unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let open = |path: &std::path::Path| rustix::fs::open(path, flags, Mode::empty()).unwrap();
        let (root, other) = (open(volume.path()), open(outside.path()));
        let thread = std::thread::spawn(move || {
            confine_thread(&root, true, false).unwrap();
            let read = |dir: &OwnedFd, name| {
                rustix::fs::openat(dir, name, rustix::fs::OFlags::RDONLY, Mode::empty()).map(drop)
            };
            assert_eq!(read(&root, c"file"), Ok(()));
            let escapes = [(&other, c"secret"), (&root, c"/etc/passwd"), (&root, c"../../etc/passwd")];
            let seen = escapes.map(|(dir, path)| read(dir, path).is_ok());
            let made = rustix::fs::mkdirat(&other, c"made", Mode::RWXU).is_ok();
            (seen, made, rustix::thread::capabilities(None).unwrap().permitted)
        });
        let (seen, made, capabilities) = thread.join().unwrap();
        assert_eq!((seen, made), ([false; 3], false));
        assert!(KEPT.contains(capabilities));
        // It was that thread alone.
        assert!(fs::read_to_string("/etc/passwd").is_ok());
    }
}
