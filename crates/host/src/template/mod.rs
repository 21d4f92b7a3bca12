//! Templates: VMs that were booted once, warmed and frozen. Every sandbox is a clone of one.
//!
//! ```text
//! DIR/KEY/        memory, devices, scratch.ext4     one template, complete
//! DIR/KEY.lock    held by whoever builds or loads it
//! DIR/KEY.new/    one that is being written, or was when its host was killed
//! ```
//!
//! The key is a digest of everything that a template depends on, so one that fits is one that works. Hosts may
//! share the directory.

mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tracing::{info, warn};

use self::store::Store;
pub use self::store::StoreError;
use crate::boxconfig::ResourceConfig;
use crate::engine::{Freezing, Frozen, Rootfs};

/// What differs between the templates of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) disk_mb: u32,
}

impl From<&ResourceConfig> for Shape {
    fn from(resources: &ResourceConfig) -> Self {
        let ResourceConfig { vcpus, memory_mb, disk_mb, .. } = *resources;
        Self { vcpus, memory_mb, disk_mb }
    }
}

/// What a template is of: the identity of its root file system, and its shape.
type Key = (String, Shape);

/// The templates of one host: on disk, and those in use in memory too.
#[derive(Debug)]
pub(crate) struct Templates {
    store: Store,
    /// What they all depend on.
    basis: String,
    loaded: Mutex<HashMap<Key, Arc<OnceCell<Arc<Frozen>>>>>,
}

impl Templates {
    /// Keeps templates in `dir`, as their engine has it.
    pub(crate) fn new(dir: PathBuf, freezing: Freezing) -> Result<Self, StoreError> {
        let Freezing { basis, home } = freezing;
        Ok(Self { store: Store::open(dir, home)?, basis, loaded: Mutex::default() })
    }

    /// The template of `rootfs` and `shape`: from memory, from the disk, or else from `build`. Who asks while it is built
    /// waits for it; a build that fails is tried again by the next who asks.
    pub(crate) async fn get<E, B>(
        &self,
        rootfs: &Rootfs,
        shape: Shape,
        build: impl FnOnce() -> B,
    ) -> Result<Arc<Frozen>, E>
    where
        E: From<StoreError>,
        B: Future<Output = Result<Frozen, E>>,
    {
        let cell = self.cell(rootfs, shape);
        let template = cell.get_or_try_init(|| async {
            let key = self.key(rootfs, shape);
            let slot = self.store.lock(&key).await?;
            if let Some(frozen) = slot.load().await? {
                info!(?shape, key, "template loaded");
                return Ok(Arc::new(frozen));
            }
            info!(?shape, key, "building a template");
            let frozen = Arc::new(build().await?);
            match slot.save(frozen.clone()).await {
                Ok(()) => info!(?shape, key, "template built"),
                // It serves this host all the same.
                Err(error) => {
                    warn!(?shape, key, error = %crate::chain(&error), "template built, and not kept")
                }
            }
            Ok(frozen)
        });
        template.await.cloned()
    }

    fn cell(&self, rootfs: &Rootfs, shape: Shape) -> Arc<OnceCell<Arc<Frozen>>> {
        let key = (rootfs.identity.clone(), shape);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !loaded.contains_key(&key) && loaded.len() >= store::MAX_TEMPLATES {
            // Its clones keep what they map; only the next one has to load it again.
            if let Some(other) = loaded.keys().next().cloned() {
                loaded.remove(&other);
            }
        }
        loaded.entry(key).or_default().clone()
    }

    fn key(&self, rootfs: &Rootfs, shape: Shape) -> String {
        let digest = Sha256::digest(format!("{}\n{}\n{shape:?}", self.basis, rootfs.identity));
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}
