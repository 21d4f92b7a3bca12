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
    /// Those that are being built.
    making: Mutex<Vec<Shape>>,
}

impl Templates {
    /// Keeps templates in `dir`, as their engine has it.
    pub(crate) fn new(dir: PathBuf, freezing: Freezing) -> Result<Self, StoreError> {
        let Freezing { basis, home } = freezing;
        Ok(Self { store: Store::open(dir, home)?, basis, loaded: Mutex::default(), making: Mutex::default() })
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
            info!(
                ?shape,
                key, "making the first sandbox of this size, about a minute; the next take a second"
            );
            let making = Making::new(&self.making, shape);
            let frozen = Arc::new(build().await?);
            drop(making);
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

    /// Whether a template of `shape` is being built.
    pub(crate) fn is_making(&self, shape: Shape) -> bool {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).contains(&shape)
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

/// A template that is being built, for as long as this lives.
struct Making<'a> {
    all: &'a Mutex<Vec<Shape>>,
    shape: Shape,
}

impl<'a> Making<'a> {
    fn new(all: &'a Mutex<Vec<Shape>>, shape: Shape) -> Self {
        all.lock().unwrap_or_else(PoisonError::into_inner).push(shape);
        Self { all, shape }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = all.iter().position(|shape| *shape == self.shape) {
            all.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::engine::memory::{self, Home, Memory};

    #[tokio::test]
    async fn templates_report_that_they_are_built() {
        let dir = tempfile::tempdir().unwrap();
        let freezing = Freezing { basis: "basis".into(), home: Home::Sealed };
        let templates = Templates::new(dir.path().join("templates"), freezing).unwrap();
        let rootfs = Rootfs { path: "/".into(), identity: String::new(), is_base: true, sidecar: None };
        let shape = Shape { vcpus: 1, memory_mb: 1, disk_mb: 1 };
        let scratch = dir.path().join("scratch");
        std::fs::write(&scratch, "disk").unwrap();
        let build = || async {
            assert!(templates.is_making(shape));
            assert!(!templates.is_making(Shape { vcpus: 2, ..shape }));
            let memory = memory::create(1).unwrap();
            memory.write_all_at(b"memory", 0).unwrap();
            let memory = Memory::sealed(memory).unwrap();
            Ok::<_, StoreError>(Frozen {
                memory,
                devices: "state".into(),
                scratch: File::open(&scratch).unwrap(),
            })
        };
        assert!(!templates.is_making(shape));
        templates.get(&rootfs, shape, build).await.unwrap();
        assert!(!templates.is_making(shape));
        let failing = || async {
            assert!(templates.is_making(Shape { disk_mb: 2, ..shape }));
            let source = std::io::ErrorKind::Other.into();
            Err(StoreError { dir: dir.path().into(), source })
        };
        templates.get(&rootfs, Shape { disk_mb: 2, ..shape }, failing).await.unwrap_err();
        assert!(!templates.is_making(Shape { disk_mb: 2, ..shape }), "it has failed");
    }
}
