//! The host: one directory, one engine, and the sandboxes on them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::boxconfig::{BoxConfig, InvalidConfig};
use crate::cgroup::{self, CgroupChoice, CgroupError};
use crate::confine::Spawner;
use crate::disk::Blanks;
#[cfg(feature = "fake")]
use crate::engine::fake::Fake;
use crate::engine::qemu::{self, Qemu};
use crate::engine::{Acceleration, Engine, EngineChoice, EngineError};
use crate::instance::Instance;
use crate::sandbox::create::{self, BringUpError, Site};
use crate::sandbox::owner::Owner;
use crate::sandbox::state::{Event, State};
use crate::sandbox::{Sandbox, SandboxId, SandboxInfo};

/// Failed sandboxes that stay known; the oldest are forgotten first.
const MAX_FAILED: usize = 100;
/// Distance between the first user ids of two hosts in one directory: more than one can use.
const UIDS_PER_HOST: u32 = 10_000;

/// What a host is made of.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Everything that the host writes goes into a directory of its own in here. Made if it is missing.
    pub dir: PathBuf,
    /// What makes the VMs.
    pub engine: EngineChoice,
    /// The kernel: an uncompressed `vmlinux`, with its modules in `KERNEL.modules.cpio` beside it.
    pub kernel: PathBuf,
    /// The root file system that all sandboxes share: an ext4, squashfs or erofs image.
    pub rootfs: PathBuf,
    /// Sandboxes that may exist at once.
    pub max_sandboxes: u32,
    /// Where the VMs' cgroups go.
    pub cgroup: CgroupChoice,
    /// The first of the user ids that VMs run as, one each. Unused without privilege.
    pub first_uid: u32,
}

/// Why a host could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory cannot be used.
    #[error("could not use the directory `{path}`")]
    Directory {
        /// [`HostOptions::dir`].
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have put things there.
    #[error("the directory `{0}` belongs to another user")]
    Foreign(PathBuf),
    /// As many hosts as may be work there.
    #[error("the directory `{0}` is in use by {1} hosts, which is the limit")]
    InUse(PathBuf, u32),
    /// VMs cannot be bounded.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// VMs cannot be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread could not be started.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It asks for what cannot be had anywhere.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// It demands hardware virtualization.
    #[error("hardware virtualization was required, and this host has none: it runs on {0}")]
    NoHardware(&'static str),
    /// There are as many as may be.
    #[error("there are {0} sandboxes, which is the limit")]
    AtCapacity(u32),
    /// The host is ending.
    #[error("the host is shutting down")]
    ShuttingDown,
    /// It did not come up.
    #[error(transparent)]
    BringUp(#[from] BringUpError),
}

/// Makes and keeps sandboxes. Cheap to clone; every clone is the same host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Box<dyn Engine>,
    blanks: Blanks,
    dir: PathBuf,
    max_sandboxes: u32,
    sandboxes: Mutex<Registry>,
    /// Boots at once: more only make each other slower.
    boots: Semaphore,
    tasks: TaskTracker,
    closing: AtomicBool,
    cgroups: Option<cgroup::Parent>,
    instance: Instance,
}

#[derive(Debug, Default)]
struct Registry {
    sandboxes: HashMap<SandboxId, Sandbox>,
    used_slots: BTreeSet<u32>,
}

impl Host {
    /// Prepares the directory and the engine. What an earlier host left there is removed.
    pub async fn start(options: HostOptions) -> Result<Self, StartError> {
        let clear = |dir: &Path| cgroup::Parent::reap(&options.cgroup, &cgroup_name(dir));
        let instance = Instance::claim(&options.dir, clear)?;
        let dir = instance.dir.join("sandboxes");
        fs::create_dir(&dir).map_err(|source| StartError::Directory { path: dir.clone(), source })?;

        let spawner = Arc::new(Spawner::start().map_err(StartError::Thread)?);
        let (engine, cgroups) = start_engine(&options, &instance, spawner).await?;
        info!(engine = engine.name(), acceleration = engine.acceleration().name(), "host started");
        let boots = std::thread::available_parallelism().map_or(2, |cpus| cpus.get().max(2));
        Ok(Self(Arc::new(Inner {
            engine,
            blanks: Blanks::new(instance.dir.clone()),
            dir,
            max_sandboxes: options.max_sandboxes,
            sandboxes: Mutex::default(),
            boots: Semaphore::new(boots),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
            cgroups,
            instance,
        })))
    }

    /// The engine's name: `qemu`.
    pub fn engine(&self) -> &'static str {
        self.0.engine.name()
    }

    /// What executes the guests' instructions.
    pub fn acceleration(&self) -> Acceleration {
        self.0.engine.acceleration()
    }

    /// Makes a sandbox. When the returned future is dropped early, the sandbox is destroyed.
    pub async fn create(&self, config: BoxConfig) -> Result<Sandbox, CreateError> {
        config.validate()?;
        if config.require_hardware && self.acceleration() != Acceleration::Hardware {
            return Err(CreateError::NoHardware(self.acceleration().name()));
        }
        if self.0.closing.load(Ordering::Acquire) {
            return Err(CreateError::ShuttingDown);
        }
        let (done, made) = oneshot::channel();
        let host = self.clone();
        // In a task of its own: half a sandbox cannot be dropped, it must be taken apart.
        self.0.tasks.spawn(async move {
            let result = host.make(config).await;
            if let Err(Ok(unwanted)) = done.send(result) {
                unwanted.destroy().await;
            }
        });
        made.await.unwrap_or(Err(CreateError::ShuttingDown))
    }

    async fn make(&self, config: BoxConfig) -> Result<Sandbox, CreateError> {
        let id = SandboxId::random();
        let (sender, state) = watch::channel(State::Starting);
        let (destroy, receiver) = mpsc::channel(1);
        let mut owner = Owner { id, state: sender, destroy: receiver };
        let sandbox = Sandbox::new(id, config.clone(), state, destroy);
        let lifetime = config.resources.timeout;
        let slot = self.registry().admit(&sandbox, self.0.max_sandboxes)?;

        let started = Instant::now();
        let site = Site { engine: &*self.0.engine, blanks: &self.0.blanks, dir: &self.0.dir, slot };
        let brought_up = match self.0.boots.acquire().await {
            Ok(_turn) => create::bring_up(site, id, &config).await.map_err(CreateError::from),
            Err(_closed) => Err(CreateError::ShuttingDown),
        };
        let live = match brought_up {
            Ok(live) => live,
            Err(error) => {
                owner.happen(Event::Destroy);
                self.registry().forget(id, slot);
                owner.happen(Event::Released);
                return Err(error);
            }
        };
        info!(sandbox = %id, took_ms = started.elapsed().as_millis(), "sandbox created");
        sandbox.set_client(live.link.client());
        let expires = (!lifetime.is_zero()).then(|| started + lifetime);
        let (host, mut running) = (self.clone(), sandbox.watch());
        self.0.tasks.spawn(async move {
            owner.own(live, expires, lifetime).await;
            host.registry().forget(id, slot);
            owner.happen(Event::Released);
        });
        // An error means that it has ended already, which its state tells.
        running.wait_for(|state| *state != State::Starting).await.ok();
        Ok(sandbox)
    }

    /// The sandbox of this name, whatever its state.
    pub fn get(&self, id: SandboxId) -> Option<Sandbox> {
        self.registry().sandboxes.get(&id).cloned()
    }

    /// All sandboxes, oldest first.
    pub fn list(&self) -> Vec<SandboxInfo> {
        let mut infos: Vec<_> = self.registry().sandboxes.values().map(Sandbox::info).collect();
        infos.sort_by_key(|info| info.created_at);
        infos
    }

    /// Destroys all sandboxes and removes everything that this host has made. Later calls fail.
    pub async fn shut_down(&self) {
        self.0.closing.store(true, Ordering::Release);
        self.0.boots.close();
        self.0.tasks.close();
        while !self.0.tasks.is_empty() {
            let sandboxes: Vec<_> = self.registry().sandboxes.values().cloned().collect();
            futures_util::future::join_all(sandboxes.iter().map(Sandbox::destroy)).await;
            // Creations under way end by themselves, and are destroyed by the next turn if they succeed.
            tokio::select! {
                () = self.0.tasks.wait() => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
            }
        }
        if let Some(cgroups) = &self.0.cgroups
            && let Err(error) = cgroups.remove()
        {
            tracing::warn!(%error, "could not remove the host's cgroup");
        }
        if let Err(error) = self.0.instance.remove() {
            tracing::warn!(%error, "could not remove the host's directory");
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Adds a sandbox, and finds it a slot. Failed ones hold nothing and do not count.
    fn admit(&mut self, sandbox: &Sandbox, limit: u32) -> Result<u32, CreateError> {
        let failed = |sandbox: &&Sandbox| matches!(sandbox.state(), State::Failed(_));
        let mut old: Vec<_> = self.sandboxes.values().filter(failed).cloned().collect();
        if self.sandboxes.len() - old.len() >= limit as usize {
            return Err(CreateError::AtCapacity(limit));
        }
        old.sort_by_key(|sandbox| sandbox.info().created_at);
        for forgotten in old.iter().rev().skip(MAX_FAILED) {
            // Its owner removes it.
            forgotten.request_destroy();
        }
        // There are never more than `limit` living ones and a few failed ones: a free number is near.
        let slot = (0..).find(|slot| !self.used_slots.contains(slot)).unwrap_or_default();
        self.used_slots.insert(slot);
        self.sandboxes.insert(sandbox.id(), sandbox.clone());
        Ok(slot)
    }

    fn forget(&mut self, id: SandboxId, slot: u32) {
        self.sandboxes.remove(&id);
        self.used_slots.remove(&slot);
    }
}

/// What the choice means on this machine, and the parent of its VMs' cgroups.
async fn start_engine(
    options: &HostOptions,
    instance: &Instance,
    spawner: Arc<Spawner>,
) -> Result<(Box<dyn Engine>, Option<cgroup::Parent>), StartError> {
    match options.engine {
        EngineChoice::Auto | EngineChoice::Qemu => {
            let cgroups = cgroup::Parent::prepare(&options.cgroup, &cgroup_name(&instance.dir))?;
            let privileged = rustix::process::geteuid().is_root();
            let engine = Qemu::prepare(qemu::Options {
                kernel: &options.kernel,
                rootfs: &options.rootfs,
                dir: &instance.dir,
                cgroups: cgroups.clone(),
                first_uid: privileged.then_some(options.first_uid + instance.number * UIDS_PER_HOST),
                spawner,
            });
            match engine.await {
                Ok(engine) => Ok((Box::new(engine), cgroups)),
                Err(error) => {
                    // The error that counts is the engine's.
                    cgroups.map(|cgroups| cgroups.remove().ok());
                    Err(error.into())
                }
            }
        }
        #[cfg(feature = "fake")]
        EngineChoice::Fake => Ok((Box::new(Fake::prepare(&instance.dir, spawner)?), None)),
    }
}

/// One name per directory, so that two hosts on one machine do not reap each other's VMs.
fn cgroup_name(dir: &Path) -> String {
    let path = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut name = String::from("bouvet");
    for part in path.components().filter_map(|part| part.as_os_str().to_str()).filter(|part| *part != "/") {
        name.push('-');
        name.extend(part.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_names_tell_directories_apart() {
        assert_eq!(cgroup_name(Path::new("/nonexistent/bouvet")), "bouvet-nonexistent-bouvet");
        assert_ne!(cgroup_name(Path::new("/nonexistent/a/b")), cgroup_name(Path::new("/nonexistent/a-b")));
    }
}
