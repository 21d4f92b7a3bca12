//! Bringing a sandbox up. Each phase is a type; each consumes the one before, and when it fails, nothing
//! that was acquired so far is left.
//!
//! ```text
//! Prepared (directory, disk) → Started (a VM) → Linked (a guest answers) → Live (personalised, furnished, main program)
//!                                                    │ warmed              ▲
//!                                                    ├─▶ Waiting (paused) ─┘ by a claim
//!                                                    └─▶ a template (frozen)
//! ```

mod error;
mod furnish;
mod own;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bouvet_net::Network;
use bouvet_wire::v1;
use tokio_util::sync::CancellationToken;

pub use self::error::BringUpError;
use self::own::{Person, make_own};
use super::SandboxId;
use super::owner::Followed;
use crate::attest::Measured;
use crate::blueprint::Blueprint;
use crate::boxconfig::limits::Limits;
use crate::disk::{self, Blanks, Kind};
use crate::engine::{Engine, EngineError, Frozen, Rootfs, Vm, VmSpec};
use crate::exec::{Exec, ExecRequest, Program};
use crate::journal::Journals;
use crate::link::{Link, LinkError};
use crate::network::attach::Attached;
use crate::template::Shape;
use crate::undo::Undo;
use crate::volume::Volumes;

/// From the start of a VM to its guest's first answer. An emulated VM on a busy machine takes seconds; one whose KVM is
/// software takes minutes. A VM that ends is noticed at once: this is for one that hangs.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// How long a VM whose link failed is given to end by itself, which tells more.
const POST_MORTEM: Duration = Duration::from_secs(1);
/// Memory of a VM that only serves the files of a stopped sandbox.
const READER_MEMORY_MB: u32 = 256;
/// The disk of a VM, in its directory.
const SCRATCH: &str = "scratch.ext4";
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
    /// The same, and it is an error if the disk is missing.
    Found(&'a Path),
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
    let mut linked = Linked::new(site, wanted.id, shape, Origin::Found(disk)).await?;
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
        let durable = matches!(origin, Origin::Kept(_) | Origin::Found(_));
        let scratch = match origin {
            Origin::Boot => site.blanks.copy_to(&path, disk_mb, Kind::Fleeting).await?,
            Origin::Found(path) => disk::open(path)?,
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
            Origin::Boot | Origin::Kept(_) | Origin::Found(_) => {
                engine.boot(self.spec, &mut self.undo).await?
            }
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
        self.0.person = Person::nameless(id);
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
