//! The host's cgroup of one VM: a bound on the memory of its process, whatever the guest makes it do, and its share of
//! the host where one was asked for.
//!
//! Version 2 of the hierarchy, or version 1 where the memory controller is mounted there. In version 1 each controller
//! has a hierarchy of its own, and so a VM has a cgroup in each that it needs.

mod delegated;
mod share;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::boxconfig::limits::Limits;

/// Threads of one VMM: its CPUs, its I/O threads, with room to spare.
const MAX_THREADS: u32 = 256;

/// Where the cgroups of VMs go.
///
/// ```
/// use bouvet_host::{CgroupChoice, HostOptions};
///
/// let delegated = CgroupChoice::Below("/sys/fs/cgroup/agents.slice".into());
/// let options = HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4");
/// assert_eq!(options.cgroup, CgroupChoice::Detect);
/// let options = HostOptions { cgroup: delegated, ..options };
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CgroupChoice {
    /// Below the root of the hierarchy that is mounted.
    #[default]
    Detect,
    /// Below this directory, which was delegated to us.
    Below(PathBuf),
    /// Nowhere: the memory of a VM's process is not bounded by the host.
    Off,
}

/// Why VMs cannot have cgroups.
///
/// ```no_run
/// use bouvet_host::{CgroupChoice, CgroupError, Host, HostOptions, StartError};
///
/// # async fn example(options: HostOptions) -> Result<(), StartError> {
/// let host = match Host::start(options.clone()).await {
///     Err(StartError::Cgroup(CgroupError::NoHierarchy)) => {
///         Host::start(HostOptions { cgroup: CgroupChoice::Off, ..options }).await?
///     }
///     started => started?,
/// };
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither version is mounted with what is needed.
    #[error("could not find a cgroup hierarchy with the memory controller below `/sys/fs/cgroup`")]
    NoHierarchy,
    /// Something was asked for that takes a controller which is not there.
    #[error("`{field}` needs cgroups with the controller `{controller}`, which VMs do not have on this host")]
    NoController {
        /// What was asked for: a field of a sandbox's description.
        field: &'static str,
        /// What is missing.
        controller: &'static str,
    },
    /// It is there, and not ours to use.
    #[error("could not use the cgroup `{path}`")]
    Refused {
        /// What was to be written or made.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> CgroupError + use<'_> {
    move |source| CgroupError::Refused { path: path.to_owned(), source }
}

/// The directory below which each VM gets its cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Parent {
    dir: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Parent {
    /// Prepares the parent called `name`, or `None` where cgroups are switched off.
    pub(crate) fn prepare(choice: &CgroupChoice, name: &str) -> Result<Option<Self>, CgroupError> {
        let below = match choice {
            CgroupChoice::Off => return Ok(None),
            CgroupChoice::Below(dir) => dir.clone(),
            CgroupChoice::Detect => hierarchy(Path::new("/sys/fs/cgroup")).ok_or(CgroupError::NoHierarchy)?,
        };
        let dir = below.join(name);
        let version_2 = below.join("cgroup.controllers").exists();
        if version_2 {
            delegate(&below)?;
        }
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refused(&dir)(error)),
            _ => {}
        }
        if version_2 {
            delegate(&dir)?;
        }
        let version = if version_2 { Version::Two } else { Version::One };
        Ok(Some(Self { dir, version }))
    }

    /// Makes the cgroup of one VM, whose process may use `memory_bytes`, and has a share of the host as in `limits`.
    pub(crate) fn create(
        &self,
        name: &str,
        memory_bytes: u64,
        limits: &Limits,
    ) -> Result<Cgroup, CgroupError> {
        let dir = self.dir.join(name);
        let mut cgroup = Cgroup { dir, others: Vec::new(), memory_bytes, version: self.version };
        fs::create_dir(&cgroup.dir).map_err(refused(&cgroup.dir))?;
        let limited = self.limit(&cgroup.dir, memory_bytes);
        match limited.and_then(|()| share::apply(self, &mut cgroup, memory_bytes, limits)) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                cgroup.remove().ok(); // the error that is reported is the one that came first
                Err(error)
            }
        }
    }

    fn limit(&self, dir: &Path, memory_bytes: u64) -> Result<(), CgroupError> {
        match self.version {
            Version::One => set(&dir.join("memory.limit_in_bytes"), &memory_bytes),
            Version::Two => set(&dir.join("memory.max"), &memory_bytes)
                .and_then(|()| set(&dir.join("pids.max"), &MAX_THREADS)),
        }
    }

    /// Kills and removes what a host that was killed left in its parent called `name`, if it is there.
    pub(crate) fn reap(choice: &CgroupChoice, name: &str) {
        let below = match choice {
            CgroupChoice::Off => None,
            CgroupChoice::Below(dir) => Some(dir.clone()),
            CgroupChoice::Detect => hierarchy(Path::new("/sys/fs/cgroup")),
        };
        let Some(dir) = below.map(|below| below.join(name)).filter(|dir| dir.exists()) else { return };
        for dir in std::iter::once(dir.clone()).chain(share::siblings(&dir)) {
            // The next host makes do with what cannot be removed: its own cgroups have names of their own.
            if let Err(error) = reap_all(&dir) {
                tracing::warn!(%error, dir = %dir.display(), "could not clear cgroups that an earlier host left");
            }
        }
    }

    /// Removes the parent itself.
    pub(crate) fn remove(&self) -> io::Result<()> {
        share::siblings(&self.dir).iter().try_for_each(fs::remove_dir)?;
        fs::remove_dir(&self.dir)
    }
}

/// The number after `name` in a file of a cgroup; 0 if it is not there.
fn counter(path: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let number = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Ok(number.unwrap_or_default())
}

fn set(path: &Path, value: &impl ToString) -> Result<(), CgroupError> {
    fs::write(path, value.to_string()).map_err(refused(path))
}

fn reap_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            kill_all(&entry.path())?;
            fs::remove_dir(entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Kills all processes in the cgroup `dir` and waits, briefly, until they are gone.
fn kill_all(dir: &Path) -> io::Result<()> {
    let processes = fs::read_to_string(dir.join("cgroup.procs"))?;
    for pid in
        processes.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
    {
        let opened = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        // One that cannot be opened or killed any more has ended by itself.
        let Ok(process) = opened else { continue };
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).ok();
        let mut wait = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut wait, Some(&rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 }))?;
    }
    Ok(())
}

/// The root of the hierarchy that controls memory.
fn hierarchy(mount: &Path) -> Option<PathBuf> {
    let controls_memory = |dir: &Path| {
        fs::read_to_string(dir.join("cgroup.controllers"))
            .is_ok_and(|list| list.split(' ').any(|c| c.trim() == "memory"))
    };
    let candidates = [mount.to_owned(), mount.join("unified")];
    let version_2 = candidates.into_iter().find(|dir| controls_memory(dir));
    version_2.or_else(|| Some(mount.join("memory")).filter(|dir| dir.join("memory.limit_in_bytes").exists()))
}

/// Lets the children of `dir` be limited. A cgroup that holds processes cannot do that, unless it is the
/// true root; in a container the apparent root does hold us, so we move to a leaf of our own first.
fn delegate(dir: &Path) -> Result<(), CgroupError> {
    let control = dir.join("cgroup.subtree_control");
    let enable = || fs::write(&control, "+memory +pids");
    match enable() {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let leaf = dir.join("bouvet-host");
            fs::create_dir_all(&leaf).map_err(refused(&leaf))?;
            fs::write(leaf.join("cgroup.procs"), "0").map_err(refused(&leaf))?;
            enable().map_err(refused(&control))
        }
        result => result.map_err(refused(&control)),
    }
}

/// One VM's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    /// Those in other hierarchies.
    others: Vec<PathBuf>,
    memory_bytes: u64,
    version: Version,
}

/// Why the kernel has killed a process for lack of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutOfMemory {
    /// Its cgroup used up its limit of so many MiB.
    Limit(u64),
    /// There was none left on the host, or in a cgroup above its own.
    Host,
}

impl Cgroup {
    fn doors(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(&self.dir).chain(&self.others).map(|dir| dir.join("cgroup.procs"))
    }

    /// The files by which a process enters: it writes `0` to each.
    pub(crate) fn entrances(&self) -> io::Result<Vec<File>> {
        self.doors().map(|door| File::options().write(true).open(door)).collect()
    }

    /// Moves a process into it. Takes some ten milliseconds: the kernel waits until every processor has noticed.
    pub(crate) async fn admit(&self, pid: u32) -> io::Result<()> {
        let doors: Vec<_> = self.doors().collect();
        let moved = tokio::task::spawn_blocking(move || {
            doors.iter().try_for_each(|door| fs::write(door, pid.to_string()))
        });
        moved.await.map_err(io::Error::other)?
    }

    /// Whether, and why, the kernel has killed a process in it for lack of memory.
    pub(crate) fn out_of_memory(&self) -> io::Result<Option<OutOfMemory>> {
        let (kills, limit_hits) = match self.version {
            // `under_oom 0`, `oom_kill 1`; and how often the limit was reached.
            Version::One => {
                let kills = counter(&self.dir.join("memory.oom_control"), "oom_kill ")?;
                (kills, counter(&self.dir.join("memory.failcnt"), "")?)
            }
            // Those of the cgroup's own limit, and no kill by one above it, are in `oom`.
            Version::Two => {
                let events = self.dir.join("memory.events");
                (counter(&events, "oom_kill ")?, counter(&events, "oom ")?)
            }
        };
        Ok(match (kills, limit_hits) {
            (0, _) => None,
            (_, 0) => Some(OutOfMemory::Host),
            (_, _) => Some(OutOfMemory::Limit(self.memory_bytes / 1024 / 1024)),
        })
    }

    /// Removes it. Its processes must have been reaped.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.others.iter().try_for_each(fs::remove_dir)?;
        fs::remove_dir(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_the_memory_controller_is_found() {
        let mount = tempfile::tempdir().unwrap();
        let at = |path: &str, content: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        assert_eq!(hierarchy(mount.path()), None);
        at("memory/memory.limit_in_bytes", "");
        at("unified/cgroup.controllers", "\n");
        assert_eq!(hierarchy(mount.path()), Some(mount.path().join("memory")), "version 1 beside an empty 2");
        at("unified/cgroup.controllers", "cpu memory\n");
        assert_eq!(hierarchy(mount.path()), Some(mount.path().join("unified")));
        at("cgroup.controllers", "cpu memory pids\n");
        assert_eq!(hierarchy(mount.path()), Some(mount.path().to_owned()));
    }

    fn killed(version: Version, files: &[(&str, &str)]) -> Option<OutOfMemory> {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
        let dir = dir.path().to_owned();
        let cgroup = Cgroup { dir, others: Vec::new(), memory_bytes: 768 << 20, version };
        cgroup.out_of_memory().unwrap()
    }

    #[test]
    fn out_of_memory_kills_name_their_limit() {
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill ";
        let one = |kills: &str, hits: &str| {
            let control = format!("{control}{kills}\n");
            killed(Version::One, &[("memory.oom_control", &control), ("memory.failcnt", hits)])
        };
        assert_eq!(one("0", "9\n"), None, "the limit was reached, and memory found");
        assert_eq!(one("1", "9\n"), Some(OutOfMemory::Limit(768)));
        assert_eq!(one("1", "0\n"), Some(OutOfMemory::Host));
        let two = |oom: u8, kills: u8| {
            let events = format!("low 0\nhigh 0\nmax 7\noom {oom}\noom_kill {kills}\noom_group_kill 0\n");
            killed(Version::Two, &[("memory.events", &events)])
        };
        assert_eq!((two(1, 0), two(0, 0)), (None, None));
        assert_eq!((two(1, 1), two(0, 1)), (Some(OutOfMemory::Limit(768)), Some(OutOfMemory::Host)));
    }
}
