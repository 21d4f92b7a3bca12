//! Contexts: interpreters that stay, and run one cell after the other with the same variables.
//!
//! Each is a process with a cgroup of its own, like a program. It lives until it is destroyed or dies; one that
//! died stays known, so that its user learns of it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bouvet_wire::limits::{MAX_CONTEXT_ID_BYTES, MAX_CONTEXTS};
use bouvet_wire::v1;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;

use super::cgroup::Group;
use super::process::{self, Ends, Process};
use super::program;
use super::relay::Relay;
use super::talk::{Message, Talk};
use super::unbroken::unbroken;
use super::{Executor, Launch};

/// How long an interpreter may take to start, emulated and read from disk, or where KVM is software.
const READY_DEADLINE: Duration = Duration::from_secs(150);

/// All contexts of the sandbox, oldest first.
#[derive(Debug)]
pub(super) struct Contexts {
    known: Mutex<Vec<Arc<Context>>>,
    places: Arc<Semaphore>,
}

impl Default for Contexts {
    fn default() -> Self {
        Self { known: Mutex::default(), places: Arc::new(Semaphore::new(MAX_CONTEXTS)) }
    }
}

impl Contexts {
    fn known(&self) -> MutexGuard<'_, Vec<Arc<Context>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The context of this name.
    pub(super) fn find(&self, id: &str) -> Result<Arc<Context>, Status> {
        let found = self.known().iter().find(|context| context.id == id).cloned();
        found.ok_or_else(|| Status::not_found(format!("the context `{id}`")))
    }
}

/// One context. Dropped, it is killed with all that it started.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) id: String,
    pub(super) program: v1::Program,
    pub(super) pid: u32,
    /// Locked by the run under way.
    pub(super) talk: tokio::sync::Mutex<Talk>,
    created: Instant,
    group: Group,
    /// Whether it is killed because an interrupt did not end its cell.
    is_stubborn: AtomicBool,
    death: watch::Sender<Option<v1::ContextDeath>>,
    _place: OwnedSemaphorePermit,
}

impl Context {
    /// How it died, if it did.
    pub(super) fn death(&self) -> Option<v1::ContextDeath> {
        *self.death.borrow()
    }

    /// Waits until it has died.
    pub(super) async fn died(&self) -> v1::ContextDeath {
        let mut death = self.death.subscribe();
        // The sender is in `self`.
        death.wait_for(Option::is_some).await.ok().and_then(|death| *death).unwrap_or_default()
    }

    /// Interrupts the cell that runs.
    pub(super) fn interrupt(&self) {
        self.group.interrupt();
    }

    /// Kills it, because an interrupt was not enough.
    pub(super) fn kill_stubborn(&self) {
        self.is_stubborn.store(true, Ordering::Relaxed);
        self.kill();
    }

    /// Kills it with all that it started.
    pub(super) fn kill(&self) {
        self.group.kill();
    }

    /// Sees `process` to its end.
    async fn watch(self: Arc<Self>, mut process: Process) {
        // An interpreter that was killed cannot tell how its fork ended: killed too, below.
        let killed = ExitStatus::from_raw(rustix::process::Signal::KILL.as_raw());
        let status = process.wait().await.unwrap_or(killed);
        // What it started has nobody to work for any more.
        self.group.kill();
        self.death.send_replace(Some(v1::ContextDeath {
            exit_code: status.code().unwrap_or_default(),
            signal: status.signal().unwrap_or_default().unsigned_abs(),
            out_of_memory: self.group.ran_out_of_memory(),
            stubborn: self.is_stubborn.load(Ordering::Relaxed),
        }));
    }

    fn info(&self) -> v1::ContextInfo {
        v1::ContextInfo {
            id: self.id.clone(),
            program: self.program.into(),
            age_ms: u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX),
            busy: self.talk.try_lock().is_err(),
            death: self.death(),
        }
    }
}

/// Starts a context, and returns when it takes cells.
pub(crate) async fn create(
    executor: &Arc<Executor>,
    request: v1::CreateContextRequest,
) -> Result<v1::CreateContextReply, Status> {
    if request.id.is_empty() || request.id.len() > MAX_CONTEXT_ID_BYTES {
        return Err(Status::invalid_argument(format!("an id has 1 to {MAX_CONTEXT_ID_BYTES} bytes")));
    }
    if executor.contexts.find(&request.id).is_ok() {
        return Err(Status::already_exists(format!("the context `{}`", request.id)));
    }
    let place = executor.contexts.places.clone().try_acquire_owned();
    let place =
        place.map_err(|_| Status::resource_exhausted(format!("there are {MAX_CONTEXTS} contexts")))?;
    let own = executor.clone();
    let started = unbroken(async move { start(&own, request, place).await });
    let (context, process) = started.await?;
    let context = Arc::new(context);
    tokio::spawn(context.clone().watch(process));
    executor.contexts.known().push(context);
    Ok(v1::CreateContextReply {})
}

async fn start(
    executor: &Arc<Executor>,
    request: v1::CreateContextRequest,
    place: OwnedSemaphorePermit,
) -> Result<(Context, Process), Status> {
    let failed = |what: &str, error: &io::Error| Status::internal(format!("could not {what}: {error}"));
    let program = request.program();
    let argv = program::context_argv(program, &executor.run_dir)
        .ok_or_else(|| Status::invalid_argument("a context is for Python or Node.js"))?;
    let cwd = executor.directory(&request.cwd).await?;
    let mut group = executor.groups.take().map_err(|error| failed("make a cgroup", &error))?;
    group.leave_room().map_err(|error| failed("limit its memory", &error))?;
    let env = executor.environment_of("", request.env).await;
    let (socket, outputs, ends) = ends().map_err(|error| failed("make its streams", &error))?;
    let start = v1::ExecStart { program: program.into(), ..v1::ExecStart::default() };
    let launch = Launch { argv: &argv, cwd: &cwd, env: &env, start: &start };
    let process = executor.start(launch, ends, &mut group).await?;
    let mut talk = Talk::new(socket, outputs, program == v1::Program::Python);
    match tokio::time::timeout(READY_DEADLINE, talk.next()).await {
        Ok(Some(Message::Done(0))) => {}
        Ok(_) => return Err(Status::failed_precondition("its interpreter did not start")),
        Err(_) => return Err(Status::failed_precondition("its interpreter did not start in time")),
    }
    let (pid, id, created) = (process.id(), request.id, Instant::now());
    let (talk, is_stubborn, death) = (talk.into(), AtomicBool::new(false), watch::Sender::default());
    Ok((Context { id, program, pid, talk, created, group, is_stubborn, death, _place: place }, process))
}

/// Both ends of a context's control socket, and what else its process gets.
fn ends() -> io::Result<(UnixStream, [Relay; 2], Ends)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let ours = std::os::unix::net::UnixStream::from(ours);
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    let (streams, ends) = process::streams()?;
    let (Some(stdout), Some(stderr)) = (streams.stdout, streams.stderr) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    Ok((ours, [Relay::start(stdout), Relay::start(stderr)], Ends { stdin: theirs, ..ends }))
}

/// All contexts.
pub(crate) fn list(executor: &Executor) -> v1::ListContextsReply {
    v1::ListContextsReply {
        contexts: executor.contexts.known().iter().map(|context| context.info()).collect(),
    }
}

/// Kills a context with all that it started, and returns when it is dead.
pub(crate) async fn destroy(executor: &Executor, id: &str) -> Result<v1::DestroyContextReply, Status> {
    let context = executor.contexts.find(id)?;
    context.kill();
    context.died().await;
    executor.contexts.known().retain(|known| known.id != id);
    Ok(v1::DestroyContextReply {})
}
