//! Bringing a sandbox up. Each phase is a type; each consumes the one before, and when it fails, nothing
//! that was acquired so far is left.
//!
//! ```text
//! Prepared (directory, disk) → Booted (a VM) → Linked (a guest answers) → Live (personalised)
//! ```

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bouvet_wire::v1;
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;

use super::SandboxId;
use crate::boxconfig::BoxConfig;
use crate::disk::{Blanks, DiskError};
use crate::engine::{Engine, EngineError, Vm, VmSpec};
use crate::link::{Link, LinkError};
use crate::undo::Undo;

/// From the start of a VM to its guest's first answer. An emulated VM on a busy machine takes seconds.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// Its guest's first work: emulated, and with other VMs booting beside it, that takes a while.
const PERSONALISE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a VM whose link failed is given to end by itself, which tells more.
const POST_MORTEM: Duration = Duration::from_secs(1);
const ENTROPY_BYTES: usize = 64;

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
    /// Its VM ended before it was up.
    #[error("the VM did not come up: {0}")]
    Ended(String),
    /// Its guest did not come up.
    #[error("could not link up with the guest")]
    Link(#[from] LinkError),
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
}

/// A sandbox that is up, and all that it holds. `vm` must be stopped before this is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) link: Link,
    /// Everything else; released by being dropped.
    pub(crate) undo: Undo,
}

/// Goes through all phases.
pub(crate) async fn bring_up(
    site: Site<'_>,
    id: SandboxId,
    config: &BoxConfig,
) -> Result<Live, BringUpError> {
    let prepared = Prepared::new(site, id, config).await?;
    prepared.boot(site.engine).await?.link().await?.personalise(id, config).await
}

struct Prepared {
    spec: VmSpec,
    undo: Undo,
}

impl Prepared {
    async fn new(site: Site<'_>, id: SandboxId, config: &BoxConfig) -> Result<Self, BringUpError> {
        let dir = site.dir.join(id.to_string());
        let mut undo = Undo::default();
        fs::create_dir(&dir).map_err(BringUpError::Directory)?;
        let made = dir.clone();
        undo.push("the sandbox's directory", move || fs::remove_dir_all(&made));
        let resources = &config.resources;
        let scratch = site.blanks.copy_to(&dir.join("scratch.ext4"), resources.disk_mb).await?;
        let (vcpus, memory_mb) = (resources.vcpus, resources.memory_mb);
        let spec = VmSpec { name: id.to_string(), slot: site.slot, vcpus, memory_mb, scratch, dir };
        Ok(Self { spec, undo })
    }

    async fn boot(mut self, engine: &dyn Engine) -> Result<Booted, BringUpError> {
        let vm = engine.boot(self.spec, &mut self.undo).await?;
        Ok(Booted { vm, undo: self.undo })
    }
}

struct Booted {
    vm: Box<dyn Vm>,
    undo: Undo,
}

impl Booted {
    async fn link(mut self) -> Result<Linked, BringUpError> {
        let linked = match self.vm.connect() {
            Ok(stream) => tokio::select! {
                // A VM that has ended closes the link too; why it ended is the better answer.
                biased;
                reason = self.vm.exited() => Err(BringUpError::Ended(reason)),
                link = Link::connect(stream, BOOT_DEADLINE) => link.map_err(BringUpError::Link),
            },
            Err(error) => Err(LinkError::Stream(error).into()),
        };
        match linked {
            Ok(link) => Ok(Linked(Live { vm: self.vm, link, undo: self.undo })),
            Err(error) => {
                // The link of a VM that is just ending breaks first.
                let reason = tokio::time::timeout(POST_MORTEM, self.vm.exited()).await;
                self.vm.stop().await;
                Err(reason.map_or(error, BringUpError::Ended))
            }
        }
    }
}

struct Linked(Live);

impl Linked {
    async fn personalise(mut self, id: SandboxId, config: &BoxConfig) -> Result<Live, BringUpError> {
        let result = match request(id, config) {
            Ok(request) => {
                let mut client = self.0.link.client();
                let reply = tokio::time::timeout(PERSONALISE_DEADLINE, client.personalise(request)).await;
                match reply {
                    Ok(Ok(reply)) => check(&reply.into_inner()),
                    Ok(Err(status)) => Err(crate::chain(&status)),
                    Err(_) => Err(format!("no answer within {PERSONALISE_DEADLINE:?}")),
                }
            }
            Err(error) => Err(format!("no entropy for it: {error}")),
        };
        match result {
            Ok(()) => Ok(self.0),
            Err(fact) => {
                self.0.vm.stop().await;
                Err(BringUpError::Personalise(fact))
            }
        }
    }
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
        machine_id: Uuid::new_v4().simple().to_string(),
        env: config.extra_env.clone().into_iter().collect(),
    })
}

fn check(reply: &v1::PersonaliseReply) -> Result<(), String> {
    if reply.generation == bouvet_wire::GENERATION {
        return Ok(());
    }
    Err(format!("it acknowledged generation {}", reply.generation))
}
