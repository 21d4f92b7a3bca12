//! The one place that starts processes, and what it takes from them before they run.
//!
//! A VM's process is, in this order: put into its cgroup, cut off from the host's network and System V IPC,
//! given a user id of its own with no group, barred from gaining privileges, and tied to the life of this
//! process. Each step either happens or stops the start; there is no "log and continue". A clone's process enters
//! its cgroup later, while it starts: its guest does not run before that.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use rustix::thread::UnshareFlags;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::cgroup::Cgroup;

/// Descriptors that one child may inherit.
pub(crate) const MAX_FDS: usize = 8;
/// How long a helper program may take.
const TOOL_DEADLINE: Duration = Duration::from_secs(60);
/// How much of a program's error output is kept.
const MAX_ERROR_BYTES: usize = 4096;

/// A process to start.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Descriptors that it inherits, as the numbers of [`Spawner::fd`]. All others are closed to it.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What is taken from a process.
#[derive(Debug, Default)]
pub(crate) struct Confinement<'a> {
    /// Its user and group id: ours where `None`, for when we have no privilege to give up.
    pub(crate) id: Option<u32>,
    /// Groups that it keeps, by number: that of `/dev/kvm`.
    pub(crate) groups: Vec<u32>,
    /// The bound of its memory.
    pub(crate) cgroup: Option<&'a Cgroup>,
    /// Whether it gets empty network and IPC namespaces. Needs privilege.
    pub(crate) namespaces: bool,
    /// Whether its memory comes in small pages alone. Huge ones are rarely filled by what translates code.
    pub(crate) small_pages: bool,
}

/// Starts processes from one thread that lives as long as this.
///
/// The kernel ties a child to the *thread* that started it (`PR_SET_PDEATHSIG`, prctl(2)): with a thread of
/// a pool, VMs would die whenever the pool shrinks. With this one they die with the host, however it dies.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: Mutex<std::sync::mpsc::Sender<Job>>,
    /// Descriptors whose numbers the children use for theirs. They are held open here, so that those numbers
    /// are never those of something that a child still needs on its way to its program.
    reserved: [OwnedFd; MAX_FDS],
}

type Job = Box<dyn FnOnce() + Send>;

impl Spawner {
    /// Starts the thread. Must be called within a runtime, on which the children will be watched.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("bouvet-spawner".into());
        thread.spawn(move || {
            let _runtime = runtime.enter();
            queue.iter().for_each(|job| job());
        })?;
        let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
        let mut reserved = Vec::with_capacity(MAX_FDS);
        for _ in 0..MAX_FDS {
            reserved.push(null.try_clone()?);
        }
        let reserved = reserved.try_into().map_err(|_| io::Error::other("too few descriptors"))?;
        Ok(Self { jobs: Mutex::new(jobs), reserved })
    }

    /// The number by which a child knows the descriptor at `index` of [`Spec::fds`].
    pub(crate) fn fd(&self, index: usize) -> i32 {
        self.reserved[index].as_raw_fd()
    }

    /// Starts `spec`, confined. The child is killed when its handle is dropped.
    pub(crate) async fn spawn(&self, spec: Spec, confinement: Confinement<'_>) -> io::Result<Child> {
        let mut command = self.prepare(spec, &confinement)?;
        let (done, started) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the creation was given up: then the child is dropped, and killed.
            done.send(command.spawn()).ok();
        });
        let gone = |_| io::Error::other("the spawner thread is gone");
        self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(job).map_err(gone)?;
        started.await.map_err(|_| io::Error::other("the spawner thread is gone"))?
    }

    fn prepare(&self, spec: Spec, confinement: &Confinement<'_>) -> io::Result<Command> {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
        let mut command = Command::new(&spec.program);
        command.args(&spec.args).env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        #[expect(
            unsafe_code,
            reason = "a process can only drop what it inherited itself, between fork and exec"
        )]
        // SAFETY: `close_inherited` makes one system call. It runs before the descriptors that the program
        // is to have are put in place, in the order of registration.
        unsafe {
            command.pre_exec(close_inherited);
        }
        let mappings = spec
            .fds
            .into_iter()
            .zip(&self.reserved)
            .map(|(parent_fd, reserved)| FdMapping { parent_fd, child_fd: reserved.as_raw_fd() });
        command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
        let entrance = confinement.cgroup.map(Cgroup::entrance).transpose()?;
        let parent = rustix::process::getpid();
        let groups: Vec<Gid> = confinement.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (id, namespaces, small_pages) = (confinement.id, confinement.namespaces, confinement.small_pages);
        let confine = move || {
            if let Some(entrance) = &entrance {
                rustix::io::write(entrance, b"0")?;
            }
            if small_pages {
                rustix::thread::disable_transparent_huge_pages(true)?;
            }
            confine_self(id, &groups, namespaces, parent)
        };
        #[expect(unsafe_code, reason = "a process can only confine itself, between fork and exec")]
        // SAFETY: `confine` only makes system calls: it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(confine);
        }
        Ok(command)
    }
}

/// Has every descriptor closed at the program's start that is not put in place for it later: whoever started
/// this process may have left some open that are none of a VM's business.
fn close_inherited() -> io::Result<()> {
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: the call only sets a flag of descriptors; it closes none (close_range(2)).
    let result = unsafe {
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs in the child, where only system calls are allowed.
fn confine_self(id: Option<u32>, groups: &[Gid], namespaces: bool, parent: Pid) -> io::Result<()> {
    if namespaces {
        #[expect(unsafe_code, reason = "some of the flags that we do not pass would be unsafe")]
        // SAFETY: neither flag touches descriptors or memory.
        unsafe {
            rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWIPC)?;
        }
    }
    if let Some(id) = id {
        rustix::thread::set_thread_groups(groups)?;
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A change of ids clears it, so this comes after (prctl(2)); and it misses a parent that is dead already.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH.into());
    }
    Ok(())
}

/// Why a helper program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("could not run `{0}`")]
    Start(String, #[source] io::Error),
    /// It took too long.
    #[error("`{0}` did not end within {seconds} s", seconds = TOOL_DEADLINE.as_secs())]
    Deadline(String),
    /// It said so.
    #[error("`{program}` failed ({status}): {message}")]
    Failed {
        /// What was run.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote about it.
        message: String,
    },
}

/// Runs a helper program of the host to its end and returns what it printed.
pub(crate) async fn run_tool<A>(program: &str, args: impl Iterator<Item = A>) -> Result<String, ToolError>
where
    A: AsRef<OsStr>,
{
    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
    let mut command = Command::new(find_program(program));
    // Without the environment: it could name configuration files for it.
    command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TOOL_DEADLINE, command.output())
        .await
        .map_err(|_| ToolError::Deadline(program.to_owned()))?
        .map_err(|error| ToolError::Start(program.to_owned(), error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = last_text(&output.stderr);
    Err(ToolError::Failed { program: program.to_owned(), status: output.status, message })
}

/// The path of a program. The administrator's directories are searched too: a service may start with a
/// `PATH` that lacks them.
pub(crate) fn find_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()]);
    let found = dirs.map(|dir| dir.join(name)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| Path::new(name).to_owned())
}

/// The end of what a program wrote, as text.
pub(crate) fn last_text(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(MAX_ERROR_BYTES);
    String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_child_has_the_descriptors_that_it_was_given_and_no_other() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
        // As whoever started this process may have left one open.
        let inherited = open();
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        let spawner = Spawner::start().unwrap();
        let list = "for fd in /proc/$$/fd/*; do echo \"${fd##*/} $(readlink $fd)\"; done >&2";
        let spec = Spec {
            program: find_program("sh"),
            args: vec!["-c".into(), list.into()],
            fds: vec![open(), open()],
        };
        let mut child = spawner.spawn(spec, Confinement::default()).await.unwrap();
        let mut listed = String::new();
        child.stderr.take().unwrap().read_to_string(&mut listed).await.unwrap();
        let mut zeros: Vec<i32> = listed
            .lines()
            .filter_map(|line| line.strip_suffix(" /dev/zero"))
            .map(|number| number.parse().unwrap())
            .collect();
        zeros.sort_unstable();
        let mut given = vec![spawner.fd(0), spawner.fd(1)];
        given.sort_unstable();
        assert_eq!(zeros, given, "{listed}");
        assert!(!listed.contains(&format!("{} /dev/zero", inherited.as_raw_fd())));
    }
}
