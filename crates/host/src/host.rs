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
use tracing::{info, warn};

use crate::boxconfig::{BoxConfig, InvalidConfig};
use crate::cgroup::{self, CgroupChoice, CgroupError};
use crate::confine::Spawner;
use crate::disk::Blanks;
#[cfg(feature = "fake")]
use crate::engine::fake::Fake;
use crate::engine::qemu::{self, Qemu};
use crate::engine::{Acceleration, Engine, EngineChoice, EngineError};
use crate::instance::{ClaimError, Instance};
use crate::sandbox::create::{self, BringUpError, Site};
use crate::sandbox::owner::Owner;
use crate::sandbox::state::{Event, State};
use crate::sandbox::{Sandbox, SandboxId, SandboxInfo};

/// Failed sandboxes that stay known; the oldest are forgotten first.
const MAX_FAILED: usize = 100;
/// Distance between the first user ids of two hosts: more than one can use.
const UIDS_PER_HOST: u32 = 10_000;
/// Where the hosts of a machine tell their ranges of user ids apart.
const UID_CLAIMS: &str = "/run/bouvet";

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
    /// There is no place for it.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Something in its directory could not be made.
    #[error("could not make `{0}`")]
    Directory(PathBuf, #[source] io::Error),
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
    ground: Ground,
}

/// What a host stands on, and gives back at its end.
#[derive(Debug)]
struct Ground {
    instance: Instance,
    /// Its range of user ids; only root has any to give.
    uids: Option<Instance>,
    cgroups: Option<cgroup::Parent>,
}

#[derive(Debug, Default)]
struct Registry {
    sandboxes: HashMap<SandboxId, Sandbox>,
    used_slots: BTreeSet<u32>,
}

impl Host {
    /// Prepares the directory and the engine. What an earlier host left there is removed.
    pub async fn start(options: HostOptions) -> Result<Self, StartError> {
        let ground = Ground::claim(&options)?;
        match Self::on(&ground, &options).await {
            Ok((engine, dir)) => Ok(Self::new(engine, dir, ground, &options)),
            Err(error) => {
                ground.give_back();
                Err(error)
            }
        }
    }

    async fn on(ground: &Ground, options: &HostOptions) -> Result<(Box<dyn Engine>, PathBuf), StartError> {
        let dir = ground.instance.dir.join("sandboxes");
        fs::create_dir(&dir).map_err(|source| StartError::Directory(dir.clone(), source))?;
        let spawner = Arc::new(Spawner::start().map_err(StartError::Thread)?);
        Ok((start_engine(options, ground, spawner).await?, dir))
    }

    fn new(engine: Box<dyn Engine>, dir: PathBuf, ground: Ground, options: &HostOptions) -> Self {
        info!(
            engine = engine.name(),
            acceleration = engine.acceleration().name(),
            own_users = ground.uids.is_some(),
            memory_bounded = ground.cgroups.is_some(),
            "host started"
        );
        if ground.uids.is_none() {
            warn!("not root: VMs run as this process's own user, in its network namespace");
        }
        let boots = std::thread::available_parallelism().map_or(2, |cpus| cpus.get().max(2));
        Self(Arc::new(Inner {
            engine,
            blanks: Blanks::new(ground.instance.dir.clone()),
            dir,
            max_sandboxes: options.max_sandboxes,
            sandboxes: Mutex::default(),
            boots: Semaphore::new(boots),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
            ground,
        }))
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
        fits_machine(&config)?;
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
                warn!(sandbox = %id, error = %crate::chain(&error), "sandbox not created");
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
        self.0.ground.give_back();
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

impl Ground {
    fn claim(options: &HostOptions) -> Result<Self, StartError> {
        let clear = |dir: &Path| cgroup::Parent::reap(&options.cgroup, &cgroup_name(dir));
        let instance = Instance::claim(&options.dir, clear)?;
        let mut ground = Self { instance, uids: None, cgroups: None };
        match ground.claim_rest(options) {
            Ok(()) => Ok(ground),
            Err(error) => {
                ground.give_back();
                Err(error)
            }
        }
    }

    fn claim_rest(&mut self, options: &HostOptions) -> Result<(), StartError> {
        if !options.engine.has_vms() {
            return Ok(());
        }
        if rustix::process::geteuid().is_root() {
            self.uids = Some(Instance::claim(Path::new(UID_CLAIMS), |_| {})?);
        }
        self.cgroups = cgroup::Parent::prepare(&options.cgroup, &cgroup_name(&self.instance.dir))?;
        Ok(())
    }

    fn give_back(&self) {
        let warn = |what: &str, error: io::Error| warn!(%error, "could not remove the host's {what}");
        if let Some(Err(error)) = self.cgroups.as_ref().map(cgroup::Parent::remove) {
            warn("cgroup", error);
        }
        if let Some(Err(error)) = self.uids.as_ref().map(Instance::remove) {
            warn("claim on user ids", error);
        }
        if let Err(error) = self.instance.remove() {
            warn("directory", error);
        }
    }
}

async fn start_engine(
    options: &HostOptions,
    ground: &Ground,
    spawner: Arc<Spawner>,
) -> Result<Box<dyn Engine>, StartError> {
    match options.engine {
        EngineChoice::Auto | EngineChoice::Qemu => {
            let first = |claim: &Instance| options.first_uid + claim.number * UIDS_PER_HOST;
            let engine = Qemu::prepare(qemu::Options {
                kernel: &options.kernel,
                rootfs: &options.rootfs,
                dir: &ground.instance.dir,
                cgroups: ground.cgroups.clone(),
                first_uid: ground.uids.as_ref().map(first),
                spawner,
            });
            Ok(Box::new(engine.await?))
        }
        #[cfg(feature = "fake")]
        EngineChoice::Fake => Ok(Box::new(Fake::prepare(&ground.instance.dir, spawner)?)),
    }
}

/// Refuses what this machine could never give: its kernel would end the VM, or something else, for it.
fn fits_machine(config: &BoxConfig) -> Result<(), InvalidConfig> {
    let info = rustix::system::sysinfo();
    let total_mb = info.totalram.saturating_mul(u64::from(info.mem_unit)) / 1024 / 1024;
    let asked_mb = config.resources.memory_mb;
    if u64::from(asked_mb) <= total_mb {
        return Ok(());
    }
    let allowed = format!("this machine has {total_mb} MiB");
    Err(InvalidConfig { field: "resources.memory_mb", value: format!("{asked_mb} MiB"), allowed })
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
