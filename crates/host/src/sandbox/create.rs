//! Bringing a sandbox up. Each phase is a type; each consumes the one before, and when it fails, nothing
//! that was acquired so far is left.
//!
//! ```text
//! Prepared (directory, disk) → Started (a VM) → Linked (a guest answers) → Live (personalised)
//!                                                    │ warmed              ▲
//!                                                    ├─▶ Waiting (paused) ─┘ by a claim
//!                                                    └─▶ a template (frozen)
//! ```

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bouvet_wire::v1;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio_util::sync::CancellationToken;

use super::SandboxId;
use crate::boxconfig::BoxConfig;
use crate::disk::{self, Blanks, DiskError};
use crate::engine::{Engine, EngineError, Frozen, Vm, VmSpec};
use crate::exec::{Exec, ExecRequest, Program};
use crate::link::{Client, Link, LinkError};
use crate::template::Shape;
use crate::undo::Undo;

/// From the start of a VM to its guest's first answer. An emulated VM on a busy machine takes seconds; one whose KVM is
/// software takes minutes. A VM that ends is noticed at once: this is for one that hangs.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// Its guest's first work: emulated, and with other VMs booting beside it, that takes a while.
const PERSONALISE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a VM whose link failed is given to end by itself, which tells more.
const POST_MORTEM: Duration = Duration::from_secs(1);
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
}

/// What a bring-up works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) blanks: &'a Blanks,
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

/// How a VM begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// As a machine that is switched on.
    Boot,
    /// As the template that this is.
    Clone(&'a Frozen),
}

/// A sandbox that is up, and all that it holds. `vm` must be stopped before this is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) link: Link,
    /// Everything else; released by being dropped.
    pub(crate) undo: Undo,
}

/// Makes a sandbox.
pub(crate) async fn bring_up(
    site: Site<'_>,
    id: SandboxId,
    config: &BoxConfig,
    origin: Origin<'_>,
) -> Result<Live, BringUpError> {
    let shape = Shape::from(&config.resources);
    Linked::new(site, id, shape, origin).await?.personalise(site, id, config).await
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
    match site.unless_closing(linked.rehearse(id)).await {
        Ok(()) => Ok(Waiting(linked)),
        Err(error) => Err(linked.fail(error).await),
    }
}

impl Waiting {
    /// Makes it the sandbox `id`, which it must have been made for.
    pub(crate) async fn claim(mut self, id: SandboxId, config: &BoxConfig) -> Result<Live, BringUpError> {
        match self.0.wake(id, config).await {
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
    let frozen = match site.unless_closing(linked.warm(WARM_TEMPLATE)).await {
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
        let path = dir.join("scratch.ext4");
        let Shape { vcpus, memory_mb, disk_mb } = shape;
        let scratch = match origin {
            Origin::Boot => site.blanks.copy_to(&path, disk_mb).await?,
            Origin::Clone(template) => {
                let frozen = template.scratch.try_clone().map_err(BringUpError::Directory)?;
                disk::copy(frozen, path).await?
            }
        };
        let (name, slot) = (id.to_string(), site.slot);
        let spec = VmSpec { name, slot, vcpus, memory_mb, scratch, to_freeze: false, dir };
        Ok(Self { spec, undo })
    }

    async fn start(mut self, engine: &dyn Engine, origin: Origin<'_>) -> Result<Started, BringUpError> {
        let vm = match origin {
            Origin::Boot => engine.boot(self.spec, &mut self.undo).await?,
            Origin::Clone(template) => engine.restore(self.spec, template, &mut self.undo).await?,
        };
        Ok(Started { vm, undo: self.undo })
    }
}

struct Started {
    vm: Box<dyn Vm>,
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
            Ok(link) => Ok(Linked(Live { vm: self.vm, link, undo: self.undo })),
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
            Ok(Err(status)) => Err(BringUpError::Warm(crate::chain(&status))),
            Err(_) => Err(BringUpError::Warm(format!("no answer within {WARM_DEADLINE:?}"))),
        }
    }

    /// Does once what a claim and first programs will do, so that its code is translated, and pauses. What is
    /// personal here but for the names is made anew by the claim.
    async fn rehearse(&mut self, id: SandboxId) -> Result<(), BringUpError> {
        let config = BoxConfig::default();
        make_own(self.0.link.client(), id, &config).await?;
        for (program, source) in REHEARSAL {
            let request = ExecRequest { timeout: REHEARSAL_DEADLINE, ..ExecRequest::new(program, source) };
            let run = async { Exec::start(self.0.link.client(), request).await?.finish().await };
            let ran = run.await.map_err(|error| BringUpError::Warm(error.to_string()))?;
            if ran.exit.exit_code != 0 {
                return Err(BringUpError::Warm(format!("`{source}` failed: {}", ran.stderr.text())));
            }
        }
        self.0.vm.pause().await?;
        self.wake(id, &config).await?;
        Ok(self.0.vm.pause().await?)
    }

    /// Resumes the VM and makes it its own: the request is on its way while the VM wakes.
    async fn wake(&mut self, id: SandboxId, config: &BoxConfig) -> Result<(), BringUpError> {
        let owned = make_own(self.0.link.client(), id, config);
        let (resumed, owned) = tokio::join!(self.0.vm.resume(), owned);
        resumed?;
        owned
    }

    async fn personalise(
        self,
        site: Site<'_>,
        id: SandboxId,
        config: &BoxConfig,
    ) -> Result<Live, BringUpError> {
        match site.unless_closing(make_own(self.0.link.client(), id, config)).await {
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

/// Has the guest become the sandbox `id`, and waits until it says so.
async fn make_own(mut client: Client, id: SandboxId, config: &BoxConfig) -> Result<(), BringUpError> {
    let result = match request(id, config) {
        Ok(request) => match tokio::time::timeout(PERSONALISE_DEADLINE, client.personalise(request)).await {
            Ok(Ok(reply)) => check(&reply.into_inner()),
            Ok(Err(status)) => Err(crate::chain(&status)),
            Err(_) => Err(format!("no answer within {PERSONALISE_DEADLINE:?}")),
        },
        Err(error) => Err(format!("no entropy for it: {error}")),
    };
    result.map_err(BringUpError::Personalise)
}

fn request(id: SandboxId, config: &BoxConfig) -> Result<v1::PersonaliseRequest, rustix::io::Errno> {
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
        hostname: format!("sandbox-{}", id.short()),
        machine_id: id.machine_id(),
        env: config.extra_env.clone().into_iter().collect(),
    })
}

fn check(reply: &v1::PersonaliseReply) -> Result<(), String> {
    if reply.generation == bouvet_wire::GENERATION {
        return Ok(());
    }
    Err(format!("it acknowledged generation {}", reply.generation))
}
