//! VMs that serve the files of stopped sandboxes.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::image::{Ground, GroundRecord};
use super::life::Home;
use super::{CreateError, Host};
use crate::blueprint::Blueprint;
use crate::engine::Rootfs;
use crate::journal::Journals;
use crate::sandbox::archive::Files;
use crate::sandbox::create::{self, Live, Site, Wanted};
use crate::sandbox::order::{Answer, ControlError, OrderError};
use crate::sandbox::owner;
use crate::sandbox::{Sandbox, SandboxId};

/// VMs of one host that only serve the files of stopped sandboxes.
pub(super) const MAX_READERS: usize = 4;
/// Deadline for such a VM, from its start to its guest's answer. It boots from a disk that a hostile guest wrote.
const READER_DEADLINE: Duration = Duration::from_secs(300);

/// The VM that serves the files of a stopped sandbox.
#[derive(Debug)]
pub(super) struct Reader {
    live: Live,
    _ground: Option<Ground>,
    _permit: OwnedSemaphorePermit,
}

/// Such a VM in the making, for the callers that wait for it.
#[derive(Debug)]
pub(super) struct Booting {
    task: JoinHandle<Result<Reader, String>>,
    cancel: CancellationToken,
    callers: Vec<Answer>,
}

/// Whether the files of a stopped sandbox can be read.
#[derive(Debug, Default)]
pub(super) enum Reading {
    #[default]
    Closed,
    Booting(Box<Booting>),
    Open(Box<Reader>),
}

/// An event for [`Reading::advance`].
#[derive(Debug)]
pub(super) struct Changed(Change);

#[derive(Debug)]
enum Change {
    Booted(Result<Box<Reader>, String>),
    /// All callers have gone.
    Abandoned,
    /// Nobody has used the files for a while.
    Idle,
}

/// What a VM that serves files is made from.
struct Plan {
    id: SandboxId,
    slot: u32,
    disk: PathBuf,
    blueprint: Blueprint,
    journals: Journals,
    network: Option<bouvet_net::Network>,
    /// `None` for a sandbox that was kept and not started yet: its root is found by `record`.
    rootfs: Option<Rootfs>,
    record: GroundRecord,
}

impl Booting {
    /// Waits for the VM, as long as a caller does. Cancel safe.
    async fn changed(&mut self) -> Change {
        let Self { task, callers, .. } = self;
        let abandoned = async {
            for caller in callers {
                caller.closed().await;
            }
        };
        tokio::select! {
            booted = task => {
                let booted = booted.unwrap_or_else(|error| Err(error.to_string()));
                Change::Booted(booted.map(Box::new))
            }
            () = abandoned => Change::Abandoned,
        }
    }

    /// Ends what was begun, and returns when nothing of it is left.
    async fn cancel(self) {
        self.cancel.cancel();
        if let Ok(Ok(reader)) = self.task.await {
            owner::release(reader.live).await;
        }
    }

    fn answer(callers: Vec<Answer>, booted: &Result<(), String>) {
        for caller in callers {
            let failed = |reason| OrderError::Control(ControlError::Failed(reason));
            // The caller may have gone.
            caller.send(booted.clone().map_err(failed)).ok();
        }
    }
}

impl Reading {
    /// Makes the files readable for `caller`.
    pub(super) fn open(&mut self, host: &Host, home: &Home, caller: Answer) {
        match self {
            Self::Open(_) => Booting::answer(vec![caller], &Ok(())),
            Self::Booting(booting) => booting.callers.push(caller),
            Self::Closed => match host.begin_reading(home) {
                Ok((task, cancel)) => {
                    *self = Self::Booting(Box::new(Booting { task, cancel, callers: vec![caller] }));
                }
                Err(reason) => Booting::answer(vec![caller], &Err(reason)),
            },
        }
    }

    /// Waits until something is to be done; for ever if the files are closed. Cancel safe.
    pub(super) async fn changed(&mut self, sandbox: &Sandbox) -> Changed {
        Changed(match self {
            Self::Closed => std::future::pending().await,
            Self::Booting(booting) => booting.changed().await,
            Self::Open(_) => {
                sandbox.files_idle().await;
                Change::Idle
            }
        })
    }

    /// Does what is to be done.
    pub(super) async fn advance(&mut self, sandbox: &Sandbox, home: &Home, Changed(change): Changed) {
        *self = match (std::mem::take(self), change) {
            (Self::Booting(booting), Change::Booted(Ok(reader))) => {
                sandbox.set_files(Some(Files::new(reader.live.link.client())));
                Booting::answer(booting.callers, &Ok(()));
                Self::Open(reader)
            }
            (Self::Booting(booting), Change::Booted(Err(reason))) => {
                Booting::answer(booting.callers, &Err(reason));
                Self::Closed
            }
            (Self::Booting(booting), Change::Abandoned) => {
                booting.cancel().await;
                Self::Closed
            }
            // A caller that came in the meantime keeps it.
            (Self::Open(reader), Change::Idle) if sandbox.retire_files() => {
                reader.end(home).await;
                Self::Closed
            }
            (unchanged, _) => unchanged,
        };
    }

    /// Ends it whatever its use. What copies reported as done is on the disk.
    pub(super) async fn close(self, sandbox: &Sandbox, home: &Home) {
        match self {
            Self::Closed => {}
            Self::Booting(booting) => booting.cancel().await,
            Self::Open(reader) => {
                sandbox.set_files(None);
                reader.end(home).await;
            }
        }
    }
}

impl Reader {
    async fn end(self, home: &Home) {
        owner::release(self.live).await;
        if home.kept.is_none() {
            home.resting.count();
        }
    }
}

impl Host {
    /// Begins to boot a VM that serves the files of the stopped sandbox of `home`.
    fn begin_reading(
        &self,
        home: &Home,
    ) -> Result<(JoinHandle<Result<Reader, String>>, CancellationToken), String> {
        let permit = self.0.readers.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            format!("files of {MAX_READERS} stopped sandboxes are being read, which is the limit")
        })?;
        let disk = match &home.kept {
            Some(kept) if kept.scratch().exists() => kept.scratch().to_owned(),
            Some(_) => return Err("the sandbox is stopped, and its disk was not kept".into()),
            None => home.resting.path()?,
        };
        let plan = Plan {
            id: home.id,
            slot: home.slot,
            disk,
            blueprint: home.blueprint.clone(),
            journals: home.journals.clone(),
            network: home.network.clone(),
            rootfs: home.ground.as_ref().map(|ground| ground.rootfs.clone()),
            record: home.kept.as_ref().map(|kept| kept.record().ground.clone()).unwrap_or_default(),
        };
        let cancel = self.0.closing.child_token();
        let (host, cancelled) = (self.clone(), cancel.clone());
        // In a task of its own: half a VM cannot be dropped, it must be taken apart.
        let task = self.0.tasks.spawn(async move { host.boot_reader(&plan, cancelled, permit).await });
        Ok((task, cancel))
    }

    async fn boot_reader(
        &self,
        plan: &Plan,
        cancel: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Result<Reader, String> {
        let prepare = async {
            let ground = match &plan.rootfs {
                Some(_) => None,
                None => Some(self.same_ground(&plan.record, &plan.blueprint.config).await?),
            };
            let turn = self.0.starts.acquire().await.map_err(|_closed| CreateError::ShuttingDown)?;
            Ok::<_, CreateError>((ground, turn))
        };
        let prepared = cancel.run_until_cancelled(prepare).await.unwrap_or(Err(CreateError::ShuttingDown));
        let (ground, _turn) = prepared.map_err(|error| crate::chain(&error))?;
        let own = ground.as_ref().map(|ground| &ground.rootfs);
        let rootfs = plan.rootfs.as_ref().or(own).unwrap_or(&self.0.base);
        let site = Site { closing: &cancel, ..self.site(plan.slot, rootfs) };
        let wanted = Wanted {
            id: plan.id,
            blueprint: &plan.blueprint,
            journals: plan.journals.clone(),
            network: plan.network.as_ref(),
        };
        let live = boot(site, &wanted, plan, &cancel).await?;
        Ok(Reader { live, _ground: ground, _permit: permit })
    }
}

/// Boots the VM within its deadline.
async fn boot(
    site: Site<'_>,
    wanted: &Wanted<'_>,
    plan: &Plan,
    cancel: &CancellationToken,
) -> Result<Live, String> {
    let booting = create::reader(site, wanted, &plan.disk);
    tokio::pin!(booting);
    if let Ok(booted) = tokio::time::timeout(READER_DEADLINE, &mut booting).await {
        return booted.map_err(|error| crate::chain(&error));
    }
    cancel.cancel();
    if let Ok(live) = booting.await {
        owner::release(live).await;
    }
    let seconds = READER_DEADLINE.as_secs();
    warn!(sandbox = %plan.id, seconds, "the files of a stopped sandbox could not be read in time");
    Err(format!("its files could not be read: no VM was up on its disk within {seconds} s"))
}
