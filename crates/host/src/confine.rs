//! The one place that starts processes, and what it takes from them before they run.
//!
//! A VM's process is, in this order: put into its cgroup, cut off from the host's network and System V IPC,
//! given a user id of its own with no group, barred from gaining privileges, and tied to the life of this
//! process. Each step either happens or stops the start; there is no "log and continue". A clone's process enters
//! its cgroup later, while it starts: its guest does not run before that.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags};
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use rustix::thread::UnshareFlags;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::cgroup::Cgroup;

/// Descriptors that one child may inherit.
pub(crate) const MAX_FDS: usize = 9;
/// How long a helper program may take.
const TOOL_DEADLINE: Duration = Duration::from_secs(60);
/// How much of a program's error output is kept.
const MAX_ERROR_BYTES: usize = 4096;

/// A process to start.
#[derive(Debug, Default)]
pub(crate) struct Spec {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Descriptors that it inherits, as the numbers of [`Spawner::fd`]. All others are closed to it.
    pub(crate) fds: Vec<OwnedFd>,
    /// Its whole environment.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Its working directory; the root where `None`.
    pub(crate) dir: Option<PathBuf>,
    /// Whether its output can be read, as its errors always can.
    pub(crate) output: bool,
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
    /// Files that it alone sees where they are mounted. Needs privilege.
    pub(crate) mounts: Vec<Bind>,
}

/// A file that is mounted over another for one process: gone when that is.
#[derive(Debug)]
pub(crate) struct Bind {
    /// A mount that is nowhere yet. Made by us: a child that has a mount namespace of its own cannot mount what was
    /// opened in another (open_tree(2)).
    mount: OwnedFd,
    target: CString,
}

impl Bind {
    /// Shows `source`, which must still have a name, for reading only at `target`, where an empty file is made.
    /// Needs privilege.
    pub(crate) fn new(source: impl AsFd, target: &Path) -> io::Result<Self> {
        use rustix::mount::OpenTreeFlags;

        std::fs::File::options().write(true).create_new(true).open(target)?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let mount = rustix::mount::open_tree(source, c"", flags)?;
        Ok(Self { mount, target: CString::new(target.as_os_str().as_bytes())? })
    }
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
    /// Whether children live in a process namespace of their own; see [`Spawner::start_contained`].
    contained: bool,
}

type Job = Box<dyn FnOnce() + Send>;

impl Spawner {
    /// Starts the thread. Must be called within a runtime, on which the children will be watched.
    pub(crate) fn start() -> io::Result<Self> {
        Self::start_thread(|| Ok(None), false)
    }

    /// Like [`Spawner::start`], with children that live in a process namespace of their own. Those that change
    /// their own user id lose what ties them to this process (prctl(2)); the first process of a namespace does not, and
    /// when it ends, the kernel kills all others there (pid_namespaces(7)). It does nothing else. Needs privilege.
    pub(crate) fn start_contained() -> io::Result<Self> {
        Self::start_thread(|| Keeper::start().map(Some), true)
    }

    fn start_thread(
        begin: impl FnOnce() -> io::Result<Option<Keeper>> + Send + 'static,
        contained: bool,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        let (begun, beginning) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("bouvet-spawner".into());
        thread.spawn(move || {
            let _runtime = runtime.enter();
            // Whoever started this thread waits for it.
            match begin() {
                Ok(_keeper) => {
                    begun.send(Ok(())).ok();
                    queue.iter().for_each(|job| job());
                }
                Err(error) => {
                    begun.send(Err(error)).ok();
                }
            }
        })?;
        beginning.recv().map_err(io::Error::other)??;
        let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
        let mut reserved = Vec::with_capacity(MAX_FDS);
        for _ in 0..MAX_FDS {
            reserved.push(null.try_clone()?);
        }
        let reserved = reserved.try_into().map_err(|_| io::Error::other("too few descriptors"))?;
        Ok(Self { jobs: Mutex::new(jobs), reserved, contained })
    }

    /// The number by which a child knows the descriptor at `index` of [`Spec::fds`].
    pub(crate) fn fd(&self, index: usize) -> i32 {
        self.reserved[index].as_raw_fd()
    }

    /// Starts `spec`, confined. The child is killed when its handle is dropped.
    pub(crate) async fn spawn(&self, spec: Spec, confinement: Confinement<'_>) -> io::Result<Child> {
        let mut command = self.prepare(spec, confinement)?;
        let (done, started) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the creation was given up: then the child is dropped, and killed.
            done.send(command.spawn()).ok();
        });
        let gone = |_| io::Error::other("the spawner thread is gone");
        self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(job).map_err(gone)?;
        started.await.map_err(|_| io::Error::other("the spawner thread is gone"))?
    }

    fn prepare(&self, spec: Spec, confinement: Confinement<'_>) -> io::Result<Command> {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
        let mut command = Command::new(&spec.program);
        command.args(&spec.args).env_clear().envs(spec.env).kill_on_drop(true);
        command.current_dir(spec.dir.as_deref().unwrap_or(Path::new("/")));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command.stdout(if spec.output { Stdio::piped() } else { Stdio::null() });
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
        let own = Own::new(confinement, self.contained)?;
        let confine = move || own.confine_self();
        #[expect(unsafe_code, reason = "a process can only confine itself, between fork and exec")]
        // SAFETY: `confine` only makes system calls: it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(confine);
        }
        Ok(command)
    }
}

/// The first process of a process namespace. Dropped, it is ended, and by the kernel's hand all others there.
struct Keeper(std::process::Child);

impl Keeper {
    /// Gives the children of this thread a process namespace, and starts its first process, which ends with this thread.
    fn start() -> io::Result<Self> {
        unshare(UnshareFlags::NEWPID)?;
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
        let mut command = std::process::Command::new(find_program("sleep"));
        command.arg("infinity").env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let bind = || {
            close_inherited()?;
            Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
        };
        #[expect(unsafe_code, reason = "only the child itself can tie its life to its parent's")]
        // SAFETY: `bind` only makes system calls: it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(bind);
        }
        command.spawn().map(Self)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Failing means that it is gone.
        self.0.kill().ok();
        self.0.wait().ok();
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

/// A [`Confinement`], ready to be put on by a child between its fork and its program.
struct Own {
    id: Option<u32>,
    groups: Vec<Gid>,
    entrances: Vec<File>,
    namespaces: bool,
    small_pages: bool,
    mounts: Vec<Bind>,
    /// Who must still be its parent; nobody, for a child that cannot see its parent.
    parent: Option<Pid>,
}

impl Own {
    fn new(confinement: Confinement<'_>, contained: bool) -> io::Result<Self> {
        let Confinement { id, groups, cgroup, namespaces, small_pages, mounts } = confinement;
        Ok(Self {
            id,
            groups: groups.into_iter().map(Gid::from_raw).collect(),
            entrances: cgroup.map(Cgroup::entrances).transpose()?.unwrap_or_default(),
            namespaces,
            small_pages,
            mounts,
            parent: (!contained).then(rustix::process::getpid),
        })
    }

    /// Runs in the child, where only system calls are allowed.
    fn confine_self(&self) -> io::Result<()> {
        for entrance in &self.entrances {
            rustix::io::write(entrance, b"0")?;
        }
        if self.small_pages {
            rustix::thread::disable_transparent_huge_pages(true)?;
        }
        if self.namespaces {
            unshare(UnshareFlags::NEWNET | UnshareFlags::NEWIPC)?;
        }
        self.mount()?;
        if let Some(id) = self.id {
            rustix::thread::set_thread_groups(&self.groups)?;
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        // A change of ids clears it, so this comes after (prctl(2)); and it misses a parent that is dead already.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != self.parent {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    }

    fn mount(&self) -> io::Result<()> {
        if self.mounts.is_empty() {
            return Ok(());
        }
        unshare(UnshareFlags::NEWNS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private)?;
        for Bind { mount, target } in &self.mounts {
            let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(mount, c"", rustix::fs::CWD, target.as_c_str(), whole)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount_remount(target.as_c_str(), flags, c"")?;
        }
        Ok(())
    }
}

/// Gives this thread, or the process that it is all of, namespaces or a file system context of its own.
pub(crate) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    #[expect(unsafe_code, reason = "some of the flags that we do not pass would be unsafe")]
    // SAFETY: no flag that is passed touches descriptors or memory.
    unsafe {
        Ok(rustix::thread::unshare_unsafe(namespaces)?)
    }
}

/// Why a helper program did not do its work.
///
/// ```no_run
/// use bouvet_host::{ToolError, check_mke2fs};
///
/// # async fn example() {
/// match check_mke2fs().await {
///     Ok(()) => println!("disks can be made"),
///     Err(ToolError::Start(program, why)) => println!("`{program}` is missing: {why}"),
///     Err(error) => println!("{error}"),
/// }
/// # }
/// ```
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
            ..Spec::default()
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
        assert!(!zeros.contains(&inherited.as_raw_fd()), "{listed}");
    }

    fn shell(script: &str) -> Spec {
        let args = vec!["-c".into(), script.into()];
        Spec { program: find_program("sh"), args, output: true, ..Spec::default() }
    }

    /// Whether the rest of a test can run that needs privilege; where it cannot, `make test` counts it as skipped.
    fn is_root() -> bool {
        use std::io::Write as _;

        let root = rustix::process::geteuid().is_root();
        if let (false, Some(path)) = (root, std::env::var_os("BOUVET_SKIP_LOG")) {
            let mut log = std::fs::File::options().append(true).create(true).open(path).unwrap();
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            writeln!(log, "{test}: only root can show files to a process, and contain it").unwrap();
        }
        root
    }

    #[tokio::test]
    async fn what_is_shown_to_a_child_is_its_alone_and_for_reading() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (shared, shown) = (dir.path().join("shared"), dir.path().join("shown"));
        std::fs::write(&shared, "of all").unwrap();
        let source = std::fs::File::open(&shared).unwrap();
        let script = format!("cat {0}; echo changed 2>/dev/null >{0} || echo; echo refused", shown.display());
        let mounts = vec![Bind::new(&source, &shown).unwrap()];
        let spawner = Spawner::start().unwrap();
        let confinement = Confinement { mounts, ..Confinement::default() };
        let mut child = spawner.spawn(shell(&script), confinement).await.unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "of all\nrefused\n");
        assert_eq!(std::fs::read_to_string(&shared).unwrap(), "of all");
        assert_eq!(std::fs::read(&shown).unwrap(), b"", "nobody else sees it there");
    }

    #[tokio::test]
    async fn contained_children_end_with_whoever_started_them_whatever_their_user() {
        if !is_root() {
            return;
        }
        let spawner = Spawner::start_contained().unwrap();
        // A change of its own user id unties a process from its parent.
        let script = "exec setpriv --reuid 1900000000 --clear-groups sh -c 'echo up; exec sleep 600'";
        let mut child = spawner.spawn(shell(script), Confinement::default()).await.unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).await.unwrap();
        drop(spawner);
        let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
        let status = ended.expect("it outlives them").unwrap();
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    }
}
