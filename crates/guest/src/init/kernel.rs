//! The kernel's settings and the resource limits that every program starts with: what Docker's containers find on a
//! machine of usual size, whatever the memory of this VM.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, Rlimit};

use super::Error;

/// Settings below `/proc/sys`. Those that the kernel derives from the memory would stop programs in a small VM long
/// before they use it; what they bound is charged to the cgroup of the program, or bounded there (`pids.max`).
const SETTINGS: &[(&str, &str)] = &[
    // As in Docker's containers, a program need not be root to listen on port 80 and to send echo requests.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("fs/inotify/max_user_watches", "524288"),
    ("fs/inotify/max_user_instances", "1024"),
    ("fs/fanotify/max_user_marks", "524288"),
    ("fs/epoll/max_user_watches", "1048576"),
    ("fs/aio-max-nr", "1048576"),
    ("fs/file-max", "9223372036854775807"),
    ("kernel/threads-max", "4194304"),
    ("kernel/pid_max", "4194304"),
    ("vm/max_map_count", "1048576"),
    ("net/ipv4/tcp_max_syn_backlog", "4096"),
    ("net/ipv4/tcp_max_tw_buckets", "65536"),
];

/// Work of the kernel in the background that a VM which does not outlive its disk has no use for. Emulated, it must
/// be translated in each, and wakes those that are idle.
const QUIET: &[(&str, &str)] = &[
    // Written pages go to the disk when memory is short, and not after five seconds.
    ("vm/dirty_writeback_centisecs", "0"),
    ("vm/dirtytime_expire_seconds", "0"),
    ("vm/compaction_proactiveness", "0"),
    ("vm/stat_interval", "60"),
];

/// Descriptors of a process. Some programs make a table of as many as the soft limit allows.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };
/// Signals that wait for the processes of one user.
const PENDING_SIGNALS: Rlimit = Rlimit { current: Some(32_768), maximum: Some(32_768) };
/// `pids.max` bounds processes, of all users together.
const PROCESSES: Rlimit = Rlimit { current: None, maximum: None };

/// Applies all of them. Limits are inherited by the service and by programs.
pub(super) fn set_up(is_durable: bool) -> Result<(), Error> {
    let failed = |error| Error::Prepare("the kernel's settings", error);
    write(SETTINGS).map_err(failed)?;
    if !is_durable {
        write(QUIET).map_err(failed)?;
    }
    for (resource, limit) in [
        (Resource::Nofile, OPEN_FILES),
        (Resource::Sigpending, PENDING_SIGNALS),
        (Resource::Nproc, PROCESSES),
    ] {
        rustix::process::setrlimit(resource, limit)
            .map_err(|error| Error::Prepare("resource limits", error.into()))?;
    }
    Ok(())
}

fn write(settings: &[(&str, &str)]) -> io::Result<()> {
    for (setting, value) in settings {
        match fs::write(Path::new("/proc/sys").join(setting), value) {
            // A kernel of somebody else's may be built without.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), format!("{setting}: {error}")));
            }
            _ => {}
        }
    }
    Ok(())
}
