//! What an operator reads when the server does not start: the error, and what to do about it.

use bouvet_host::{ClaimError, EngineError, StartError, chain};

use crate::serve::{Error, ListenError};

/// How the limit of open files is raised.
pub(crate) const RAISE_OPEN_FILES: &str =
    "raise it: `ulimit -n 4096`, or LimitNOFILE=4096 in a unit of systemd";

/// What a second server needs.
pub(crate) const SECOND_SERVER: &str = "use that server (`bouvet ps` lists its sandboxes), or set BOUVET_HTTP_PORT to a free port for a second one";

/// `error` in words.
pub(crate) fn on(error: &Error) -> String {
    let hint = match error {
        Error::Start(start) => of_start(start),
        Error::Listen(ListenError::Bouvet(_)) => SECOND_SERVER,
        Error::Listen(ListenError::Failed { .. }) => {
            "set BOUVET_HTTP_PORT to a free port, or BOUVET_TRANSPORT=stdio to serve no HTTP"
        }
        Error::Socket(_) => "set BOUVET_SOCKET to another path, or to off to serve no `bouvet` commands",
        Error::Descriptors(_) => RAISE_OPEN_FILES,
        Error::Http(_) | Error::Signal(_) => return chain(error),
    };
    format!("{}\n  try: {hint}", chain(error))
}

pub(crate) fn of_start(error: &StartError) -> &'static str {
    match error {
        StartError::Engine(engine) => of_engine(engine),
        StartError::Cgroup(_) => {
            "run the server as root, or name a cgroup that was delegated to it in BOUVET_CGROUP, or set \
             BOUVET_CGROUP=off to run VMs without a host limit of their memory"
        }
        StartError::Claim(ClaimError::InUse(..)) => {
            "stop one of them, or set BOUVET_CHROOT to another directory"
        }
        StartError::Claim(_) | StartError::Directory(..) => "set BOUVET_CHROOT to a directory of your own",
        StartError::Boxes(_) => "set BOUVET_DATA to a directory of your own",
        StartError::Templates(_) => "set BOUVET_TEMPLATES to a directory of your own, or to off",
        StartError::Thread(_) => "raise the limit of this service's threads (`ulimit -u`, `TasksMax`)",
    }
}

pub(crate) fn of_engine(error: &EngineError) -> &'static str {
    match error {
        EngineError::Missing { what: "kernel", .. } | EngineError::NotAKernel(_) => {
            "`make kernel` in the source tree makes images/output/vmlinux and its modules, `make install` installs \
             them; or set BOUVET_KERNEL"
        }
        EngineError::NoModules { .. } => {
            "put KERNEL.modules.cpio next to the kernel: `make kernel` makes both, in images/output"
        }
        EngineError::Missing { .. } | EngineError::NotARootfs(_) => {
            "`make rootfs` in the source tree makes images/output/debian-devbox.ext4, `make install` installs it; or \
             set BOUVET_ROOTFS"
        }
        EngineError::NoFirecracker { .. }
        | EngineError::OldVmm { vmm: "firecracker", .. }
        | EngineError::Lacking { .. } => {
            "install a release of Firecracker with its jailer (docs/SELF_HOST.md#firecracker), set BOUVET_FIRECRACKER \
             to it, or set BOUVET_ENGINE=qemu"
        }
        EngineError::NoVmm(..) | EngineError::OldVmm { .. } => "`apt-get install qemu-system-x86`",
        EngineError::KvmClosed => {
            "give it to a group: `chgrp kvm /dev/kvm && chmod 660 /dev/kvm`, or put Firecracker's jailer beside it"
        }
        EngineError::Confine(_) => {
            "run it as root with all capabilities (in a container: `--cap-add=SYS_ADMIN`), or as an ordinary user"
        }
        _ => "`bouvet doctor` says what is missing; the requirements are in docs/SELF_HOST.md",
    }
}
