//! Runs programs: one [`run`] per call, each with its own cgroup, deadline and bounded output.

mod cell;
mod cgroup;
mod context;
pub(crate) mod entry;
mod environment;
mod fork;
mod jail;
mod output;
mod process;
mod program;
mod relay;
mod running;
mod talk;
mod unbroken;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bouvet_wire::limits::{MAX_OUTPUT_PART_BYTES, MAX_PROGRAM_BYTES, MAX_RESULTS_BYTES};
use bouvet_wire::v1::{self, exec_input::Input, exec_output::Output};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::answers::Answers;
use crate::description::Description;
use crate::volume::Mounts;
use cgroup::{Group, Groups};
use context::Contexts;
pub(crate) use context::{create as create_context, destroy as destroy_context, list as list_contexts};
use entry::Entry;
use environment::{PATH, foreign_environment, with_terminal};
use fork::ForkServer;
use jail::Jail;
use output::Capture;
use process::{Ends, Process, Streams};
use running::Running;
use unbroken::unbroken;

/// How long output is still read after the program itself has ended, when processes that it left running
/// hold its pipes open.
const DRAIN: Duration = Duration::from_millis(50);

/// How long a fork may take to be there.
const FORK_DEADLINE: Duration = Duration::from_secs(30);
/// How long an empty program may take: emulated, the first run of a compiler takes many seconds; where KVM is software,
/// Node takes minutes.
const WARM_DEADLINE: Duration = Duration::from_secs(600);

type Answer = mpsc::Sender<Result<v1::ExecOutput, Status>>;

/// What all runs share.
#[derive(Debug)]
pub(crate) struct Executor {
    description: Mutex<Description>,
    run_dir: PathBuf,
    groups: Arc<Groups>,
    env: Mutex<HashMap<String, String>>,
    serial: AtomicU64,
    /// The interpreter that Python programs are forks of. Locked while one is made.
    python: tokio::sync::Mutex<Option<ForkServer>>,
    python_starts: AtomicBool,
    contexts: Contexts,
    /// Where all programs live, in a sandbox that takes something from them.
    jail: OnceLock<Jail>,
    /// Where the sidecar lives, once it was started.
    sidecar: OnceLock<Jail>,
    running: Arc<Running>,
    mounts: Mounts,
}

/// A program that is about to be started.
struct Launch<'a> {
    argv: &'a [OsString],
    cwd: &'a Path,
    env: &'a HashMap<String, String>,
    start: &'a v1::ExecStart,
}

impl Executor {
    /// Prepares `run_dir`. `cgroup` must exist.
    pub(crate) fn new(home: &Path, run_dir: &Path, cgroup: Option<PathBuf>) -> io::Result<Self> {
        std::fs::create_dir_all(run_dir)?;
        program::install_runners(run_dir)?;
        let (description, run_dir) = (Mutex::new(Description::new(home)), run_dir.to_owned());
        let (env, serial, python) = (Mutex::default(), AtomicU64::new(0), tokio::sync::Mutex::default());
        let groups = Arc::new(Groups::new(cgroup));
        let (python_starts, contexts) = (AtomicBool::new(false), Contexts::default());
        let (jail, sidecar) = (OnceLock::new(), OnceLock::new());
        let (running, mounts) = (Arc::default(), Mounts::default());
        Ok(Self {
            description,
            run_dir,
            groups,
            env,
            serial,
            python,
            python_starts,
            contexts,
            jail,
            sidecar,
            running,
            mounts,
        })
    }

    /// Limits all programs together, and confines those to come.
    pub(crate) async fn furnish(&self, request: v1::FurnishRequest) -> Result<(), Status> {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).furnish(&request);
        if let Some(limits) = &request.limits {
            let failed = |error| Status::failed_precondition(format!("could not limit programs: {error}"));
            self.groups.limit(limits).map_err(failed)?;
        }
        let Some(confinement) = request.confinement else { return Ok(()) };
        let awaits_main = confinement.awaits_main;
        let failed = |error| Status::failed_precondition(format!("could not confine programs: {error}"));
        let jail = Jail::new(confinement).map_err(failed)?;
        if !awaits_main {
            jail.hold().await?;
        }
        self.jail.set(jail).map_err(|_| Status::failed_precondition("programs are confined already"))
    }

    /// What programs use.
    pub(crate) fn stats(&self) -> Result<v1::StatsReply, Status> {
        let failed =
            |error| Status::failed_precondition(format!("could not read what programs use: {error}"));
        self.groups.stats().map_err(failed)
    }

    /// Sends a program that runs a signal.
    pub(crate) fn signal(&self, request: v1::SignalRequest) -> Result<v1::SignalReply, Status> {
        self.running.signal(request.pid, request.signal).map(|()| v1::SignalReply {})
    }

    /// Says how large a program's terminal is now.
    pub(crate) fn resize(&self, request: v1::ResizeRequest) -> Result<v1::ResizeReply, Status> {
        let size = request.terminal.unwrap_or_default();
        self.running.resize(request.pid, size).map(|()| v1::ResizeReply {})
    }

    /// Sets what every program finds in its environment.
    pub(crate) fn set_env(&self, env: HashMap<String, String>) {
        *self.env.lock().unwrap_or_else(PoisonError::into_inner) = env;
    }

    /// What a program that is not of any language finds: as Docker has it.
    fn bare_environment(&self, of_call: HashMap<String, String>) -> HashMap<String, String> {
        let mut env = self.env.lock().unwrap_or_else(PoisonError::into_inner).clone();
        env.extend(of_call);
        foreign_environment(env)
    }

    /// The environment of a program of a language that runs as `user`, and of contexts. Stages add the home directory
    /// of the user; programs without a stage are root's.
    async fn environment_of(&self, user: &str, of_call: HashMap<String, String>) -> HashMap<String, String> {
        let of_image = self.mounts.aside(program::image_environment).await.unwrap_or_default();
        let mut env: HashMap<String, String> = [
            ("PATH", PATH),
            ("LANG", "C.UTF-8"),
            // Output of a program that is killed must not be lost in its buffer.
            ("PYTHONUNBUFFERED", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        env.extend(of_image);
        if self.jail.get().is_some() || !user.is_empty() {
            env.retain(|name, _| !matches!(name.as_str(), "HOME" | "USER"));
        } else {
            let home = self.description().root_home().to_string_lossy().into_owned();
            env.entry("HOME".into()).or_insert(home);
            env.entry("USER".into()).or_insert_with(|| "root".into());
        }
        env.extend(self.env.lock().unwrap_or_else(PoisonError::into_inner).clone());
        env.extend(of_call);
        env
    }

    /// The volumes of this sandbox.
    pub(crate) fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// The parts of the sandbox's description that programs and files share.
    pub(crate) fn description(&self) -> Description {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A small file system in memory.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The home directory of programs, by which `~` is resolved. Reads files.
    pub(crate) fn home(&self) -> PathBuf {
        let env = self.env.lock().unwrap_or_else(PoisonError::into_inner);
        let own = env.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        drop(env);
        own.unwrap_or_else(|| self.description().home())
    }

    /// User and group of a program whose start names `user`; `None`: root's.
    async fn owner(&self, user: &str) -> Option<(u32, u32)> {
        let (description, user) = (self.description(), user.to_owned());
        if user.is_empty() && !description.has_user() {
            return None;
        }
        // A user that cannot be found is an error of the program's start.
        let identity = self.mounts.aside(move || description.identity(&user).ok()).await.ok().flatten()?;
        Some((identity.uid, identity.gid))
    }

    /// The directory that a program starts in which names `dir`. It exists.
    async fn directory(&self, dir: &str) -> Result<PathBuf, Status> {
        let (description, dir) = (self.description(), dir.to_owned());
        // It may be in a volume.
        let found = self.mounts.aside(move || {
            let dir = description.start_dir().join(dir);
            let is_dir = dir.is_dir();
            (dir, is_dir)
        });
        let (dir, is_dir) = found.await.map_err(|error| Status::internal(error.to_string()))?;
        if is_dir {
            return Ok(dir);
        }
        let text = format!("there is no working directory `{}`", dir.display());
        Err(Status::failed_precondition(text))
    }

    /// Starts the interpreter that forks, unless it runs already. Without one, programs start their own.
    async fn start_python(&self) {
        if self.python_starts.swap(true, Ordering::AcqRel) {
            return;
        }
        let runner = program::python_runner(&self.run_dir);
        let started =
            ForkServer::start(&runner, &self.environment_of("", HashMap::new()).await, &self.mounts).await;
        // Where it fails there is most likely no Python, which whoever calls for it is told.
        *self.python.lock().await = started.ok();
        self.python_starts.store(false, Ordering::Release);
    }

    /// Starts a program in `group`: Python as a fork of the interpreter that runs already, if one does and is as free as
    /// the program may be.
    async fn start(
        self: &Arc<Self>,
        launch: Launch<'_>,
        ends: Ends,
        group: &mut Group,
    ) -> Result<Process, Status> {
        let Launch { argv, cwd, env, start } = launch;
        if let Some(confinement) = &start.sidecar {
            let jail = self.sidecar(confinement)?;
            return jail.spawn(Entry::new(argv, env, cwd, start), ends, group).await.map(Process::Child);
        }
        let staged = start.terminal.is_some() || start.main || !start.user.is_empty();
        if let Some(jail) = self.jail.get() {
            let entry = Entry::new(argv, env, cwd, start);
            return jail.spawn(entry, ends, group).await.map(Process::Child);
        }
        if staged || start.program() == v1::Program::Arguments {
            let entry = Entry { first: false, ..Entry::new(argv, env, cwd, start) };
            return jail::spawn_free(&entry, ends, group).await.map(Process::Child);
        }
        // Programs without a stage are root's: its groups are the only thing that they do not inherit.
        let description = self.description();
        let identity = self.mounts.aside(move || description.identity("")).await;
        let identity = identity.map_err(|error| Status::internal(error.to_string()))?;
        let groups = identity.map_err(|error| Status::failed_precondition(error.to_string()))?.groups;
        if let (v1::Program::Python, Some(file)) = (start.program(), argv.last()) {
            let request = fork::Request { file: Path::new(file), cwd, env, groups: &groups };
            let forked = self.fork_python(&request, (&ends, group)).await;
            let failed = |error| Status::internal(format!("could not fork an interpreter: {error}"));
            if let Some(process) = forked.map_err(failed)? {
                group.led_by(process.id());
                return Ok(process);
            }
        }
        let failed = |error: io::Error| {
            Status::failed_precondition(format!("could not start `{}`: {error}", argv[0].display()))
        };
        let mut command = group.command(argv, env, cwd, ends, &groups).map_err(failed)?;
        // The start is over when the program was found and read, which may be in a volume.
        let spawned = self.mounts.aside(move || command.spawn()).await.flatten();
        let child = spawned.map_err(failed)?;
        group.led_by(child.id().unwrap_or_default());
        Ok(Process::Child(child))
    }

    /// Where the sidecar lives.
    fn sidecar(&self, confinement: &v1::Confinement) -> Result<&Jail, Status> {
        if !Path::new(crate::SIDECAR_ROOT).exists() {
            return Err(Status::failed_precondition("this sandbox has no second image"));
        }
        let failed = |error| Status::failed_precondition(format!("could not confine the sidecar: {error}"));
        let jail = Jail::new(confinement.clone()).map_err(failed)?;
        let is_first = self.sidecar.set(jail).is_ok();
        let jail = self.sidecar.get().filter(|_| is_first);
        jail.ok_or_else(|| Status::failed_precondition("the sidecar was started before"))
    }

    /// A fork that does what `request` says; `None` if there is no interpreter to fork, or it does not answer.
    async fn fork_python(
        self: &Arc<Self>,
        request: &fork::Request<'_>,
        (ends, group): (&Ends, &Group),
    ) -> io::Result<Option<Process>> {
        let mut python = self.python.lock().await;
        // Taken out until it has answered: one that does not is dropped, and the next call starts another.
        let Some(server) = python.take_if(|server| server.is_alive()) else {
            let executor = self.clone();
            tokio::spawn(async move { executor.start_python().await });
            return Ok(None);
        };
        let (answer, answer_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let entrance = group.entrance()?;
        let mut fds: Vec<_> = ends.borrow().into_iter().chain([answer_end.as_fd()]).collect();
        fds.extend(entrance.as_ref().map(|entrance| entrance.as_fd()));
        let asked = server.fork(request, &fds);
        drop(answer_end);
        if asked.is_err() {
            return Ok(None);
        }
        let forked = tokio::time::timeout(FORK_DEADLINE, Process::forked(answer)).await;
        let Ok(Ok(process)) = forked else { return Ok(None) };
        *python = Some(server);
        Ok(Some(process))
    }
}

/// Starts the program that `input` describes. The answers end with its exit; dropping them kills it.
pub(crate) async fn run(
    executor: Arc<Executor>,
    mut input: Streaming<v1::ExecInput>,
) -> Result<Answers<v1::ExecOutput>, Status> {
    let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    check(&start)?;
    let source = receive_program(&start, &mut input).await?;
    if !start.context_id.is_empty() {
        return cell::run(&executor, start, &source, input);
    }
    let (answer, answers) = mpsc::channel(8);
    let run = Run::begin(executor, start, source).await?;
    tokio::spawn(run.finish(input, answer));
    Ok(ReceiverStream::new(answers))
}

/// Runs a program of each kind that does nothing for anybody, one after the other.
pub(crate) async fn warm(
    executor: &Arc<Executor>,
    programs: impl Iterator<Item = v1::Program>,
) -> Result<(), Status> {
    for program in programs {
        if program == v1::Program::Python {
            executor.start_python().await;
        }
        let compiling = program::compile_contexts(&executor.run_dir);
        let source: &[u8] = match program {
            v1::Program::Unspecified => return Err(Status::invalid_argument("a program needs a kind")),
            v1::Program::Python => compiling.as_bytes(),
            v1::Program::Rust => b"fn main() {}",
            _ => b"",
        };
        let start = v1::ExecStart { program: program.into(), ..v1::ExecStart::default() };
        let mut run = Run::spawn(executor, start, source).await?;
        // Nobody reads what it might print, and it is given no input.
        drop((run.streams.stdin.take(), run.streams.stdout.take(), run.streams.stderr.take()));
        let ended = tokio::time::timeout(WARM_DEADLINE, run.process.wait()).await;
        let status = ended
            .map_err(|_| Status::deadline_exceeded(format!("an empty program did not end: {program:?}")))??;
        if !status.success() {
            return Err(Status::internal(format!("an empty program failed ({status}): {program:?}")));
        }
        run.group.leave_running(run.files);
    }
    // What was written so far is on the disk before this VM is frozen, so that no clone of it has to write it.
    sync().await
}

/// Writes all that programs have written to the disks.
pub(crate) async fn sync() -> Result<(), Status> {
    let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
    synced.map_err(|error| Status::internal(error.to_string()))
}

fn check(start: &v1::ExecStart) -> Result<(), Status> {
    if start.program_bytes > MAX_PROGRAM_BYTES as u64 {
        return Err(Status::invalid_argument(format!("a program may have {MAX_PROGRAM_BYTES} bytes")));
    }
    if start.timeout_ms == 0 && !start.attached {
        return Err(Status::invalid_argument("a program needs a deadline"));
    }
    let parts = [start.head_limit_bytes, start.tail_limit_bytes];
    if parts.iter().any(|limit| *limit as usize > MAX_OUTPUT_PART_BYTES) {
        return Err(Status::invalid_argument(format!("a limit may be {MAX_OUTPUT_PART_BYTES} bytes")));
    }
    let v1::ResultLimits { forms_bytes, images_bytes, .. } = start.result_limits.unwrap_or_default();
    if u64::from(forms_bytes) + u64::from(images_bytes) > MAX_RESULTS_BYTES as u64 {
        return Err(Status::invalid_argument(format!("results may have {MAX_RESULTS_BYTES} bytes")));
    }
    Ok(())
}

async fn receive_program(
    start: &v1::ExecStart,
    input: &mut Streaming<v1::ExecInput>,
) -> Result<Vec<u8>, Status> {
    let wanted =
        usize::try_from(start.program_bytes).map_err(|_| Status::invalid_argument("program_bytes"))?;
    let mut source = Vec::with_capacity(wanted);
    while source.len() < wanted {
        match input.message().await?.and_then(|message| message.input) {
            Some(Input::Program(part)) if source.len() + part.len() <= wanted => {
                source.extend_from_slice(&part)
            }
            _ => return Err(Status::invalid_argument("`program` must add up to `program_bytes`")),
        }
    }
    Ok(source)
}

/// One running program.
struct Run {
    process: Process,
    streams: Streams,
    group: Group,
    started: Instant,
    start: v1::ExecStart,
    /// Removed with its content when its last process has ended.
    files: program::Files,
    _place: running::Place,
}

impl Run {
    /// Starts a program. One whose start is given up is killed as soon as it is there.
    async fn begin(executor: Arc<Executor>, start: v1::ExecStart, source: Vec<u8>) -> Result<Self, Status> {
        unbroken(async move { Self::spawn(&executor, start, &source).await }).await
    }

    async fn spawn(
        executor: &Arc<Executor>,
        mut start: v1::ExecStart,
        source: &[u8],
    ) -> Result<Self, Status> {
        let id = executor.serial.fetch_add(1, Ordering::Relaxed);
        let failed = |what: &str, error: &io::Error| Status::internal(format!("could not {what}: {error}"));
        let cwd = match &start.sidecar {
            // Its own stage looks for it.
            Some(_) => Path::new("/").join(&start.cwd),
            None => executor.directory(&start.cwd).await?,
        };
        let dir = executor.run_dir.join(format!("exec-{id}"));
        let files = program::Files::new(dir, executor.owner(&start.user).await);
        let argv = program::argv(start.program(), source, &files, (&executor.run_dir, &cwd))
            .map_err(|error| failed("store the program", &error))?;
        let groups = &executor.groups;
        let group = if start.main { groups.take_for_main() } else { groups.take() };
        let mut group = group.map_err(|error| failed("make a cgroup", &error))?;
        let of_call = std::mem::take(&mut start.env);
        let env = match start.program() {
            // Nothing of what the sandbox's own programs are told.
            _ if start.sidecar.is_some() => foreign_environment(of_call),
            v1::Program::Arguments => executor.bare_environment(of_call),
            _ => executor.environment_of(&start.user, of_call).await,
        };
        let env = with_terminal(env, start.terminal.is_some());
        let opened = match start.terminal {
            Some(size) => process::terminal(size).map(|(streams, ends, ours)| (streams, ends, Some(ours))),
            None => process::streams().map(|(streams, ends)| (streams, ends, None)),
        };
        let (streams, ends, terminal) = opened.map_err(|error| failed("make pipes", &error))?;
        let started = Instant::now();
        let launch = Launch { argv: &argv, cwd: &cwd, env: &env, start: &start };
        let process = executor.start(launch, ends, &mut group).await?;
        let place = executor.running.enter(process.id(), terminal);
        Ok(Self { process, streams, group, started, start, files, _place: place })
    }

    /// Sees the program to its end and says how it went. Returns early, and kills it, when the host stops
    /// listening.
    async fn finish(mut self, input: Streaming<v1::ExecInput>, answer: Answer) {
        let pid = self.process.id();
        if send(&answer, Output::Started(v1::ExecStarted { pid })).await.is_err() {
            return;
        }
        let limits = match self.start.attached {
            true => (usize::MAX, 0),
            false => (self.start.head_limit_bytes as usize, self.start.tail_limit_bytes as usize),
        };
        let stdout = Capture::start(self.streams.stdout.take(), limits, answer.clone(), Output::Stdout);
        let stderr = Capture::start(self.streams.stderr.take(), limits, answer.clone(), Output::Stderr);
        let stdin = tokio::spawn(feed(self.streams.stdin.take(), input));

        let (started, timeout_ms) = (self.started, self.start.timeout_ms);
        let (status, timed_out) = tokio::select! {
            status = self.process.wait() => (self.known(status), false),
            () = over(started, timeout_ms) => (self.kill().await, true),
            () = answer.closed() => return,
        };
        let duration = self.started.elapsed();
        stdin.abort();
        let (stdout, stderr) = tokio::join!(stdout.finish(DRAIN), stderr.finish(DRAIN));
        let outcome = match status {
            Ok(status) => {
                let out_of_memory = self.group.ran_out_of_memory();
                Ok(exit(status, timed_out, out_of_memory, duration, stdout, stderr))
            }
            Err(error) => Err(Status::internal(format!("could not wait for the program: {error}"))),
        };
        // The host may have gone; then nobody is left to tell.
        answer.send(outcome).await.ok();
        self.group.leave_running(self.files);
    }

    async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.group.kill();
        let status = self.process.wait().await;
        self.known(status)
    }

    /// What is known of the end of a fork whose interpreter was killed: that it is killed too, here.
    fn known(&self, status: io::Result<ExitStatus>) -> io::Result<ExitStatus> {
        match status {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.group.kill();
                Ok(ExitStatus::from_raw(rustix::process::Signal::KILL.as_raw()))
            }
            status => status,
        }
    }
}

/// Waits until a program's time is over; for ever, if it has no end.
async fn over(started: Instant, timeout_ms: u32) {
    match timeout_ms {
        0 => std::future::pending().await,
        _ => tokio::time::sleep_until((started + Duration::from_millis(timeout_ms.into())).into()).await,
    }
}

async fn send(answer: &Answer, output: Output) -> Result<(), ()> {
    answer.send(Ok(v1::ExecOutput { output: Some(output) })).await.map_err(drop)
}

/// Passes `stdin` on. A program that closes its end early is not an error.
async fn feed(stdin: Option<pipe::Sender>, mut input: Streaming<v1::ExecInput>) {
    let Some(mut stdin) = stdin else { return };
    while let Ok(Some(message)) = input.message().await {
        let Some(Input::Stdin(data)) = message.input else { return };
        if stdin.write_all(&data).await.is_err() {
            return;
        }
    }
}

fn exit(
    status: ExitStatus,
    timed_out: bool,
    out_of_memory: bool,
    duration: Duration,
    stdout: output::Tail,
    stderr: output::Tail,
) -> v1::ExecOutput {
    let signal = status.signal().unwrap_or(0);
    let exit = v1::ExecExit {
        exit_code: status.code().unwrap_or(128 + signal),
        signal: signal.unsigned_abs(),
        timed_out,
        out_of_memory,
        duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        stdout: Some(tail(stdout)),
        stderr: Some(tail(stderr)),
        ..v1::ExecExit::default()
    };
    v1::ExecOutput { output: Some(Output::Exit(exit)) }
}

fn tail(tail: output::Tail) -> v1::OutputTail {
    let (dropped_bytes, tail) = (tail.dropped_bytes, Bytes::from(tail.bytes));
    v1::OutputTail { tail, dropped_bytes, ..v1::OutputTail::default() }
}
