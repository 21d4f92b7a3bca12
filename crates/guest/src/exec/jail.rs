//! The namespaces in which a confined sandbox's programs live, and how they get there.
//!
//! A process enters a namespace of processes by being born into it: it is the child of a thread whose children are
//! (pid_namespaces(7)). So one thread starts all programs of a jail, the first of which makes the other namespaces too.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use bouvet_wire::v1;
use rustix::thread::UnshareFlags;
use tokio::process::Child;
use tokio::sync::oneshot;
use tonic::Status;

use super::cgroup::Group;
use super::entry::{Entry, Stage};
use super::process::Ends;

type Job = Box<dyn FnOnce() + Send>;

/// See the module.
#[derive(Debug)]
pub(super) struct Jail {
    jobs: Mutex<Sender<Job>>,
    confinement: v1::Confinement,
    /// Those of its first process, once that is there.
    namespaces: Mutex<Option<[File; 2]>>,
}

impl Jail {
    /// Makes one without processes. Must be called within a runtime, on which its children will be watched.
    pub(super) fn new(confinement: v1::Confinement) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (jobs, queue) = channel::<Job>();
        let (begun, beginning) = channel();
        std::thread::Builder::new().name("jail".into()).spawn(move || {
            let _runtime = runtime.enter();
            #[expect(unsafe_code, reason = "some of the flags that we do not pass would be unsafe")]
            // SAFETY: the flag touches neither descriptors nor memory.
            let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) };
            let failed = unshared.is_err();
            // Whoever started this thread waits for it.
            begun.send(unshared).ok();
            if !failed {
                queue.iter().for_each(|job| job());
            }
        })?;
        beginning.recv().map_err(io::Error::other)??;
        Ok(Self { jobs: Mutex::new(jobs), confinement, namespaces: Mutex::default() })
    }

    /// Starts the process that is first where there is no main program. It ends with the VM.
    pub(super) async fn hold(&self) -> Result<(), Status> {
        let entry = Entry { first: true, confinement: Some(self.confinement.clone()), ..Entry::default() };
        let failed =
            |error: io::Error| Status::internal(format!("could not start the first process: {error}"));
        let stage = Stage::new(&entry, Vec::new()).map_err(failed)?;
        let child = self.start(stage).await?;
        self.open(&child).map_err(failed)
    }

    /// Starts a program in `group`.
    pub(super) async fn spawn(
        &self,
        mut entry: Entry,
        ends: Ends,
        group: &mut Group,
    ) -> Result<Child, Status> {
        if entry.user.is_empty() {
            entry.user.clone_from(&self.confinement.user);
        }
        entry.confinement = Some(self.confinement.clone());
        let failed = |error: io::Error| Status::internal(format!("could not start the program: {error}"));
        let namespaces = if entry.first { Vec::new() } else { self.namespaces()? };
        let mut stage = Stage::new(&entry, namespaces).map_err(failed)?;
        attach(&mut stage, entry.terminal, ends, group).map_err(failed)?;
        let child = self.start(stage).await?;
        group.led_by(child.id().unwrap_or_default());
        if entry.first {
            self.open(&child).map_err(failed)?;
        }
        Ok(child)
    }

    async fn start(&self, mut stage: Stage) -> Result<Child, Status> {
        let (done, started) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Somebody waits: no start is given up before its process is there.
            done.send(stage.command.spawn().map(|child| (child, stage.started()))).ok();
        });
        let gone = || Status::internal("the thread that starts programs is gone");
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job).map_err(|_| gone())?;
        let (child, awaited) =
            started.await.map_err(|_| gone())?.map_err(|error| match error.raw_os_error() {
                // fork(2): the namespace's first process has ended.
                Some(libc::ENOMEM) => Status::failed_precondition("the sandbox's main program has ended"),
                _ => Status::internal(format!("could not start a process: {error}")),
            })?;
        awaited.entered().await?;
        Ok(child)
    }

    /// Remembers the namespaces that `first` has made.
    fn open(&self, first: &Child) -> io::Result<()> {
        let pid = first.id().ok_or_else(|| io::Error::other("it has ended"))?;
        let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
        let namespaces = [open("mnt")?, open("ipc")?];
        *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner) = Some(namespaces);
        Ok(())
    }

    fn namespaces(&self) -> Result<Vec<OwnedFd>, Status> {
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(namespaces) = &*namespaces else {
            return Err(Status::failed_precondition("the sandbox's main program has not started"));
        };
        let copies: io::Result<_> =
            namespaces.iter().map(|file| file.try_clone().map(OwnedFd::from)).collect();
        copies.map_err(|error| Status::internal(error.to_string()))
    }
}

/// Starts a program that is not confined, as another user or with a terminal, in `group`.
pub(super) async fn spawn_free(entry: &Entry, ends: Ends, group: &mut Group) -> Result<Child, Status> {
    let failed = |error: io::Error| Status::internal(format!("could not start the program: {error}"));
    let mut stage = Stage::new(entry, Vec::new()).map_err(failed)?;
    attach(&mut stage, entry.terminal, ends, group).map_err(failed)?;
    let child = stage.command.spawn().map_err(failed)?;
    group.led_by(child.id().unwrap_or_default());
    stage.started().entered().await?;
    Ok(child)
}

fn attach(stage: &mut Stage, terminal: bool, ends: Ends, group: &Group) -> io::Result<()> {
    let command = &mut stage.command;
    command.env_clear().current_dir("/").stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
    if !terminal {
        // With one, it begins a session, and by that a group.
        command.process_group(0);
    }
    group.take_in(command)
}
