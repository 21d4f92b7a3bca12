//! The host: one directory, one engine, and the sandboxes on them.

mod bases;
mod error;
mod facts;
mod ground;
mod image;
mod images;
mod life;
mod networks;
mod options;
mod pools;
mod reader;
mod registry;
mod rest;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bouvet_net::Sockets;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

pub use self::bases::{BASE_IMAGE, FULL_BASE_IMAGE, is_base_image};
pub use self::error::{CreateError, FindError, StartError};
pub use self::facts::HostFacts;
use self::ground::Ground;
pub(crate) use self::image::GroundRecord;
#[cfg(test)]
pub(crate) use self::image::ImageRecord;
pub use self::image::{ImageError, ImageOptions};
pub use self::networks::NetworkInfo;
pub use self::options::HostOptions;
use self::pools::Pools;
use self::registry::Registry;
use crate::attest::{self, Measurer};
use crate::boxconfig::limits::Limits;
use crate::boxconfig::{BoxConfig, InvalidConfig, ResourceConfig};
use crate::boxes::Boxes;
use crate::confine::Spawner;
use crate::descriptors;
use crate::disk::Blanks;
#[cfg(feature = "fake")]
use crate::engine::fake::Fake;
use crate::engine::firecracker::Firecracker;
use crate::engine::qemu::Qemu;
use crate::engine::{self, Acceleration, Engine, EngineChoice, EngineError, EngineFacts, Rootfs};
use crate::event::{EventWatch, Events};
use crate::handover::hand_over;
use crate::network::named::Networks;
use crate::pool::Pool;
use crate::resting::RestingDisks;
use crate::sandbox::{Sandbox, SandboxId, SandboxInfo};
use crate::template::{Shape, Templates};

/// Callers that may wait for a VM to start. On the smallest machine that is half a minute.
const MAX_WAITING: usize = 256;

/// Makes and keeps sandboxes. Cheap to clone; every clone is the same host.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, Host, HostOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let host = Host::start(HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4")).await?;
/// let sandbox = host.create(BoxConfig { name: "first".into(), ..BoxConfig::default() }).await?;
/// assert_eq!(host.find("first")?.id(), sandbox.id());
/// host.shut_down().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Box<dyn Engine>,
    base: Rootfs,
    no_limits: Limits,
    events: Events,
    boxes: Option<Boxes>,
    authorities: Vec<PathBuf>,
    networks: Networks,
    /// For the networks of all sandboxes.
    sockets: Sockets,
    measurer: Measurer,
    images: Option<ImageOptions>,
    opened: image::Opened,
    blanks: Blanks,
    dir: PathBuf,
    max_sandboxes: u32,
    sandboxes: Mutex<Registry>,
    /// Held while a sandbox gets another name.
    renaming: tokio::sync::Mutex<()>,
    templates: Option<Templates>,
    pools: Pools,
    /// VMs that start at once: more only make each other slower. The others wait in order.
    starts: Semaphore,
    /// Disks of stopped sandboxes that are not persistent.
    resting: Arc<RestingDisks>,
    /// VMs that serve the files of stopped sandboxes.
    readers: Arc<Semaphore>,
    waiting: AtomicUsize,
    tasks: TaskTracker,
    closing: CancellationToken,
    ground: Ground,
}

impl Host {
    /// Prepares the directory and the engine. What an earlier host left there is removed.
    ///
    /// ```no_run
    /// use bouvet_host::{EngineChoice, Host, HostOptions};
    ///
    /// # async fn example() -> Result<(), bouvet_host::StartError> {
    /// let options = HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4");
    /// let host = Host::start(HostOptions { engine: EngineChoice::Qemu, ..options }).await?;
    /// println!("{} by {}", host.engine(), host.acceleration().name());
    /// # Ok(()) }
    /// ```
    pub async fn start(options: HostOptions) -> Result<Self, StartError> {
        let ground = Ground::claim(&options)?;
        match Inner::new(&ground, &options).await {
            Ok(inner) => Self::open(inner(ground), &options),
            Err(error) => {
                ground.give_back();
                Err(error)
            }
        }
    }

    /// Makes ready what [`Host::start`] would, as far as the engine, and gives it back: what makes VMs here, or why
    /// nothing does. May be called beside a running host.
    ///
    /// ```no_run
    /// use bouvet_host::{Host, HostOptions};
    ///
    /// # async fn example() -> Result<(), bouvet_host::StartError> {
    /// let options = HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4");
    /// let facts = Host::probe(&options).await?;
    /// println!("{}: {}", facts.name, facts.version);
    /// # Ok(()) }
    /// ```
    pub async fn probe(options: &HostOptions) -> Result<EngineFacts, StartError> {
        let ground = Ground::claim(options)?;
        let probed = async {
            let spawner = Arc::new(Spawner::start().map_err(StartError::Thread)?);
            let engine = start_engine(options, &ground, spawner).await?;
            Ok(EngineFacts {
                name: engine.name(),
                version: engine.version(),
                acceleration: engine.acceleration(),
                confinement: engine.confinement(),
            })
        };
        let probed = probed.await;
        ground.give_back();
        probed
    }

    fn open(inner: Inner, options: &HostOptions) -> Result<Self, StartError> {
        info!(
            engine = inner.engine.name(),
            acceleration = inner.engine.acceleration().name(),
            own_users = inner.ground.uids.is_some(),
            memory_bounded = inner.ground.cgroups.is_some(),
            clones = inner.templates.is_some(),
            "host started"
        );
        let host = Self(Arc::new(inner));
        if let (Some(_), Some(pool)) = (&host.0.templates, &options.pool) {
            host.fill(Pool::new(host.0.base.clone(), pool), None, pool.boots);
        }
        host.take_in_kept()?;
        Ok(host)
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
    ///
    /// ```no_run
    /// use bouvet_host::BoxConfig;
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let cmd = ["python3", "-m", "http.server"].map(String::from).into();
    /// let volumes = vec!["/home/me/site:/srv:ro".into()];
    /// let config = BoxConfig { cmd, volumes, working_dir: "/srv".into(), ..BoxConfig::default() };
    /// let sandbox = host.create(config).await?;
    /// # Ok(()) }
    /// ```
    pub async fn create(&self, config: BoxConfig) -> Result<Sandbox, CreateError> {
        self.create_as(config, true).await
    }

    /// Makes a sandbox that is started later, by [`Sandbox::start`]: until then it has a name, its ports and its network,
    /// and no VM.
    ///
    /// ```no_run
    /// use bouvet_host::BoxConfig;
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let sandbox = host.create_stopped(BoxConfig { name: "web".into(), ..BoxConfig::default() }).await?;
    /// sandbox.start().await?;
    /// # Ok(()) }
    /// ```
    pub async fn create_stopped(&self, config: BoxConfig) -> Result<Sandbox, CreateError> {
        self.create_as(config, false).await
    }

    async fn create_as(&self, config: BoxConfig, start: bool) -> Result<Sandbox, CreateError> {
        config.validate()?;
        fits_machine(&config)?;
        let plan = config.plan()?;
        // What it names may be on a slow disk.
        let is_here = tokio::task::spawn_blocking(move || plan.check_here()).await;
        is_here.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        if config.require_hardware && self.acceleration() != Acceleration::Hardware {
            return Err(CreateError::NoHardware(self.acceleration().name()));
        }
        attest::check(&config.tee)?;
        if self.0.closing.is_cancelled() {
            return Err(CreateError::ShuttingDown);
        }
        let (host, doom) = (self.clone(), self.0.closing.child_token());
        let abandoned = doom.clone().drop_guard();
        let making = async move {
            let result = host.make(config, start, doom).await;
            if result.is_err() {
                // It may have been the only one on its network.
                host.0.networks.let_go();
            }
            result
        };
        // In a task of its own: half a sandbox cannot be dropped, it must be taken apart.
        let (making, made) = hand_over(making, |unwanted: Sandbox| async move { unwanted.destroy().await });
        self.0.tasks.spawn(making);
        let made = made.await.unwrap_or(Err(CreateError::ShuttingDown));
        abandoned.disarm();
        made
    }

    /// Watches what happens to its sandboxes from now on.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut events = host.events();
    /// while let Some(watched) = events.next().await {
    ///     println!("{watched:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn events(&self) -> EventWatch {
        self.0.events.watch()
    }

    /// Watches what happens to its sandboxes, and what happened since a time: the host keeps its last 1024 events.
    ///
    /// ```no_run
    /// use std::time::{Duration, SystemTime};
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut events = host.events_since(SystemTime::now() - Duration::from_secs(60));
    /// while let Some(watched) = events.next().await {
    ///     println!("{watched:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn events_since(&self, since: SystemTime) -> EventWatch {
        self.0.events.watch_since(since)
    }

    /// The sandbox that `text` names: its id, its name, or the beginning of its id that no other has.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let by_name = host.find("db")?;
    /// let by_id = host.find(&by_name.id().to_string()[..8])?;
    /// # Ok(()) }
    /// ```
    pub fn find(&self, text: &str) -> Result<Sandbox, FindError> {
        self.registry().find(text)
    }

    /// Clones that wait in all pools, and how many should.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let (ready, wanted) = host.pool();
    /// println!("{ready} of {wanted} wait");
    /// # Ok(()) }
    /// ```
    pub fn pool(&self) -> (usize, usize) {
        self.0.pools.count()
    }

    /// Whether the first sandbox with these resources is being made: that takes far longer than the next, its clones.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) {
    /// if host.is_making_template(&bouvet_host::ResourceConfig::default()) {
    ///     println!("the first sandbox of this size is being made");
    /// }
    /// # }
    /// ```
    pub fn is_making_template(&self, resources: &ResourceConfig) -> bool {
        self.0.templates.as_ref().is_some_and(|templates| templates.is_making(Shape::from(resources)))
    }

    /// The sandbox of this name, whatever its state.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let id = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse()?;
    /// if let Some(sandbox) = host.get(id) {
    ///     println!("{}", sandbox.state().name());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn get(&self, id: SandboxId) -> Option<Sandbox> {
        self.registry().sandboxes.get(&id).cloned()
    }

    /// All sandboxes, oldest first.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let running = host.list().iter().filter(|info| info.state.name() == "running").count();
    /// println!("{running} run");
    /// # Ok(()) }
    /// ```
    pub fn list(&self) -> Vec<SandboxInfo> {
        let mut infos: Vec<_> = self.registry().sandboxes.values().map(Sandbox::info).collect();
        infos.sort_by_key(|info| info.created_at);
        infos
    }

    /// Whether `port` of this machine leads into a sandbox by TCP, or has led into one of this host: what is served there,
    /// a page in a browser above all, is a sandbox's, and is still in the browser when the port is closed.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host, sandbox: &bouvet_host::Sandbox) -> Result<(), bouvet_host::PortError> {
    /// let port = sandbox.expose("8000".parse()?)?;
    /// assert!(host.has_led(port.host.port()));
    /// # Ok(()) }
    /// ```
    pub fn has_led(&self, port: u16) -> bool {
        self.registry().led.has(port)
    }

    /// Destroys all sandboxes and removes everything that this host has made. Later calls fail.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// tokio::signal::ctrl_c().await?;
    /// host.shut_down().await;
    /// # Ok(()) }
    /// ```
    pub async fn shut_down(&self) {
        self.0.closing.cancel();
        self.0.starts.close();
        self.0.tasks.close();
        let pooled = self.0.pools.close();
        futures_util::future::join_all(pooled.into_iter().map(|entry| self.release(entry))).await;
        self.rest_kept().await;
        while !self.0.tasks.is_empty() {
            let sandboxes: Vec<_> = self.registry().sandboxes.values().cloned().collect();
            futures_util::future::join_all(sandboxes.iter().map(Sandbox::destroy)).await;
            // Creations under way end by themselves, and are destroyed by the next turn if they succeed.
            tokio::select! {
                () = self.0.tasks.wait() => {}
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        self.0.events.end();
        self.0.ground.give_back();
    }

    /// Ends what [`Host::shut_down`] waits for: main programs that may take time to end are killed. Disks are still written.
    ///
    /// ```no_run
    /// # async fn example(host: bouvet_host::Host) {
    /// tokio::select! {
    ///     () = host.shut_down() => {}
    ///     () = async { host.hasten().await; std::future::pending().await } => {}
    /// }
    /// # }
    /// ```
    pub async fn hasten(&self) {
        let sandboxes: Vec<_> = self.registry().sandboxes.values().cloned().collect();
        futures_util::future::join_all(sandboxes.iter().map(Sandbox::kill_main)).await;
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Everything but the ground, which is left to the caller to give back if this fails.
    async fn new(
        ground: &Ground,
        options: &HostOptions,
    ) -> Result<impl FnOnce(Ground) -> Self + use<>, StartError> {
        let dir = ground.instance.dir.join("sandboxes");
        let (authorities, networks) = (options.authorities.clone(), Networks::new(options.networks.clone()));
        let failed = |source| StartError::Directory(dir.clone(), source);
        fs::create_dir(&dir).map_err(failed)?;
        let resting = RestingDisks::new(dir.clone()).map_err(failed)?;
        let spawner = Arc::new(Spawner::start().map_err(StartError::Thread)?);
        let engine = start_engine(options, ground, spawner).await?;
        let base = match options.engine.has_vms() {
            true => {
                Rootfs::base(&options.rootfs).map_err(|error| EngineError::Prepare("the rootfs", error))?
            }
            false => {
                Rootfs { path: options.rootfs.clone(), identity: String::new(), is_base: true, sidecar: None }
            }
        };
        let (boxes, images) = (options.boxes.clone().map(Boxes::new), options.images.clone());
        let templates = match (&options.templates, engine.freezes()) {
            (Some(templates), Some(freezing)) => Some(Templates::new(templates.clone(), freezing)?),
            _ => None,
        };
        let starts = std::thread::available_parallelism().map_or(2, |cpus| cpus.get().max(2));
        let (blanks, max_sandboxes) = (Blanks::new(ground.instance.dir.clone()), options.max_sandboxes);
        Ok(move |ground| Self {
            engine,
            base,
            no_limits: Limits::default(),
            authorities,
            networks,
            sockets: Sockets::new(descriptors::share()),
            events: Events::default(),
            boxes,
            measurer: Measurer::default(),
            images,
            opened: image::Opened::default(),
            blanks,
            dir,
            max_sandboxes,
            sandboxes: Mutex::default(),
            renaming: tokio::sync::Mutex::default(),
            templates,
            pools: Pools::default(),
            starts: Semaphore::new(starts),
            resting,
            readers: Arc::new(Semaphore::new(reader::MAX_READERS)),
            waiting: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            ground,
        })
    }
}

/// A place among those who wait for a VM to start.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn in_line(waiting: &'a AtomicUsize) -> Result<Self, CreateError> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(waiting);
        if before >= MAX_WAITING { Err(CreateError::Busy(MAX_WAITING)) } else { Ok(place) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn start_engine(
    options: &HostOptions,
    ground: &Ground,
    spawner: Arc<Spawner>,
) -> Result<Box<dyn Engine>, StartError> {
    let parts = engine::Options {
        kernel: &options.kernel,
        rootfs: &options.rootfs,
        kernel_args: &options.kernel_args,
        dir: &ground.instance.dir,
        cgroups: ground.cgroups.clone(),
        first_uid: ground.first_uid(options),
        spawner: spawner.clone(),
    };
    Ok(match options.resolved_engine() {
        EngineChoice::Firecracker => Box::new(Firecracker::prepare(parts, &options.firecracker).await?),
        EngineChoice::Auto | EngineChoice::Qemu => Box::new(Qemu::prepare(parts).await?),
        #[cfg(feature = "fake")]
        EngineChoice::Fake => Box::new(Fake::prepare(&ground.instance.dir, spawner)?),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_wait_as_may() {
        let waiting = AtomicUsize::new(0);
        let places: Vec<_> = (0..MAX_WAITING).map(|_| Place::in_line(&waiting).unwrap()).collect();
        assert!(matches!(Place::in_line(&waiting), Err(CreateError::Busy(MAX_WAITING))));
        drop(places);
        assert!(Place::in_line(&waiting).is_ok(), "a place is given back, also one that was refused");
    }
}
