//! Bringing a sandbox up. Each phase is a type; each consumes the one before, and when it fails, nothing
//! that was acquired so far is left.
//!
//! ```text
//! Prepared (directory, disk) → Started (a VM) → Linked (a guest answers) → Live (personalised, furnished, main program)
//!                                                    │ warmed              ▲
//!                                                    ├─▶ Waiting (paused) ─┘ by a claim
//!                                                    └─▶ a template (frozen)
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bouvet_net::Network;
use bouvet_net::dns::ClientSettings;
use bouvet_wire::v1;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio_util::sync::CancellationToken;

use super::SandboxId;
use super::owner::Followed;
use crate::attest::Measured;
use crate::blueprint::{Blueprint, Main, Sidecar};
use crate::boxconfig::limits::Limits;
use crate::disk::{self, Blanks, DiskError, Kind};
use crate::engine::{Engine, EngineError, Frozen, Rootfs, Vm, VmSpec};
use crate::exec::{Exec, ExecError, ExecRequest, ExecStream, Program, Role, WindowSize};
use crate::journal::Journals;
use crate::link::{Client, Link, LinkError};
use crate::network::attach::Attached;
use crate::network::client_settings;
use crate::template::Shape;
use crate::undo::Undo;
use crate::volume::{VolumeError, Volumes};

/// From the start of a VM to its guest's first answer. An emulated VM on a busy machine takes seconds; one whose KVM is
/// software takes minutes. A VM that ends is noticed at once: this is for one that hangs.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// Its guest's first work: emulated, and with other VMs booting beside it, that takes a while.
const PERSONALISE_DEADLINE: Duration = Duration::from_secs(60);
/// Its file systems, limits and namespaces.
const FURNISH_DEADLINE: Duration = Duration::from_secs(90);
/// How long a VM whose link failed is given to end by itself, which tells more.
const POST_MORTEM: Duration = Duration::from_secs(1);
/// Memory of a VM that only serves the files of a stopped sandbox.
const READER_MEMORY_MB: u32 = 256;
/// The disk of a VM, in its directory.
const SCRATCH: &str = "scratch.ext4";
const ENTROPY_BYTES: usize = 64;
/// How long the first programs of a VM may take. Emulated, and read from disk, that is tens of seconds; with software
/// behind KVM, minutes.
const WARM_DEADLINE: Duration = Duration::from_secs(900);
/// The same for one program of a clone, in which all of them have run before.
const REHEARSAL_DEADLINE: Duration = Duration::from_secs(180);
/// What a template has in memory.
const WARM_TEMPLATE: &[v1::Program] =
    &[v1::Program::Node, v1::Program::Python, v1::Program::Bash, v1::Program::Command];
/// What a waiting clone has translated; more would cost memory that most never need.
const REHEARSAL: [(Program, &str); 2] = [(Program::Command, "true"), (Program::Python, "print(1)")];

/// Why a VM did not become a sandbox.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, BringUpError, CreateError};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.create(BoxConfig { cmd: vec!["serve".into()], ..BoxConfig::default() }).await {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(CreateError::BringUp(BringUpError::Main(why))) => println!("there is no such program: {why}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// Its directory could not be made.
    #[error("could not make the sandbox's directory")]
    Directory(#[source] std::io::Error),
    /// Its disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its VM could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its host shuts down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Its VM ended before it was up.
    #[error("the VM did not come up: {0}")]
    Ended(String),
    /// Its guest did not come up.
    #[error("could not link up with the guest")]
    Link(#[from] LinkError),
    /// Its guest could not run the first programs.
    #[error("the guest could not be warmed: {0}")]
    Warm(String),
    /// Its guest would not become this sandbox's own.
    #[error("the guest could not be made this sandbox's own: {0}")]
    Personalise(String),
    /// Its guest could not be made what its description says.
    #[error("the sandbox could not be furnished: {0}")]
    Furnish(String),
    /// It could not be given its network.
    #[error("could not give it its network: {0}")]
    Network(String),
    /// One of its volumes could not be mounted.
    #[error("could not mount its volumes")]
    Volume(#[source] VolumeError),
    /// Its sidecar could not be started.
    #[error("the sidecar could not be started")]
    Sidecar(#[source] ExecError),
    /// Its main program could not be started.
    #[error("the main program could not be started")]
    Main(#[source] ExecError),
}

impl BringUpError {
    /// Whether another VM would fail in the same way.
    pub(crate) fn is_of_the_description(&self) -> bool {
        let furnishing = matches!(self, Self::Furnish(_) | Self::Volume(_) | Self::Network(_));
        furnishing || matches!(self, Self::Sidecar(_) | Self::Main(_))
    }
}

/// What a bring-up works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) blanks: &'a Blanks,
    /// What the sandbox's root is.
    pub(crate) rootfs: &'a Rootfs,
    /// What its VM may have of the host.
    pub(crate) limits: &'a Limits,
    /// Whether the host's log repeats its console.
    pub(crate) aloud: bool,
    /// The directory of all sandboxes.
    pub(crate) dir: &'a Path,
    /// See [`VmSpec::slot`].
    pub(crate) slot: u32,
    /// Cancelled when its host shuts down: what is half up then is taken apart at once.
    pub(crate) closing: &'a CancellationToken,
}

impl Site<'_> {
    /// Does `step` of a bring-up, unless the host shuts down before it is done.
    async fn unless_closing<T>(
        &self,
        step: impl Future<Output = Result<T, BringUpError>>,
    ) -> Result<T, BringUpError> {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(BringUpError::ShuttingDown),
            result = step => result,
        }
    }
}

/// What a VM is to become.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) id: SandboxId,
    pub(crate) blueprint: &'a Blueprint,
    pub(crate) journals: Journals,
    pub(crate) network: Option<&'a Network>,
}

/// How a VM begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// As a machine that is switched on.
    Boot,
    /// As a machine with the disk at this path, which it keeps. Made if it is missing.
    Kept(&'a Path),
    /// As the template that this is.
    Clone(&'a Frozen),
}

/// A sandbox that is up, and all that it holds. `vm` must be stopped before this is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) link: Link,
    /// The program with which it ends.
    pub(crate) main: Option<Followed>,
    /// The program beside it.
    pub(crate) sidecar: Option<Followed>,
    /// Whether what is on its disk is for later.
    pub(crate) durable: bool,
    /// Its disk, if it is its VM's alone.
    pub(crate) scratch: Option<PathBuf>,
    person: Person,
    /// What its VM was launched from, where that was asked for.
    pub(crate) measured: Option<Measured>,
    /// Directories of the host that it shows.
    pub(crate) volumes: Option<Volumes>,
    /// Its interface, if it has a network.
    pub(crate) network: Option<Attached>,
    /// Everything else; released by being dropped.
    pub(crate) undo: Undo,
}

impl Live {
    /// Lets a paused VM go on, by a clock that is right.
    pub(crate) async fn resume(&mut self, id: SandboxId) -> Result<(), String> {
        let owned = make_own(self.link.client(), id, &self.person);
        let resumed = async { self.vm.resume().await.map_err(|error| crate::chain(&error)) };
        let owned = async { owned.await.map_err(|error| crate::chain(&error)) };
        tokio::try_join!(resumed, owned).map(drop)
    }

    /// Makes it what `blueprint` says, and starts its main program.
    async fn furnish(&mut self, wanted: Wanted<'_>) -> Result<(), BringUpError> {
        let Wanted { id, blueprint, journals, network } = wanted;
        if blueprint.config.debug_grpc {
            self.link.log_calls(&self.person.hostname);
        }
        let client = self.link.client();
        let [before, after] = blueprint.furnishing();
        furnish(client.clone(), before).await?;
        if !blueprint.plan.volumes.is_empty() {
            let volumes = Volumes::attach(client.clone(), &blueprint.plan.volumes).await;
            self.volumes = Some(volumes.map_err(BringUpError::Volume)?);
        }
        if let Some(network) = network {
            // Before its files may be written no more.
            let settings = match &blueprint.plan.network {
                Some(plan) => client_settings(plan).await,
                None => ClientSettings::default(),
            };
            let attached = Attached::new(client.clone(), id, network, settings).await;
            self.network = Some(attached.map_err(BringUpError::Network)?);
        }
        furnish(client.clone(), after).await?;
        if let Some(sidecar) = &blueprint.sidecar {
            let stream = start_sidecar(client.clone(), sidecar).await.map_err(BringUpError::Sidecar)?;
            self.sidecar = Some(Followed::follow(stream, sidecar.stop_signal, journals.sidecar));
        }
        let Some(Main { argv, stop_signal }) = &blueprint.main else { return Ok(()) };
        let stream = start_main(client, argv, blueprint).await.map_err(BringUpError::Main)?;
        self.main = Some(Followed::follow(stream, *stop_signal, journals.main));
        Ok(())
    }
}

async fn furnish(mut client: Client, request: Option<v1::FurnishRequest>) -> Result<(), BringUpError> {
    let Some(request) = request else { return Ok(()) };
    let furnished = match tokio::time::timeout(FURNISH_DEADLINE, client.furnish(request)).await {
        Ok(answer) => answer.map(drop).map_err(|status| crate::link::said(&status)),
        Err(_) => Err(format!("no answer within {FURNISH_DEADLINE:?}")),
    };
    furnished.map_err(BringUpError::Furnish)
}

async fn start_main(client: Client, argv: &[String], blueprint: &Blueprint) -> Result<ExecStream, ExecError> {
    let config = &blueprint.config;
    let request = ExecRequest {
        cwd: blueprint.working_dir.clone(),
        timeout: Duration::ZERO,
        terminal: config.tty.then(WindowSize::default),
        ..ExecRequest::arguments(argv)?
    };
    let stream = ExecStream::start(client, request, Role::Main).await?;
    if !config.stdin_open {
        end_input(&stream).await?;
    }
    Ok(stream)
}

async fn start_sidecar(client: Client, sidecar: &Sidecar) -> Result<ExecStream, ExecError> {
    let request = ExecRequest {
        env: sidecar.env.clone(),
        cwd: sidecar.working_dir.clone(),
        user: sidecar.user.clone(),
        timeout: Duration::ZERO,
        ..ExecRequest::arguments(&sidecar.argv)?
    };
    let role = Role::Sidecar(sidecar.confinement.clone());
    let stream = ExecStream::start(client, request, role).await?;
    end_input(&stream).await?;
    Ok(stream)
}

async fn end_input(stream: &ExecStream) -> Result<(), ExecError> {
    match stream.control().close_stdin().await {
        // What has ended already reads nothing.
        Err(ExecError::Ended) => Ok(()),
        closed => closed,
    }
}

/// Makes a sandbox.
pub(crate) async fn bring_up(
    site: Site<'_>,
    wanted: Wanted<'_>,
    origin: Origin<'_>,
) -> Result<Live, BringUpError> {
    let shape = Shape::from(&wanted.blueprint.config.resources);
    let linked = Linked::new(site, wanted.id, shape, origin).await?;
    linked.complete(site, wanted).await
}

/// Boots a VM with the disk of a sandbox that is stopped, in which none of its programs run: for its files.
pub(crate) async fn reader(site: Site<'_>, wanted: &Wanted<'_>, disk: &Path) -> Result<Live, BringUpError> {
    let disk_mb = wanted.blueprint.config.resources.disk_mb;
    let shape = Shape { vcpus: 1, memory_mb: READER_MEMORY_MB, disk_mb };
    let mut linked = Linked::new(site, wanted.id, shape, Origin::Kept(disk)).await?;
    // With the names that the sandbox has: they are files on its disk.
    linked.0.person = Person::of(wanted);
    let owned = make_own(linked.0.link.client(), wanted.id, &linked.0.person);
    match site.unless_closing(owned).await {
        Ok(()) => Ok(linked.0),
        Err(error) => Err(linked.fail(error).await),
    }
}

/// A clone that is nobody's yet: linked, warm and paused.
#[derive(Debug)]
pub(crate) struct Waiting(Linked);

/// Makes one.
pub(crate) async fn wait(
    site: Site<'_>,
    id: SandboxId,
    shape: Shape,
    template: &Frozen,
) -> Result<Waiting, BringUpError> {
    let mut linked = Linked::new(site, id, shape, Origin::Clone(template)).await?;
    match site.unless_closing(linked.rehearse(id, site.rootfs.is_base)).await {
        Ok(()) => Ok(Waiting(linked)),
        Err(error) => Err(linked.fail(error).await),
    }
}

impl Waiting {
    /// Makes it the sandbox that is wanted, for whose id it must have been made.
    pub(crate) async fn claim(mut self, wanted: Wanted<'_>) -> Result<Live, BringUpError> {
        let live = &mut self.0.0;
        live.person = Person::of(&wanted);
        let woken = match live.resume(wanted.id).await {
            Ok(()) => live.furnish(wanted).await,
            Err(error) => Err(BringUpError::Personalise(error)),
        };
        match woken {
            Ok(()) => Ok(self.0.0),
            Err(error) => Err(self.0.fail(error).await),
        }
    }

    /// Ends it.
    pub(crate) async fn release(mut self) {
        self.0.0.vm.stop().await;
    }
}

/// Boots a VM, warms it and freezes it.
pub(crate) async fn template(site: Site<'_>, shape: Shape) -> Result<Frozen, BringUpError> {
    let failed = |error| BringUpError::Engine(EngineError::Prepare("a template's disk", error));
    let mut prepared = Prepared::new(site, SandboxId::random(), shape, Origin::Boot).await?;
    let scratch = prepared.spec.scratch.try_clone().map_err(failed)?;
    prepared.spec.to_freeze = true;
    let mut linked = prepared.start(site.engine, Origin::Boot).await?.link(site).await?;
    // What an image has in it, nobody here knows.
    let programs = if site.rootfs.is_base { WARM_TEMPLATE } else { &[] };
    let frozen = match site.unless_closing(linked.warm(programs)).await {
        Ok(()) => linked.0.vm.freeze().await.map_err(BringUpError::from),
        Err(error) => Err(error),
    };
    match frozen {
        Ok((memory, devices)) => Ok(Frozen { memory, devices, scratch }),
        Err(error) => Err(linked.fail(error).await),
    }
}

struct Prepared {
    spec: VmSpec,
    undo: Undo,
}

impl Prepared {
    async fn new(
        site: Site<'_>,
        id: SandboxId,
        shape: Shape,
        origin: Origin<'_>,
    ) -> Result<Self, BringUpError> {
        let dir = site.dir.join(id.to_string());
        let mut undo = Undo::default();
        fs::create_dir(&dir).map_err(BringUpError::Directory)?;
        let made = dir.clone();
        undo.push("the sandbox's directory", move || fs::remove_dir_all(&made));
        let path = dir.join(SCRATCH);
        let Shape { vcpus, memory_mb, disk_mb } = shape;
        let durable = matches!(origin, Origin::Kept(_));
        let scratch = match origin {
            Origin::Boot => site.blanks.copy_to(&path, disk_mb, Kind::Fleeting).await?,
            Origin::Kept(path) if path.exists() => disk::open(path)?,
            Origin::Kept(path) => site.blanks.copy_to(path, disk_mb, Kind::Durable).await?,
            Origin::Clone(template) => {
                let frozen = template.scratch.try_clone().map_err(BringUpError::Directory)?;
                disk::copy(frozen, path).await?
            }
        };
        let (name, slot) = (id.to_string(), site.slot);
        let Rootfs { path: rootfs, sidecar, .. } = site.rootfs.clone();
        let (limits, aloud) = (site.limits.clone(), site.aloud);
        let spec = VmSpec {
            name,
            slot,
            vcpus,
            memory_mb,
            rootfs,
            sidecar,
            scratch,
            durable,
            limits,
            aloud,
            to_freeze: false,
            dir,
        };
        Ok(Self { spec, undo })
    }

    async fn start(mut self, engine: &dyn Engine, origin: Origin<'_>) -> Result<Started, BringUpError> {
        let durable = self.spec.durable;
        let scratch = (!durable).then(|| self.spec.dir.join(SCRATCH));
        let vm = match origin {
            Origin::Boot | Origin::Kept(_) => engine.boot(self.spec, &mut self.undo).await?,
            Origin::Clone(template) => engine.restore(self.spec, template, &mut self.undo).await?,
        };
        Ok(Started { vm, durable, scratch, undo: self.undo })
    }
}

struct Started {
    vm: Box<dyn Vm>,
    durable: bool,
    scratch: Option<PathBuf>,
    undo: Undo,
}

impl Started {
    async fn link(mut self, site: Site<'_>) -> Result<Linked, BringUpError> {
        let connect = async {
            let stream = tokio::time::timeout(BOOT_DEADLINE, self.vm.connect()).await;
            let stream = stream.map_err(|_| LinkError::Deadline(BOOT_DEADLINE))?;
            let stream = stream.map_err(LinkError::Stream)?;
            tokio::select! {
                // A VM that has ended closes the link too; why it ended is the better answer.
                biased;
                reason = self.vm.exited() => Err(BringUpError::Ended(reason)),
                link = Link::connect(stream, BOOT_DEADLINE) => link.map_err(BringUpError::Link),
            }
        };
        let linked = site.unless_closing(connect).await;
        match linked {
            Ok(link) => Ok(Linked(Live {
                vm: self.vm,
                link,
                main: None,
                sidecar: None,
                durable: self.durable,
                scratch: self.scratch,
                person: Person::default(),
                measured: None,
                volumes: None,
                network: None,
                undo: self.undo,
            })),
            Err(BringUpError::ShuttingDown) => {
                self.vm.stop().await;
                Err(BringUpError::ShuttingDown)
            }
            Err(error) => {
                // The link of a VM that is just ending breaks first.
                let reason = tokio::time::timeout(POST_MORTEM, self.vm.exited()).await;
                self.vm.stop().await;
                Err(reason.map_or(error, BringUpError::Ended))
            }
        }
    }
}

#[derive(Debug)]
struct Linked(Live);

impl Linked {
    async fn new(
        site: Site<'_>,
        id: SandboxId,
        shape: Shape,
        origin: Origin<'_>,
    ) -> Result<Self, BringUpError> {
        let prepared = Prepared::new(site, id, shape, origin).await?;
        prepared.start(site.engine, origin).await?.link(site).await
    }

    /// Has empty programs run, so that later ones start fast.
    async fn warm(&mut self, programs: &[v1::Program]) -> Result<(), BringUpError> {
        let request =
            v1::WarmRequest { programs: programs.iter().map(|program| (*program).into()).collect() };
        let warmed = tokio::time::timeout(WARM_DEADLINE, self.0.link.client().warm(request)).await;
        match warmed {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(BringUpError::Warm(crate::link::said(&status))),
            Err(_) => Err(BringUpError::Warm(format!("no answer within {WARM_DEADLINE:?}"))),
        }
    }

    /// Does once what a claim and first programs will do, so that its code is translated, and pauses. What is
    /// personal here but for the names is made anew by the claim. What programs an image has, nobody here knows.
    async fn rehearse(&mut self, id: SandboxId, is_base: bool) -> Result<(), BringUpError> {
        self.0.person = Person { hostname: hostname(id), ..Person::default() };
        make_own(self.0.link.client(), id, &self.0.person).await?;
        for (program, source) in REHEARSAL.into_iter().filter(|_| is_base) {
            let request = ExecRequest { timeout: REHEARSAL_DEADLINE, ..ExecRequest::new(program, source) };
            let run = async { Exec::start(self.0.link.client(), request).await?.finish().await };
            let ran = run.await.map_err(|error| BringUpError::Warm(error.to_string()))?;
            if ran.exit.exit_code != 0 {
                return Err(BringUpError::Warm(format!("`{source}` failed: {}", ran.stderr.text())));
            }
        }
        self.0.vm.pause().await?;
        self.0.resume(id).await.map_err(BringUpError::Warm)?;
        Ok(self.0.vm.pause().await?)
    }

    async fn complete(mut self, site: Site<'_>, wanted: Wanted<'_>) -> Result<Live, BringUpError> {
        self.0.person = Person::of(&wanted);
        let completed = async {
            make_own(self.0.link.client(), wanted.id, &self.0.person).await?;
            self.0.furnish(wanted).await
        };
        match site.unless_closing(completed).await {
            Ok(()) => Ok(self.0),
            Err(error) => Err(self.fail(error).await),
        }
    }

    /// Ends the VM, and says why this was tried in vain.
    async fn fail(mut self, error: BringUpError) -> BringUpError {
        self.0.vm.stop().await;
        error
    }
}

/// What makes a guest one sandbox's, beside its id.
#[derive(Debug, Clone, Default)]
struct Person {
    hostname: String,
    env: HashMap<String, String>,
    /// On its network.
    addresses: Vec<String>,
    hosts: Vec<v1::HostEntry>,
}

impl Person {
    fn of(wanted: &Wanted<'_>) -> Self {
        let (config, plan) = (&wanted.blueprint.config, &wanted.blueprint.plan);
        let said = [&config.hostname, &config.name].into_iter().find(|name| !name.is_empty());
        let addresses = wanted.network.map(Network::addresses);
        Self {
            hostname: said.cloned().unwrap_or_else(|| hostname(wanted.id)),
            env: wanted.blueprint.env.iter().cloned().collect(),
            addresses: addresses
                .map_or_else(Vec::new, |own| vec![own.ipv4.0.to_string(), own.ipv6.0.to_string()]),
            hosts: plan.hosts.iter().filter_map(|line| line.entry(addresses.as_ref())).collect(),
        }
    }
}

fn hostname(id: SandboxId) -> String {
    format!("sandbox-{}", id.short())
}

/// Has the guest become the sandbox `id`, and waits until it says so.
async fn make_own(mut client: Client, id: SandboxId, person: &Person) -> Result<(), BringUpError> {
    let result = match request(id, person) {
        Ok(request) => match tokio::time::timeout(PERSONALISE_DEADLINE, client.personalise(request)).await {
            Ok(Ok(reply)) => check(&reply.into_inner()),
            Ok(Err(status)) => Err(crate::link::said(&status)),
            Err(_) => Err(format!("no answer within {PERSONALISE_DEADLINE:?}")),
        },
        Err(error) => Err(format!("no entropy for it: {error}")),
    };
    result.map_err(BringUpError::Personalise)
}

fn request(id: SandboxId, person: &Person) -> Result<v1::PersonaliseRequest, rustix::io::Errno> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    let (filled, _) = getrandom(&mut entropy[..], GetRandomFlags::empty()).map(|filled| (filled, ()))?;
    if filled != ENTROPY_BYTES {
        return Err(rustix::io::Errno::AGAIN);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(v1::PersonaliseRequest {
        entropy: entropy.into(),
        unix_time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        sandbox_id: id.to_string(),
        hostname: person.hostname.clone(),
        machine_id: id.machine_id(),
        env: person.env.clone(),
        addresses: person.addresses.clone(),
        hosts: person.hosts.clone(),
    })
}

fn check(reply: &v1::PersonaliseReply) -> Result<(), String> {
    if reply.generation == bouvet_wire::GENERATION {
        return Ok(());
    }
    Err(format!("it acknowledged generation {}", reply.generation))
}
