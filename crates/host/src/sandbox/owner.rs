//! The task that owns a sandbox, from its creation to its end. It alone changes the sandbox's state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::SandboxId;
use super::create::Live;
use super::life::Life;
use super::state::{self, Event, Refusal, Request, State, Stop};
use crate::boxconfig::LogLevel;
use crate::event::{Events, Happening};
use crate::exec::{ExecControl, ExecError, ExecExit, ExecStream, Signal, StreamEvent};
use crate::journal::{Journal, Journals, LogStream};
use crate::link::Client;

/// How long the end of a link waits for the end of its VM, which explains it better.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long what programs have written may take to be on the disk, before a VM ends whose disk is kept.
const SYNC_DEADLINE: Duration = Duration::from_secs(120);

/// The same for a disk that is only kept to be read until the sandbox is started again or removed.
const REST_SYNC_DEADLINE: Duration = Duration::from_secs(30);

/// How long a sidecar has to end once the main program has ended.
const SIDECAR_GRACE: Duration = Duration::from_secs(5);

/// What a client asks of a sandbox, for its owner to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Pause,
    Resume,
    /// Asks the main program to end, and kills it when it has not after so long.
    Stop(Duration),
    /// The same, because its host ends.
    Close(Duration),
    Start,
    /// Makes the files of a stopped sandbox readable.
    Read,
    Destroy,
}

impl Order {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
            Self::Stop(_) | Self::Close(_) => Request::Stop,
            Self::Start => Request::Start,
            Self::Read => Request::Read,
            Self::Destroy => Request::Destroy,
        }
    }
}

/// Why an order was not carried out.
///
/// ```no_run
/// use bouvet_host::{ControlError, Refusal};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.pause().await {
///     Ok(()) | Err(ControlError::Refused(Refusal::Paused)) => println!("it stands still"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The sandbox cannot take it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was tried in vain.
    #[error("{0}")]
    Failed(String),
}

/// Where the answer to an order goes.
pub(crate) type Answer = oneshot::Sender<Result<(), ControlError>>;

/// The owner's ends of what a [`super::Sandbox`] holds.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: SandboxId,
    pub(crate) state: watch::Sender<State>,
    pub(crate) orders: mpsc::Receiver<(Order, Answer)>,
    pub(crate) journals: Journals,
    pub(crate) life: Life,
    pub(crate) events: Events,
    /// What of its life the host's log has.
    pub(crate) log_level: LogLevel,
    /// Whether it was to be destroyed while it stopped.
    pub(crate) doomed: bool,
    /// Where the disk of a sandbox goes that is stopped and not persistent; `None`: it is thrown away.
    pub(crate) rest_disk: Option<PathBuf>,
}

/// Requests to a sandbox without a VM.
#[derive(Debug)]
pub(crate) enum Rest {
    Start(Answer),
    /// Make its files readable.
    Read(Answer),
    /// Stay as it is, and not start again by itself.
    Stay(Answer),
    /// Nobody has read its files for a while, or it is to be started again by itself.
    Idle,
    Destroy,
}

/// How a sandbox's VM came to its end.
#[derive(Debug)]
pub(crate) enum End {
    /// It is to be destroyed.
    Destroyed,
    /// It may be started again.
    Down,
}

/// Why a VM is given up.
enum Cause {
    Destroy,
    Stop(Duration, Answer),
    MainEnded(ExecExit),
    /// It is not known how a program goes on.
    Lost(ExecError),
    Failed(String),
}

/// A program of a sandbox that is up, from its first word to its last: the main one, or the sidecar's.
#[derive(Debug)]
pub(crate) struct Followed {
    control: ExecControl,
    stop_signal: Signal,
    exit: JoinHandle<Result<ExecExit, ExecError>>,
}

impl Followed {
    /// Keeps what `stream` brings in `journal`, until the program has ended.
    pub(crate) fn follow(mut stream: ExecStream, stop_signal: Signal, journal: Arc<Journal>) -> Self {
        let control = stream.control();
        // At once: who follows from now on is not told that nothing more will come.
        journal.open();
        let exit = tokio::spawn(async move {
            let exit = loop {
                match stream.next().await {
                    Ok(Some(StreamEvent::Stdout(data))) => journal.add(LogStream::Stdout, data).await,
                    Ok(Some(StreamEvent::Stderr(data))) => journal.add(LogStream::Stderr, data).await,
                    Ok(Some(StreamEvent::Exit(exit))) => break Ok(exit),
                    Ok(None) => break Err(ExecError::Ended),
                    Err(error) => break Err(error),
                }
            };
            journal.close();
            exit
        });
        Self { control, stop_signal, exit }
    }

    /// What speaks to it.
    pub(crate) fn control(&self) -> ExecControl {
        self.control.clone()
    }

    async fn ended(&mut self) -> Result<ExecExit, ExecError> {
        (&mut self.exit).await.unwrap_or_else(|error| Err(ExecError::Link(error.to_string())))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.exit.abort();
    }
}

impl Owner {
    pub(crate) fn happen(&self, event: Event) {
        let happening = Happening::of(&event);
        let is_up = matches!(event, Event::Ready);
        let is_down = matches!(event, Event::Stopped(_) | Event::Failed(_));
        let changed = self.state.send_if_modified(|state| match state::next(state, event) {
            Some(next) => {
                // Before anybody sees the state.
                self.life.change(|runs| runs.pass(is_up, is_down));
                *state = next;
                true
            }
            None => false,
        });
        if let (true, Some(happening)) = (changed, happening) {
            self.events.happened(self.id, happening);
        }
    }

    /// Holds `live` until it has come to its end, and releases it.
    pub(crate) async fn own(&mut self, mut live: Live, expires: Option<Instant>, lifetime: Duration) -> End {
        let cause = loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    // Closed means that nobody can ask any more: the host itself is gone.
                    None => break Cause::Destroy,
                    Some((order, answer)) => {
                        if let Some(cause) = self.obey(&mut live, order, answer).await {
                            break cause;
                        }
                    }
                },
                reason = live.vm.exited() => break Cause::Failed(reason),
                broken = live.link.broken() => {
                    let reason = tokio::time::timeout(PATIENCE, live.vm.exited()).await;
                    break Cause::Failed(reason.unwrap_or(broken));
                }
                exit = ended(&mut live.main) => break exit.map_or_else(Cause::Lost, Cause::MainEnded),
                exit = ended(&mut live.sidecar) => match exit {
                    Ok(exit) if exit.exit_code == 0 => live.sidecar = None,
                    // What it was to watch over, it does not any more.
                    Ok(exit) => {
                        break Cause::Failed(format!("its sidecar ended with the exit code {}", exit.exit_code));
                    }
                    Err(error) => break Cause::Lost(error),
                },
                () = until(expires) => {
                    break Cause::Failed(format!("its time of {} s is over", lifetime.as_secs()));
                }
            }
        };
        self.end(live, cause).await
    }

    /// Does what is asked, unless that is the end of `live`, which is returned.
    async fn obey(&mut self, live: &mut Live, order: Order, answer: Answer) -> Option<Cause> {
        if let Err(refusal) = state::legal(&self.state.borrow(), order.request()) {
            // Whoever asked may have gone.
            answer.send(Err(refusal.into())).ok();
            return None;
        }
        let (done, event) = match order {
            Order::Destroy => return Some(Cause::Destroy),
            Order::Stop(grace) => {
                self.life.change(|runs| runs.was_asked = true);
                return Some(Cause::Stop(grace, answer));
            }
            Order::Close(grace) => return Some(Cause::Stop(grace, answer)),
            Order::Pause => (live.vm.pause().await.map_err(|error| crate::chain(&error)), Event::Paused),
            Order::Resume => (live.resume(self.id).await, Event::Resumed),
            Order::Start | Order::Read => return None,
        };
        // Half woken it may run with a clock that is wrong, and there is no telling whether it stands still.
        let cause = match &done {
            Err(reason) if order == Order::Resume => {
                Some(Cause::Failed(format!("it did not wake: {reason}")))
            }
            Err(_) => None,
            Ok(()) => {
                self.happen(event);
                None
            }
        };
        answer.send(done.map_err(ControlError::Failed)).ok();
        cause
    }

    async fn end(&mut self, mut live: Live, cause: Cause) -> End {
        match cause {
            Cause::Destroy => {
                self.happen(Event::Destroy);
                release(live).await;
                End::Destroyed
            }
            Cause::Failed(reason) => {
                if self.log_level <= LogLevel::Warn {
                    warn!(sandbox = %self.id, %reason, "sandbox failed");
                }
                release(live).await;
                self.journals.close();
                self.happen(Event::Failed(reason));
                End::Down
            }
            Cause::MainEnded(exit) => {
                self.happen(Event::Stop);
                // Logged; it is killed in any case.
                drop(self.stop(&mut live.sidecar, SIDECAR_GRACE).await);
                self.come_to_rest(live, Some(exit)).await;
                End::Down
            }
            // Its VM or its link has most likely broken, which tells more.
            Cause::Lost(error) => {
                let reason = tokio::time::timeout(PATIENCE, live.vm.exited()).await;
                let cause = Cause::Failed(reason.unwrap_or_else(|_| crate::chain(&error)));
                Box::pin(self.end(live, cause)).await
            }
            Cause::Stop(grace, answer) => {
                let was_paused = *self.state.borrow() == State::Paused;
                self.happen(Event::Stop);
                if was_paused && let Err(error) = live.resume(self.id).await {
                    warn!(sandbox = %self.id, %error, "a paused sandbox did not wake to stop");
                }
                let (exit, asked) = self.stop(&mut live.main, grace).await;
                drop(self.stop(&mut live.sidecar, grace.min(SIDECAR_GRACE)).await);
                self.come_to_rest(live, exit).await;
                answer.send(asked).ok();
                End::Down
            }
        }
    }

    /// Asks a program to end, and kills it if it does not within `grace`, or at once if it cannot be asked.
    async fn stop(
        &mut self,
        program: &mut Option<Followed>,
        grace: Duration,
    ) -> (Option<ExecExit>, Result<(), ControlError>) {
        let Some(program) = program.as_mut() else { return (None, Ok(())) };
        let mut asked = Ok(());
        // Whoever wants it destroyed waits for nothing.
        if !grace.is_zero() && !self.doomed {
            let signal = program.stop_signal;
            match program.control.signal(signal).await {
                Ok(()) | Err(ExecError::Ended) => tokio::select! {
                    exit = program.ended() => return (exit.ok(), asked),
                    () = tokio::time::sleep(grace) => {}
                    () = doom(&mut self.orders, &self.state) => self.doomed = true,
                },
                Err(error) => {
                    let error = crate::chain(&error);
                    warn!(sandbox = %self.id, %signal, %error, "could not signal a program");
                    let fact =
                        format!("{signal} could not be sent to its program, which was killed: {error}");
                    asked = Err(ControlError::Failed(fact));
                }
            }
        }
        if let Err(error) = program.control.signal(Signal::KILL).await {
            warn!(sandbox = %self.id, error = %crate::chain(&error), "could not kill a program");
        }
        (tokio::time::timeout(PATIENCE, program.ended()).await.ok().and_then(Result::ok), asked)
    }

    /// Gives up the VM of a sandbox whose programs have ended, or are to.
    async fn come_to_rest(&self, live: Live, exit: Option<ExecExit>) {
        let disk = self.rest_disk.as_deref();
        let client = live.link.client();
        let synced = match (live.durable, disk) {
            (true, _) => self.sync(client, SYNC_DEADLINE).await,
            (false, Some(_)) => self.sync(client, REST_SYNC_DEADLINE).await,
            (false, None) => false,
        };
        let killed = live.main.is_some();
        release_keeping(live, disk.filter(|_| synced)).await;
        self.journals.close();
        let exit_code = match &exit {
            Some(exit) => exit.exit_code,
            // It did not say, and is gone with its VM.
            None if killed => 128 + 9,
            None => 0,
        };
        let stop = Stop { exit_code, out_of_memory: exit.is_some_and(|exit| exit.out_of_memory) };
        if self.log_level <= LogLevel::Info {
            info!(sandbox = %self.id, exit_code, "sandbox stopped");
        }
        self.happen(Event::Stopped(stop));
    }

    /// Whether all that programs wrote is on the disk.
    async fn sync(&self, mut client: Client, deadline: Duration) -> bool {
        match tokio::time::timeout(deadline, client.sync(bouvet_wire::v1::SyncRequest {})).await {
            Ok(Ok(_)) => return true,
            Ok(Err(status)) => warn!(sandbox = %self.id, %status, "a disk was not written to its end"),
            Err(_) => warn!(sandbox = %self.id, "a disk was not written within {deadline:?}"),
        }
        false
    }

    /// Waits, without a VM, for what is to be done. `idle` ends when the files that are readable are no longer read.
    pub(crate) async fn rest(&mut self, idle: impl Future<Output = ()>) -> Rest {
        if self.doomed {
            self.happen(Event::Destroy);
            return Rest::Destroy;
        }
        tokio::pin!(idle);
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                () = &mut idle => return Rest::Idle,
            };
            let Some((order, answer)) = order else {
                self.happen(Event::Destroy);
                return Rest::Destroy;
            };
            let legal = state::legal(&self.state.borrow(), order.request());
            match (order, legal) {
                (Order::Destroy, Ok(())) => {
                    self.happen(Event::Destroy);
                    return Rest::Destroy;
                }
                (Order::Start, Ok(())) => {
                    self.happen(Event::Start);
                    return Rest::Start(answer);
                }
                (Order::Read, Ok(())) => return Rest::Read(answer),
                (Order::Stop(_) | Order::Close(_), Err(_)) if self.life.runs().restarting => {
                    return Rest::Stay(answer);
                }
                (_, Err(refusal)) => {
                    answer.send(Err(refusal.into())).ok();
                }
                (_, Ok(())) => {}
            }
        }
    }
}

/// Waits for an order that cannot wait for a stop to end, and refuses all others.
async fn doom(orders: &mut mpsc::Receiver<(Order, Answer)>, state: &watch::Sender<State>) {
    while let Some((order, answer)) = orders.recv().await {
        match state::legal(&state.borrow(), order.request()) {
            Ok(()) => return,
            // Whoever asked may have gone.
            Err(refusal) => drop(answer.send(Err(refusal.into()))),
        }
    }
}

/// Waits for the end of `program`; for ever, where there is none.
async fn ended(program: &mut Option<Followed>) -> Result<ExecExit, ExecError> {
    match program {
        Some(program) => program.ended().await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn release(live: Live) {
    release_keeping(live, None).await;
}

/// Releases `live`, and puts its disk to `disk`. Without a disk nobody can read its files, which is not a failure.
async fn release_keeping(live: Live, disk: Option<&Path>) {
    let Live { mut vm, link, main, sidecar, volumes, network, undo, scratch, .. } = live;
    drop((main, sidecar, volumes, network, link));
    vm.stop().await;
    if let (Some(scratch), Some(disk)) = (scratch, disk)
        && let Err(error) = std::fs::rename(&scratch, disk)
    {
        warn!(path = %scratch.display(), %error, "could not keep the disk of a stopped sandbox");
    }
    drop(undo);
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
