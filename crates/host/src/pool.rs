//! The warm pool: clones of the default template that were exercised once and are paused. To claim one takes
//! no VM work but waking and personalising it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::blueprint::Blueprint;
use crate::boxconfig::{LogLevel, ResourceConfig};
use crate::sandbox::SandboxId;
use crate::sandbox::create::Waiting;
use crate::template::Shape;

/// How long refills leave the machine to a caller who was just served, and is about to run something.
const REST: Duration = Duration::from_millis(100);

/// What a pool is made of.
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
    size: usize,
    shape: Shape,
    inner: Mutex<Inner>,
    /// Something changed that a refill may wait for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ready: VecDeque<Entry>,
    making: usize,
    /// Callers whose sandboxes are being made.
    callers: usize,
    /// Until when the last of them is left alone.
    rest_until: Option<Instant>,
    closed: bool,
}

impl Inner {
    /// When a clone is wanted: never, as things are, or at that time.
    fn wanted_at(&self, size: usize, now: Instant) -> Option<Instant> {
        let missing = self.callers == 0 && self.ready.len() + self.making < size;
        missing.then(|| self.rest_until.map_or(now, |until| until.max(now)))
    }
}

impl Pool {
    pub(crate) fn new(options: &PoolOptions) -> Self {
        Self {
            size: options.size as usize,
            shape: Shape::from(&options.resources),
            inner: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// What its clones have.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Takes the clone that has waited longest, if it is what `config` asks for.
    pub(crate) fn take(&self, blueprint: &Blueprint) -> Option<Entry> {
        let config = &blueprint.config;
        // What else a clone is to be, it can become.
        let fits = config.image.is_empty()
            && !config.persistent
            && blueprint.plan.limits.first_for_the_host().is_none()
            && config.log_level > LogLevel::Debug;
        if !fits || Shape::from(&config.resources) != self.shape {
            return None;
        }
        let taken = self.lock().ready.pop_front();
        self.changed.notify_waiters();
        taken
    }

    /// Puts a clone in. Returns it where the pool takes no more.
    #[must_use]
    pub(crate) fn put(&self, entry: Entry) -> Option<Entry> {
        let mut inner = self.lock();
        if inner.closed {
            return Some(entry);
        }
        inner.ready.push_back(entry);
        None
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
                let due = inner.wanted_at(self.size, now);
                if due == Some(now) {
                    inner.making += 1;
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
    pub(crate) fn hold_back(&self) -> HoldBack<'_> {
        self.lock().callers += 1;
        HoldBack(self)
    }

    /// Takes no more, and hands over what waits.
    pub(crate) fn close(&self) -> VecDeque<Entry> {
        let mut inner = self.lock();
        inner.closed = true;
        self.changed.notify_waiters();
        std::mem::take(&mut inner.ready)
    }

    /// How many should wait.
    pub(crate) fn size(&self) -> usize {
        self.size
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
pub(crate) struct HoldBack<'a>(&'a Pool);

impl Drop for HoldBack<'_> {
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
        Pool::new(&PoolOptions { size, boots: 1, resources: ResourceConfig::default() })
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
        let pool = pool(1);
        let caller = pool.hold_back();
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
}
