//! What happens to the sandboxes of a host, for those who watch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::sandbox::SandboxId;
use crate::sandbox::state::{self, Stop};

/// Events that wait for a watcher who does not look. Who is further behind misses the oldest, and learns how many.
const CAPACITY: usize = 1024;

/// Something that happened to a sandbox.
///
/// ```no_run
/// use bouvet_host::{Happening, Watched};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = host.events();
/// while let Some(watched) = events.next().await {
///     if let Watched::Event(event) = watched
///         && let Happening::Fail { reason } = event.happening
///     {
///         println!("{} failed: {reason}", event.sandbox);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// It was asked for.
    Create,
    /// It is up.
    Start,
    /// It stands still.
    Pause,
    /// It goes on.
    Resume,
    /// It gave up its VM.
    Stop(Stop),
    /// It ended by a fault or when its time was over.
    Fail {
        /// Why.
        reason: String,
    },
    /// Nothing of it is left.
    Destroy,
}

impl Happening {
    /// What an event of a sandbox's life is to others.
    pub(crate) fn of(event: &state::Event) -> Option<Self> {
        Some(match event {
            state::Event::Ready => Self::Start,
            state::Event::Paused => Self::Pause,
            state::Event::Resumed => Self::Resume,
            state::Event::Stopped(stop) => Self::Stop(*stop),
            state::Event::Failed(reason) => Self::Fail { reason: reason.clone() },
            state::Event::Released => Self::Destroy,
            state::Event::Start | state::Event::Stop | state::Event::Destroy => return None,
        })
    }
}

/// An event of a host.
///
/// ```no_run
/// use bouvet_host::{HostEvent, Watched};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = host.events();
/// while let Some(Watched::Event(HostEvent { time, sandbox, happening })) = events.next().await {
///     println!("{time:?} {sandbox} {happening:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEvent {
    /// When it happened.
    pub time: SystemTime,
    /// To which sandbox.
    pub sandbox: SandboxId,
    /// What it was.
    pub happening: Happening,
}

/// Where events are announced. Cheap to clone; every clone is the same.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Mutex<Option<broadcast::Sender<HostEvent>>>>);

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(broadcast::Sender::new(CAPACITY)))))
    }
}

impl Events {
    pub(crate) fn happened(&self, sandbox: SandboxId, happening: Happening) {
        if let Some(watchers) = &*self.watchers() {
            // Nobody need watch.
            watchers.send(HostEvent { time: SystemTime::now(), sandbox, happening }).ok();
        }
    }

    pub(crate) fn watch(&self) -> EventWatch {
        let watchers = self.watchers();
        // One that nobody announces to is at its end.
        EventWatch(watchers.as_ref().map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe))
    }

    /// Nothing happens any more: watchers come to their end, whoever still has a handle to the host.
    pub(crate) fn end(&self) {
        *self.watchers() = None;
    }

    fn watchers(&self) -> MutexGuard<'_, Option<broadcast::Sender<HostEvent>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches what happens from its making on.
///
/// ```no_run
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = host.events();
/// let watching = tokio::spawn(async move {
///     while let Some(watched) = events.next().await {
///         println!("{watched:?}");
///     }
/// });
/// host.shut_down().await;
/// watching.await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct EventWatch(broadcast::Receiver<HostEvent>);

/// What comes to a watcher.
///
/// ```no_run
/// use bouvet_host::Watched;
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = host.events();
/// match events.next().await {
///     Some(Watched::Event(event)) => println!("{:?}", event.happening),
///     Some(Watched::Missed(count)) => println!("{count} events were missed"),
///     None => println!("the host has shut down"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// This happened.
    Event(HostEvent),
    /// So many events were missed, since nobody looked.
    Missed(u64),
}

impl EventWatch {
    /// What happens next; `None` when the host has shut down.
    ///
    /// ```no_run
    /// use bouvet_host::{BoxConfig, Happening, Watched};
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut events = host.events();
    /// host.create(BoxConfig::default()).await?;
    /// let Some(Watched::Event(first)) = events.next().await else { return Ok(()) };
    /// assert_eq!(first.happening, Happening::Create);
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Option<Watched> {
        match self.0.recv().await {
            Ok(event) => Some(Watched::Event(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Watched::Missed(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
