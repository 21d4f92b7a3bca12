//! The states of a sandbox, and what may happen in each. Pure: no I/O, no clock.
//!
//! ```text
//!     Created ──Start─▶ Starting, and from there as below
//!
//!                      ┌────────────Start─────────────┐
//!                      ▼                              │
//!                  Starting ──Ready─▶ Running ──Stop─▶ Stopping ──Stopped─▶ Stopped
//!                      │               │  ▲                │                   │
//!                      │          Pause│  │Resume          │                   │
//!                      │               ▼  │                │                   │
//!                      │              Paused ──Stop─▶      │                   │
//!                      └──────────────┬┴──────────Failed───┘                   │
//!                                     ▼                                        │
//!                                   Failed ──Start─▶                           │
//!     from any of these: Destroy ──▶ Destroying ──Released──▶ Destroyed ◀──────┘
//! ```
//!
//! What is stopped or failed holds no VM any more; it stays known until it is destroyed, so that its client learns what
//! became of it, or starts it again.

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
///
/// ```
/// use bouvet_host::{State, Stop};
///
/// let state = State::Stopped(Stop { exit_code: 3, out_of_memory: false });
/// assert_eq!(state.name(), "stopped");
/// assert!(matches!(state, State::Stopped(stop) if stop.exit_code == 3));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was made, and never started.
    Created,
    /// Its VM is being made.
    Starting,
    /// It takes requests.
    Running,
    /// Its VM stands still.
    Paused,
    /// Its main program was asked to end, or has ended.
    Stopping,
    /// It holds no VM, and how that came.
    Stopped(Stop),
    /// It ended by a fault or when its time was over, and why.
    Failed(String),
    /// It is being taken apart.
    Destroying,
    /// Nothing of it is left.
    Destroyed,
}

impl State {
    /// The name that clients see.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped(_) => "stopped",
            Self::Failed(_) => "failed",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether it holds a VM, or will at once.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
}

/// How a sandbox stopped.
///
/// ```no_run
/// use bouvet_host::Stop;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.wait().await? {
///     Stop { out_of_memory: true, .. } => println!("it needs more memory"),
///     Stop { exit_code, .. } => println!("exit code {exit_code}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The exit code of its main program; 128 + the signal's number when a signal ended it. 0 without such a program.
    pub exit_code: i32,
    /// Whether the kernel killed any of the main program's processes for lack of memory.
    pub out_of_memory: bool,
}

/// What a client may ask of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run a program or handle files.
    Use,
    /// Read the files of one that holds no VM.
    Read,
    /// Have its VM stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// End its programs and give up its VM.
    Stop,
    /// Make it a VM again.
    Start,
    /// End it.
    Destroy,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its VM is up, linked and personalised.
    Ready,
    /// Its VM stands still.
    Paused,
    /// Its VM goes on.
    Resumed,
    /// A client asked for it, or its main program has ended.
    Stop,
    /// Its VM is gone, as it should be.
    Stopped(Stop),
    /// A client wants it back.
    Start,
    /// Its VM died, its link broke, or its time was over.
    Failed(String),
    /// A client or the end of the host ended it.
    Destroy,
    /// All that it held was released.
    Released,
}

/// Why a request cannot be served.
///
/// ```no_run
/// use bouvet_host::Refusal;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.wait().await {
///     Ok(stop) => println!("exit code {}", stop.exit_code),
///     Err(Refusal::Failed(why)) => println!("it failed: {why}"),
///     Err(error) => println!("{error}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It was never started.
    #[error("the sandbox was never started")]
    Created,
    /// It is not ready yet.
    #[error("the sandbox is still starting")]
    Starting,
    /// It runs, and only one that does not can be started or resumed.
    #[error("the sandbox is running")]
    Running,
    /// It stands still.
    #[error("the sandbox is paused")]
    Paused,
    /// It is about to stop.
    #[error("the sandbox is stopping")]
    Stopping,
    /// It has no VM.
    #[error("the sandbox is stopped; its main program's exit code was {}", .0.exit_code)]
    Stopped(Stop),
    /// It ended by itself.
    #[error("the sandbox has failed: {0}")]
    Failed(String),
    /// It has no VM until its restart policy has made it another.
    #[error("the sandbox is restarting")]
    Restarting,
    /// It was destroyed.
    #[error("the sandbox was destroyed")]
    Destroyed,
    /// It has no main program, and only that is spoken of.
    #[error("the sandbox has no main program")]
    NoMain,
}

/// The same of a sandbox of which it is known whether it waits to be started again by itself.
pub(crate) fn legal_now(state: &State, request: Request, restarting: bool) -> Result<(), Refusal> {
    legal(state, request).map_err(|refusal| match refusal {
        Refusal::Stopped(_) | Refusal::Failed(_) if restarting => Refusal::Restarting,
        refusal => refusal,
    })
}

/// Whether `request` may be served in `state`.
pub(crate) fn legal(state: &State, request: Request) -> Result<(), Refusal> {
    match (state, request) {
        (State::Destroyed, _) => Err(Refusal::Destroyed),
        (_, Request::Destroy)
        | (State::Running, Request::Use | Request::Pause | Request::Stop)
        | (State::Paused, Request::Resume | Request::Stop)
        | (State::Created, Request::Start)
        | (State::Stopped(_) | State::Failed(_), Request::Start | Request::Read) => Ok(()),
        (State::Created, _) => Err(Refusal::Created),
        (State::Starting, _) => Err(Refusal::Starting),
        (State::Running, _) => Err(Refusal::Running),
        (State::Paused, _) => Err(Refusal::Paused),
        (State::Stopping, _) => Err(Refusal::Stopping),
        (State::Stopped(stop), _) => Err(Refusal::Stopped(*stop)),
        (State::Failed(reason), _) => Err(Refusal::Failed(reason.clone())),
        (State::Destroying, _) => Err(Refusal::Destroyed),
    }
}

/// The state after `event`; `None` where the event changes nothing.
pub(crate) fn next(state: &State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Starting, Event::Ready) | (State::Paused, Event::Resumed) => Some(State::Running),
        (State::Running, Event::Paused) => Some(State::Paused),
        (State::Running | State::Paused, Event::Stop) => Some(State::Stopping),
        (State::Stopping, Event::Stopped(stop)) => Some(State::Stopped(stop)),
        (State::Created | State::Stopped(_) | State::Failed(_), Event::Start) => Some(State::Starting),
        (state, Event::Failed(reason)) if state.is_live() => Some(State::Failed(reason)),
        (State::Destroying, Event::Released) => Some(State::Destroyed),
        (State::Destroying | State::Destroyed, _) => None,
        (_, Event::Destroy) => Some(State::Destroying),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boxconfig::BoxConfig;
    use crate::exec::{ExecError, ExecRequest, Signal};
    use crate::sandbox::life::Runs;
    use crate::sandbox::scripted;

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => Just(Event::Ready),
            2 => Just(Event::Paused),
            2 => Just(Event::Resumed),
            2 => Just(Event::Stop),
            2 => Just(Event::Stopped(Stop::default())),
            3 => Just(Event::Start),
            1 => Just(Event::Failed("gone".into())),
            1 => Just(Event::Destroy),
            1 => Just(Event::Released),
        ];
        prop::collection::vec(event, 0..24)
    }

    #[tokio::test]
    async fn sandbox_awaiting_its_restart_says_so() {
        let runs = Runs { restarting: true, ..Runs::default() };
        for state in [State::Stopped(Stop::default()), State::Failed("gone".into())] {
            let (sandbox, mut owner) = scripted::sandbox(BoxConfig::default(), state, runs.clone());
            assert_eq!(sandbox.attach().err(), Some(Refusal::Restarting));
            let request = || ExecRequest::arguments(["true"]).unwrap();
            let refused = |error| matches!(error, ExecError::Refused(Refusal::Restarting));
            assert!(sandbox.exec(request()).await.is_err_and(refused));
            assert!(sandbox.exec_stream(request()).await.is_err_and(refused));
            assert!(sandbox.signal(Signal::KILL).await.is_err_and(refused));
            let paused = tokio::select! {
                paused = sandbox.pause() => paused,
                rest = owner.rest(std::future::pending::<()>()) => panic!("it obeyed: {rest:?}"),
            };
            assert_eq!(paused, Err(Refusal::Restarting.into()));
        }
    }

    /// A model with other means: facts that hold, instead of a state.
    #[derive(Default)]
    struct Model {
        up: bool,
        still: bool,
        stopping: bool,
        /// It has no VM and none is on its way.
        down: bool,
        destroy: bool,
        released: bool,
    }

    impl Model {
        fn happen(&mut self, event: &Event) {
            if self.destroy {
                self.released |= *event == Event::Released;
                return;
            }
            match event {
                Event::Ready if !self.down && !self.stopping => self.up = true,
                Event::Paused if self.usable() => self.still = true,
                Event::Resumed if self.up && !self.stopping => self.still = false,
                Event::Stop if self.up => self.stopping = true,
                Event::Stopped(_) if self.stopping => *self = Self { down: true, ..Self::default() },
                Event::Failed(_) if !self.down => *self = Self { down: true, ..Self::default() },
                Event::Start if self.down => *self = Self::default(),
                Event::Destroy => self.destroy = true,
                _ => {}
            }
        }

        fn usable(&self) -> bool {
            self.up && !self.still && !self.stopping && !self.destroy
        }

        fn allows(&self, request: Request) -> bool {
            let settled = self.up && !self.stopping && !self.destroy;
            match request {
                Request::Use | Request::Pause => self.usable(),
                Request::Resume => settled && self.still,
                Request::Stop => settled,
                Request::Start | Request::Read => self.down && !self.destroy,
                Request::Destroy => !self.released,
            }
        }
    }

    const REQUESTS: [Request; 7] = [
        Request::Use,
        Request::Pause,
        Request::Resume,
        Request::Stop,
        Request::Start,
        Request::Read,
        Request::Destroy,
    ];

    proptest! {
        #[test]
        fn the_table_agrees_with_the_model(events in events()) {
            let (mut state, mut model) = (State::Starting, Model::default());
            for event in events {
                model.happen(&event);
                state = next(&state, event).unwrap_or(state);
                for request in REQUESTS {
                    let allowed = model.allows(request);
                    prop_assert_eq!(legal(&state, request).is_ok(), allowed, "{:?} in {:?}", request, state);
                }
                prop_assert_eq!(state == State::Destroyed, model.released);
            }
        }

        /// Before its first start there is nothing to stop, use or read.
        #[test]
        fn created_waits_for_start_or_end(events in events()) {
            let mut state = State::Created;
            for event in events {
                let is_start = matches!(event, Event::Start | Event::Destroy);
                state = next(&state, event).unwrap_or(state);
                if is_start {
                    return Ok(());
                }
                prop_assert_eq!(&state, &State::Created);
                for request in REQUESTS {
                    let allowed = matches!(request, Request::Start | Request::Destroy);
                    prop_assert_eq!(legal(&state, request).is_ok(), allowed);
                }
            }
        }

        /// Once over, always over.
        #[test]
        fn nothing_leaves_the_end(events in events()) {
            for event in events {
                prop_assert_eq!(next(&State::Destroyed, event), None);
            }
        }
    }
}
