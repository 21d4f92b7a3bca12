//! What happens to the sandboxes of a host, for those who watch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::sandbox::SandboxId;
use crate::sandbox::state::{self, Stop};

/// Events that wait for a watcher who does not look. Who is further behind misses the oldest, and learns how many.
const CAPACITY: usize = 1024;
/// Past events that are kept for later watchers.
const MAX_PAST_EVENTS: usize = 1024;

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
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Announcements>>);

#[derive(Debug)]
struct Announcements {
    /// `None` after the end.
    watchers: Option<broadcast::Sender<HostEvent>>,
    /// The last events, the oldest first.
    past: VecDeque<HostEvent>,
}

impl Default for Announcements {
    fn default() -> Self {
        Self { watchers: Some(broadcast::Sender::new(CAPACITY)), past: VecDeque::new() }
    }
}

impl Events {
    pub(crate) fn happened(&self, sandbox: SandboxId, happening: Happening) {
        let mut announcements = self.lock();
        let Announcements { watchers: Some(watchers), past } = &mut *announcements else { return };
        let event = HostEvent { time: SystemTime::now(), sandbox, happening };
        if past.len() == MAX_PAST_EVENTS {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Nobody need watch.
        watchers.send(event).ok();
    }

    pub(crate) fn watch(&self) -> EventWatch {
        self.lock().watch(VecDeque::new())
    }

    /// The same, with the past events since `since` first.
    pub(crate) fn watch_since(&self, since: SystemTime) -> EventWatch {
        let announcements = self.lock();
        let past = announcements.past.iter().filter(|event| event.time >= since).cloned().collect();
        announcements.watch(past)
    }

    /// Nothing happens any more: watchers come to their end, whoever still has a handle to the host.
    pub(crate) fn end(&self) {
        self.lock().watchers = None;
    }

    fn lock(&self) -> MutexGuard<'_, Announcements> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Announcements {
    fn watch(&self, past: VecDeque<HostEvent>) -> EventWatch {
        let watchers = self.watchers.as_ref();
        // One that nobody announces to is at its end.
        let coming = watchers.map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe);
        EventWatch { past, coming }
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
pub struct EventWatch {
    /// Past events that were asked for.
    past: VecDeque<HostEvent>,
    coming: broadcast::Receiver<HostEvent>,
}

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
        if let Some(event) = self.past.pop_front() {
            return Some(Watched::Event(event));
        }
        match self.coming.recv().await {
            Ok(event) => Some(Watched::Event(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Watched::Missed(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn past_events_come_first_within_their_limit() {
        let events = Events::default();
        let sandbox = SandboxId::random();
        let resumes = |count: usize| (0..count).for_each(|_| events.happened(sandbox, Happening::Resume));
        events.happened(sandbox, Happening::Create);
        resumes(MAX_PAST_EVENTS - 1);
        let all = || events.watch_since(SystemTime::UNIX_EPOCH).past;
        assert_eq!((all().len(), &all()[0].happening), (MAX_PAST_EVENTS, &Happening::Create), "at the limit");
        resumes(1);
        assert_eq!((all().len(), &all()[0].happening), (MAX_PAST_EVENTS, &Happening::Resume), "one past it");
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        let mut watch = events.watch_since(later);
        events.happened(sandbox, Happening::Destroy);
        events.end();
        let Some(Watched::Event(event)) = watch.next().await else { panic!("an event came") };
        assert_eq!(event.happening, Happening::Destroy, "only what happens from now on");
        assert_eq!(watch.next().await, None);
        assert_eq!(all().len(), MAX_PAST_EVENTS, "they are known after the end too");
    }
}
