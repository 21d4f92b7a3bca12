//! The task that owns a sandbox, from its creation to its end. It alone changes the sandbox's state.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::SandboxId;
use super::create::Live;
use super::life::RunsWriter;
use super::order::{Answer, ControlError, Order, OrderError, StopOrder};
use super::signals::Signals;
use super::state::{self, Event, Refusal, State, Stop};
use crate::boxconfig::LogLevel;
use crate::event::{Events, Happening};
use crate::exec::{ExecControl, ExecError, ExecExit, ExecStream, Signal, StreamEvent};
use crate::journal::{Journal, Journals, LogStream};
use crate::link::Client;
use crate::resting::RestingDisk;

/// How long the end of a link waits for the end of its VM, which explains it better.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long what programs have written may take to be on the disk, before a VM ends whose disk is kept.
const SYNC_DEADLINE: Duration = Duration::from_secs(120);

/// The same for a disk that is only kept to be read until the sandbox is started again or removed.
const REST_SYNC_DEADLINE: Duration = Duration::from_secs(30);

/// How long a sidecar has to end once the main program has ended.
const SIDECAR_GRACE: Duration = Duration::from_secs(5);

/// The owner's ends of what a [`super::Sandbox`] holds.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: SandboxId,
    pub(crate) state: watch::Sender<State>,
    pub(crate) orders: mpsc::Receiver<(Order, Answer)>,
    pub(crate) journals: Journals,
    pub(crate) runs: RunsWriter,
    pub(crate) events: Events,
    /// What of its life the host's log has.
    pub(crate) log_level: LogLevel,
    /// Whether it was to be destroyed while it stopped.
    pub(crate) doomed: bool,
    /// Cancelled when its host shuts down.
    pub(crate) closing: CancellationToken,
    /// The same, and also when a client wants it destroyed: what is being made of it then is taken apart at once.
    pub(crate) doom: CancellationToken,
    /// Where the disk of a sandbox goes that is stopped and not persistent; `None`: it is thrown away.
    pub(crate) resting: Option<RestingDisk>,
}

/// Requests to a sandbox without a VM.
#[derive(Debug)]
pub(crate) enum Rest<W> {
    Start(Answer),
    /// Make its files readable.
    Read(Answer),
    /// Not start again by itself: a client stopped it.
    Stop(Answer),
    /// The same, because its host ends.
    Close(Answer),
    /// What the owner waited for has happened.
    Woken(W),
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

/// The side that stops a sandbox.
enum Asker {
    Client(Answer),
    /// The host, which ends.
    Host(Answer),
}

/// Why a VM is given up.
enum Cause {
    Destroy,
    Stop(StopOrder, Asker),
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

    /// Whether `signal` asks the program to end for good, as Docker sees it.
    fn is_asked_by(&self, signal: Signal) -> bool {
        [Signal::KILL, Signal::TERM, self.stop_signal].contains(&signal)
    }

    /// Sends the program `signal`, and waits for its end; `None`: it runs after `grace`.
    async fn end_by(
        &mut self,
        signal: Signal,
        grace: Duration,
    ) -> Result<Option<Result<ExecExit, ExecError>>, ExecError> {
        match self.control.signal(signal).await {
            Ok(()) | Err(ExecError::Ended) => Ok(tokio::time::timeout(grace, self.ended()).await.ok()),
            Err(error) => Err(error),
        }
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
    pub(crate) fn happen(&mut self, event: Event) {
        let happening = Happening::of(&event);
        let is_up = matches!(event, Event::Ready);
        let is_down = matches!(event, Event::Stopped(_) | Event::Failed(_));
        let runs = &mut self.runs;
        let changed = self.state.send_if_modified(|state| match state::next(state, event) {
            Some(next) => {
                // Before anybody sees the state.
                runs.change(|runs| runs.pass(is_up, is_down));
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
        let mut signals = Signals::default();
        let cause = loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    // Closed means that nobody can ask any more: the host itself is gone.
                    None => break Cause::Destroy,
                    Some((order, answer)) => {
                        if let Some(cause) = self.obey(&mut live, &mut signals, order, answer).await {
                            break cause;
                        }
                    }
                },
                () = signals.answered() => {}
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
            self.runs.change(|runs| runs.was_asked = signals.is_asked());
        };
        let is_asked = signals.is_asked() || matches!(&cause, Cause::Stop(_, Asker::Client(_)));
        self.runs.change(|runs| runs.was_asked = is_asked);
        if matches!(cause, Cause::MainEnded(_)) {
            signals.program_ended();
        }
        drop(signals);
        self.end(live, cause).await
    }

    /// Does what is asked, unless that is the end of `live`, which is returned.
    async fn obey(
        &mut self,
        live: &mut Live,
        signals: &mut Signals,
        order: Order,
        answer: Answer,
    ) -> Option<Cause> {
        if let Err(refusal) = state::legal(&self.state.borrow(), order.request()) {
            // The caller may have been dropped.
            answer.send(Err(refusal.into())).ok();
            return None;
        }
        let (done, event) = match order {
            Order::Destroy => return Some(Cause::Destroy),
            Order::Stop(stop) => return Some(Cause::Stop(stop, Asker::Client(answer))),
            Order::Close(grace) => {
                return Some(Cause::Stop(StopOrder { signal: None, grace }, Asker::Host(answer)));
            }
            Order::Signal(signal) => {
                match &live.main {
                    Some(main) => signals.send(main.control(), signal, main.is_asked_by(signal), answer),
                    None => drop(answer.send(Err(Refusal::NoMain.into()))),
                }
                return None;
            }
            Order::Pause => (live.vm.pause().await.map_err(|error| crate::chain(&error)), Event::Paused),
            Order::Resume => {
                let resumed = tokio::select! {
                    resumed = live.resume(self.id) => resumed,
                    () = destroyed(&self.doom, &self.closing) => return Some(Cause::Destroy),
                };
                (resumed, Event::Resumed)
            }
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
        answer.send(done.map_err(failed)).ok();
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
                drop(self.stop(&mut live.sidecar, None, SIDECAR_GRACE).await);
                self.come_to_rest(live, Some(exit)).await;
                End::Down
            }
            // Its VM or its link has most likely broken, which tells more.
            Cause::Lost(error) => {
                let reason = tokio::time::timeout(PATIENCE, live.vm.exited()).await;
                let cause = Cause::Failed(reason.unwrap_or_else(|_| crate::chain(&error)));
                Box::pin(self.end(live, cause)).await
            }
            Cause::Stop(StopOrder { signal, grace }, Asker::Client(answer) | Asker::Host(answer)) => {
                let was_paused = *self.state.borrow() == State::Paused;
                self.happen(Event::Stop);
                let id = self.id;
                if was_paused && let Some(Err(error)) = self.unless_doomed(live.resume(id)).await {
                    warn!(sandbox = %id, %error, "a paused sandbox did not wake to stop");
                }
                let (exit, asked) = self.stop(&mut live.main, signal, grace).await;
                drop(self.stop(&mut live.sidecar, None, grace.min(SIDECAR_GRACE)).await);
                self.come_to_rest(live, exit).await;
                answer.send(asked).ok();
                End::Down
            }
        }
    }

    /// Asks a program to end by `signal`, or by its own, and kills it if it does not within `grace`, or at once if it
    /// cannot be asked. A sandbox that is to be destroyed waits for none of that: its VM ends in any case.
    async fn stop(
        &mut self,
        program: &mut Option<Followed>,
        signal: Option<Signal>,
        grace: Duration,
    ) -> (Option<ExecExit>, Result<(), OrderError>) {
        let Some(program) = program.as_mut() else { return (None, Ok(())) };
        let mut asked = Ok(());
        if !grace.is_zero() {
            let signal = signal.unwrap_or(program.stop_signal);
            match self.unless_doomed(program.end_by(signal, grace)).await {
                Some(Ok(Some(exit))) => return (exit.ok(), asked),
                Some(Ok(None)) | None => {}
                Some(Err(error)) => {
                    let error = crate::chain(&error);
                    warn!(sandbox = %self.id, %signal, %error, "could not signal a program");
                    let fact =
                        format!("{signal} could not be sent to its program, which was killed: {error}");
                    asked = Err(failed(fact));
                }
            }
        }
        match self.unless_doomed(program.end_by(Signal::KILL, PATIENCE)).await {
            Some(Ok(exit)) => (exit.and_then(Result::ok), asked),
            Some(Err(error)) => {
                warn!(sandbox = %self.id, error = %crate::chain(&error), "could not kill a program");
                (None, asked)
            }
            None => (None, asked),
        }
    }

    /// Waits for `work`, unless the sandbox is to be destroyed before it is done.
    async fn unless_doomed<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.doomed {
            return None;
        }
        tokio::select! {
            done = work => Some(done),
            () = doom(&mut self.orders, &self.state) => {
                self.doomed = true;
                None
            }
        }
    }

    /// Gives up the VM of a sandbox whose programs have ended, or are to.
    async fn come_to_rest(&mut self, live: Live, exit: Option<ExecExit>) {
        let synced = self.sync(live.link.client(), live.durable).await;
        let killed = live.main.is_some();
        release_keeping(live, self.resting.as_ref().filter(|_| synced)).await;
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

    /// Whether all that programs wrote is on a disk that outlives its VM.
    async fn sync(&mut self, mut client: Client, is_durable: bool) -> bool {
        let deadline = match (is_durable, &self.resting) {
            (true, _) => SYNC_DEADLINE,
            // A host that ends keeps only the disks of persistent sandboxes.
            (false, Some(_)) if !self.closing.is_cancelled() => REST_SYNC_DEADLINE,
            (false, _) => return false,
        };
        let synced = tokio::time::timeout(deadline, client.sync(bouvet_wire::v1::SyncRequest {}));
        tokio::pin!(synced);
        let synced = loop {
            // A host that ends destroys all of its sandboxes, but keeps what persistent ones wrote.
            if self.doomed && !(is_durable && self.closing.is_cancelled()) {
                return false;
            }
            tokio::select! {
                synced = &mut synced => break synced,
                () = doom(&mut self.orders, &self.state), if !self.doomed => self.doomed = true,
            }
        };
        match synced {
            Ok(Ok(_)) => return true,
            Ok(Err(status)) => warn!(sandbox = %self.id, %status, "a disk was not written to its end"),
            Err(_) => warn!(sandbox = %self.id, "a disk was not written within {deadline:?}"),
        }
        false
    }

    /// Waits, without a VM, for what is to be done, or until `woken` is done.
    pub(crate) async fn rest<W>(&mut self, woken: impl Future<Output = W>) -> Rest<W> {
        if self.doomed {
            self.happen(Event::Destroy);
            return Rest::Destroy;
        }
        tokio::pin!(woken);
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                woken = &mut woken => return Rest::Woken(woken),
            };
            let Some((order, answer)) = order else {
                self.happen(Event::Destroy);
                return Rest::Destroy;
            };
            let restarting = self.runs.runs().restarting;
            let legal = state::legal_now(&self.state.borrow(), order.request(), restarting);
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
                (Order::Stop(_), Err(_)) if restarting => return Rest::Stop(answer),
                (Order::Close(_), Err(_)) if restarting => return Rest::Close(answer),
                (_, Err(refusal)) => {
                    answer.send(Err(refusal.into())).ok();
                }
                (_, Ok(())) => {}
            }
        }
    }
}

fn failed(reason: String) -> OrderError {
    OrderError::Control(ControlError::Failed(reason))
}

/// Waits until a client destroys the sandbox, for ever if its host ends.
async fn destroyed(doom: &CancellationToken, closing: &CancellationToken) {
    doom.cancelled().await;
    if closing.is_cancelled() {
        std::future::pending().await
    }
}

/// Waits for an order that cannot wait for a stop to end, and refuses all others.
async fn doom(orders: &mut mpsc::Receiver<(Order, Answer)>, state: &watch::Sender<State>) {
    while let Some((order, answer)) = orders.recv().await {
        match state::legal(&state.borrow(), order.request()) {
            Ok(()) => return,
            // The caller may have been dropped.
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

/// Releases `live`, and moves its disk to `disk`. If that fails, its files cannot be read; all else goes well.
async fn release_keeping(live: Live, disk: Option<&RestingDisk>) {
    let Live { mut vm, link, main, sidecar, volumes, network, undo, scratch, .. } = live;
    drop((main, sidecar, volumes, network, link));
    vm.stop().await;
    if let (Some(scratch), Some(disk)) = (scratch, disk)
        && let Err(error) = disk.keep(&scratch)
    {
        warn!(path = %scratch.display(), %error, "could not keep the disk of a stopped sandbox");
    }
    drop(undo);
}

/// Waits until `deadline`; for ever, where there is none.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
