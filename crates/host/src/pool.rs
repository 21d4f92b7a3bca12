//! Warm pools: clones of one template that were exercised once and are paused. To claim one takes no VM work but
//! waking and personalising it. The host has one of its base image, and one of each image that was asked for so.

mod demand;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::demand::Demand;
use crate::blueprint::Blueprint;
use crate::boxconfig::{LogLevel, PoolConfig, ResourceConfig, TeeConfig};
use crate::engine::Rootfs;
use crate::sandbox::SandboxId;
use crate::sandbox::create::Waiting;
use crate::template::Shape;

/// How long refills leave the machine to a caller who was just served, and is about to run something.
const REST: Duration = Duration::from_millis(100);

/// What a pool is made of.
///
/// ```
/// use bouvet_host::{HostOptions, PoolOptions, ResourceConfig};
///
/// let pool = PoolOptions { size: 3, boots: 2, resources: ResourceConfig::default() };
/// let options = HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4");
/// let options = HostOptions { pool: Some(pool), ..options };
/// assert!(options.templates.is_some(), "clones are made from them");
/// ```
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Clones that wait at any time.
    pub size: u32,
    /// Clones that are made at once.
    pub boots: u32,
    /// What they have. Their lifetime begins when they are claimed.
    pub resources: ResourceConfig,
}

/// A clone that waits.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The sandbox that it will be.
    pub(crate) id: SandboxId,
    pub(crate) slot: u32,
    pub(crate) vm: Waiting,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    rootfs: Rootfs,
    shape: Shape,
    /// How long clones wait that are too many.
    idle_ttl: Option<Duration>,
    inner: Mutex<Inner>,
    /// Something changed that a refill may wait for.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    demand: Demand,
    /// Each with the time since which it waits.
    ready: VecDeque<(Instant, Entry)>,
    making: usize,
    /// Callers whose sandboxes are being made.
    callers: usize,
    /// Until when the last of them is left alone.
    rest_until: Option<Instant>,
    reported: Reported,
    closed: bool,
}

/// What the log has of a pool. A claim that leaves other clones waiting is not reported.
#[derive(Debug, Default)]
struct Reported {
    /// Whether the last line was that it is filling.
    is_filling: bool,
}

/// A line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    Begins,
    Ends,
}

impl Reported {
    /// The line for a pool in which `ready` of `size` clones wait and `making` are made.
    fn line(&mut self, ready: usize, making: usize, size: usize) -> Option<Filling> {
        let line = match self.is_filling {
            false if ready == 0 && making > 0 => Filling::Begins,
            true if size > 0 && ready >= size => Filling::Ends,
            _ => return None,
        };
        self.is_filling = line == Filling::Begins;
        Some(line)
    }
}

impl Inner {
    /// When a clone is wanted: never, as things are, or at that time.
    fn wanted_at(&self, now: Instant) -> Option<Instant> {
        let missing = self.callers == 0 && self.ready.len() + self.making < self.demand.target();
        missing.then(|| self.rest_until.map_or(now, |until| until.max(now)))
    }
}

impl Pool {
    /// Of the host's base image.
    pub(crate) fn new(rootfs: Rootfs, options: &PoolOptions) -> Self {
        let demand = Demand::fixed(options.size as usize);
        Self::with(rootfs, Shape::from(&options.resources), None, demand)
    }

    /// As `config` has it.
    pub(crate) fn described(rootfs: Rootfs, shape: Shape, config: &PoolConfig) -> Self {
        let idle_ttl = (config.idle_ttl_secs > 0).then(|| Duration::from_secs(config.idle_ttl_secs));
        Self::with(rootfs, shape, idle_ttl, Demand::new(config))
    }

    fn with(rootfs: Rootfs, shape: Shape, idle_ttl: Option<Duration>, demand: Demand) -> Self {
        let inner = Inner {
            demand,
            ready: VecDeque::new(),
            making: 0,
            callers: 0,
            rest_until: None,
            reported: Reported::default(),
            closed: false,
        };
        Self { rootfs, shape, idle_ttl, inner: Mutex::new(inner), changed: Notify::new() }
    }

    /// What its clones have.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// What their root is made of.
    pub(crate) fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }

    /// Whether its clones can become what `blueprint` asks for, on `rootfs`.
    pub(crate) fn fits(&self, rootfs: &Rootfs, blueprint: &Blueprint) -> bool {
        let config = &blueprint.config;
        // What else a clone is to be, it can become.
        self.rootfs == *rootfs
            && self.shape == Shape::from(&config.resources)
            && !config.persistent
            && config.tee == TeeConfig::None
            && blueprint.plan.limits.first_for_the_host().is_none()
            && config.log_level > LogLevel::Debug
    }

    /// Takes the clone that has waited longest, if one waits.
    pub(crate) fn take(&self) -> Option<Entry> {
        let mut inner = self.lock();
        let taken = inner.ready.pop_front();
        inner.demand.request(Instant::now(), taken.is_some());
        drop(inner);
        self.changed.notify_waiters();
        taken.map(|(_, entry)| entry)
    }

    /// Takes out a clone of too many that has waited longer than they may, or says when to look again; `None`: there
    /// are not too many, or they may wait for ever.
    pub(crate) fn expired(&self) -> Option<Result<Entry, Instant>> {
        let (ttl, mut inner) = (self.idle_ttl?, self.lock());
        if inner.ready.len() <= inner.demand.target() {
            return None;
        }
        let due = inner.ready.front().and_then(|(since, _)| since.checked_add(ttl))?;
        if due > Instant::now() {
            return Some(Err(due));
        }
        inner.ready.pop_front().map(|(_, entry)| Ok(entry))
    }

    /// Waits until something has changed that may make clones too many; `false` when the pool is closed.
    pub(crate) async fn changes(&self) -> bool {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        // Before looking, so that no change goes unnoticed.
        changed.as_mut().enable();
        if self.lock().closed {
            return false;
        }
        changed.await;
        !self.lock().closed
    }

    /// Puts a clone in. Returns it where the pool takes no more.
    #[must_use]
    pub(crate) fn put(&self, entry: Entry) -> Option<Entry> {
        let mut inner = self.lock();
        if inner.closed {
            return Some(entry);
        }
        inner.ready.push_back((Instant::now(), entry));
        self.report(inner);
        None
    }

    /// Logs whether filling begins or ends.
    fn report(&self, mut inner: MutexGuard<'_, Inner>) {
        let Shape { vcpus, memory_mb, disk_mb, .. } = self.shape;
        let (ready, making, size) = (inner.ready.len(), inner.making, inner.demand.target());
        let line = inner.reported.line(ready, making, size);
        drop(inner);
        match line {
            Some(Filling::Begins) => {
                tracing::info!(ready, size, vcpus, memory_mb, disk_mb, "the pool is filling")
            }
            Some(Filling::Ends) => tracing::info!(ready, size, vcpus, memory_mb, disk_mb, "the pool is full"),
            None => {}
        }
    }

    /// Waits until a clone is wanted and no caller is served, nor was a moment ago. `None` when the pool is
    /// closed.
    pub(crate) async fn wanted(&self) -> Option<Making<'_>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change goes unnoticed.
            changed.as_mut().enable();
            let due = {
                let mut inner = self.lock();
                if inner.closed {
                    return None;
                }
                let now = Instant::now();
                let due = inner.wanted_at(now);
                if due == Some(now) {
                    inner.making += 1;
                    self.report(inner);
                    return Some(Making(self));
                }
                due
            };
            match due {
                // Whoever comes meanwhile goes first.
                Some(due) => tokio::time::timeout_at(due, changed).await.unwrap_or_default(),
                None => changed.await,
            }
        }
    }

    /// Holds refills back for as long as the returned value lives.
    pub(crate) fn hold_back(self: Arc<Self>) -> HoldBack {
        self.lock().callers += 1;
        HoldBack(self)
    }

    /// Takes no more, and hands over what waits.
    pub(crate) fn close(&self) -> VecDeque<Entry> {
        let mut inner = self.lock();
        inner.closed = true;
        self.changed.notify_waiters();
        std::mem::take(&mut inner.ready).into_iter().map(|(_, entry)| entry).collect()
    }

    /// How many should wait.
    pub(crate) fn size(&self) -> usize {
        self.lock().demand.target()
    }

    /// How many wait.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to make one clone.
#[derive(Debug)]
pub(crate) struct Making<'a>(&'a Pool);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.lock().making -= 1;
        self.0.changed.notify_waiters();
    }
}

/// See [`Pool::hold_back`].
#[derive(Debug)]
pub(crate) struct HoldBack(Arc<Pool>);

impl Drop for HoldBack {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.callers -= 1;
        inner.rest_until = Some(Instant::now() + REST);
        drop(inner);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(size: u32) -> Pool {
        let rootfs = Rootfs { path: "/".into(), identity: String::new(), is_base: true, sidecar: None };
        Pool::new(rootfs, &PoolOptions { size, boots: 1, resources: ResourceConfig::default() })
    }

    async fn is_wanted(pool: &Pool) -> bool {
        tokio::time::timeout(Duration::from_millis(20), pool.wanted()).await.is_ok()
    }

    #[tokio::test]
    async fn no_more_are_made_than_wait() {
        let pool = pool(2);
        let (first, second) = (pool.wanted().await.unwrap(), pool.wanted().await.unwrap());
        assert!(!is_wanted(&pool).await);
        drop(first);
        assert!(is_wanted(&pool).await);
        drop(second);
    }

    #[tokio::test]
    async fn callers_come_first() {
        let pool = Arc::new(pool(1));
        let caller = pool.clone().hold_back();
        assert!(!is_wanted(&pool).await);
        let refill = pool.wanted();
        tokio::pin!(refill);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut refill).await.is_err());
        drop(caller);
        assert!(tokio::time::timeout(REST / 5, &mut refill).await.is_err(), "it is left alone for a while");
        assert!(refill.await.is_some());
    }

    #[tokio::test]
    async fn a_closed_pool_wants_nothing() {
        let pool = pool(1);
        assert!(pool.close().is_empty());
        assert!(pool.wanted().await.is_none());
    }

    #[test]
    fn log_has_a_line_for_each_filling() {
        let mut reported = Reported::default();
        let mut line = |ready, making| reported.line(ready, making, 2);
        assert_eq!(line(0, 1), Some(Filling::Begins));
        assert_eq!((line(0, 2), line(1, 1)), (None, None));
        assert_eq!(line(2, 0), Some(Filling::Ends));
        assert_eq!((line(1, 0), line(1, 1), line(2, 0)), (None, None, None), "one was claimed");
        assert_eq!(line(0, 1), Some(Filling::Begins), "all were");
        assert_eq!(Reported::default().line(0, 0, 0), None, "a pool of none");
    }
}
