//! The pools of a host: of its base image, and of images whose descriptions ask for one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::image::Ground;
use super::{CreateError, Host};
use crate::blueprint::Blueprint;
use crate::engine::Rootfs;
use crate::pool::{Entry, HoldBack, Pool};
use crate::sandbox::SandboxId;
use crate::sandbox::create;
use crate::template::Shape;

/// Pools of one host. Each keeps VMs.
const MAX_POOLS: usize = 16;
/// Clones of one description that are made at once.
const BOOTS: u32 = 1;
/// How long a refill that failed waits before the next; twice as long after each, up to the most.
const MIN_PATIENCE: Duration = Duration::from_secs(1);
const MAX_PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pools(Mutex<Vec<Arc<Pool>>>);

impl Pools {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Pool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, unless there is its like: two callers may have asked for it at once.
    fn add(&self, pool: Arc<Pool>) -> bool {
        let mut pools = self.lock();
        let is_new =
            !pools.iter().any(|known| (known.rootfs(), known.shape()) == (pool.rootfs(), pool.shape()));
        if is_new {
            pools.push(pool);
        }
        is_new
    }

    fn all(&self) -> Vec<Arc<Pool>> {
        self.lock().clone()
    }

    /// The one whose clones can become what `blueprint` asks for.
    pub(super) fn find(&self, rootfs: &Rootfs, blueprint: &Blueprint) -> Option<Arc<Pool>> {
        self.lock().iter().find(|pool| pool.fits(rootfs, blueprint)).cloned()
    }

    /// Holds all refills back for as long as what is returned lives.
    pub(super) fn hold_back(&self) -> Vec<HoldBack> {
        self.all().into_iter().map(Pool::hold_back).collect()
    }

    /// Clones that wait, and how many should.
    pub(super) fn count(&self) -> (usize, usize) {
        self.all().iter().fold((0, 0), |(ready, size), pool| (ready + pool.ready(), size + pool.size()))
    }

    /// Takes no more, and hands over what waits.
    pub(super) fn close(&self) -> Vec<Entry> {
        self.all().iter().flat_map(|pool| pool.close()).collect()
    }
}

impl Host {
    /// Begins a pool, which `ground` keeps the image of, filled by so many at once.
    pub(super) fn fill(&self, pool: Pool, ground: Option<Ground>, boots: u32) {
        let (pool, ground) = (Arc::new(pool), Arc::new(ground));
        if !self.0.pools.add(pool.clone()) {
            return;
        }
        for _ in 0..boots {
            self.0.tasks.spawn(self.clone().refill(pool.clone(), ground.clone()));
        }
        self.0.tasks.spawn(self.clone().thin_out(pool));
    }

    /// Begins the pool that `blueprint` asks for, unless there is one. Its sandbox is not made from it: what it keeps is
    /// for the next.
    pub(super) async fn pool_for(&self, ground: &Ground, blueprint: &Blueprint) -> Result<(), CreateError> {
        let config = &blueprint.config;
        if !config.pool.enabled || self.0.pools.find(&ground.rootfs, blueprint).is_some() {
            return Ok(());
        }
        if self.0.templates.is_none() {
            return Err(CreateError::NoPool("VMs are not cloned here: templates are off"));
        }
        if self.0.pools.lock().len() >= MAX_POOLS {
            return Err(CreateError::NoPool("there are 16 pools, which is the limit"));
        }
        let shape = Shape::from(&config.resources);
        let own = self.ground(config).await?;
        self.fill(Pool::described(own.rootfs.clone(), shape, &config.pool), Some(own), BOOTS);
        Ok(())
    }

    /// Keeps a pool full until it is closed.
    async fn refill(self, pool: Arc<Pool>, ground: Arc<Option<Ground>>) {
        let mut patience = MIN_PATIENCE;
        while let Some(_making) = pool.wanted().await {
            match self.waiting_clone(&pool).await {
                Ok(entry) => {
                    patience = MIN_PATIENCE;
                    if let Some(entry) = pool.put(entry) {
                        self.release(entry).await;
                    }
                }
                Err(CreateError::ShuttingDown) => break,
                Err(error) => {
                    warn!(error = %crate::chain(&error), "could not fill a pool");
                    tokio::select! {
                        () = tokio::time::sleep(patience) => {}
                        () = self.0.closing.cancelled() => break,
                    }
                    patience = (patience * 2).min(MAX_PATIENCE);
                }
            }
        }
        drop(ground);
    }

    /// Releases clones that are too many for too long, until the pool is closed.
    async fn thin_out(self, pool: Arc<Pool>) {
        loop {
            let open = match pool.expired() {
                Some(Ok(entry)) => {
                    self.release(entry).await;
                    true
                }
                Some(Err(due)) => tokio::select! {
                    () = tokio::time::sleep_until(due) => true,
                    open = pool.changes() => open,
                },
                None => pool.changes().await,
            };
            if !open {
                return;
            }
        }
    }

    async fn waiting_clone(&self, pool: &Pool) -> Result<Entry, CreateError> {
        let (rootfs, shape) = (pool.rootfs(), pool.shape());
        // Not in line with callers: they would wait until what is made ready has run its first programs.
        let template = self.template(rootfs, shape).await?.ok_or(CreateError::ShuttingDown)?;
        let (id, slot) = (SandboxId::random(), self.registry().take_slot());
        match create::wait(self.site(slot, rootfs), id, shape, &template).await {
            Ok(vm) => Ok(Entry { id, slot, vm }),
            Err(error) => {
                self.registry().free_slot(slot);
                Err(error.into())
            }
        }
    }
}
