//! Sandboxes without a VM on their host: how long they rest, who reads their files meanwhile, and what they are called.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::warn;

use super::life::Home;
use super::{CreateError, Host};
use crate::boxconfig::BoxConfig;
use crate::boxconfig::plan::check_name;
use crate::boxconfig::restart::Restart;
use crate::boxes::{self, Kept};
use crate::network;
use crate::sandbox::archive::Lease;
use crate::sandbox::create::{self, Live, Wanted};
use crate::sandbox::owner::{self, Answer, ControlError, Owner, Rest};
use crate::sandbox::state::{Event, State};
use crate::sandbox::{Sandbox, SandboxId};

/// VMs of one host that only serve the files of stopped sandboxes.
pub(super) const MAX_READERS: usize = 4;

/// The VM that serves the files of a stopped sandbox.
struct Reader {
    live: Live,
    lease: Lease,
    _permit: OwnedSemaphorePermit,
}

impl Host {
    /// Waits until a sandbox without a VM is to be started, by whom is returned, or by itself after `again`. Serves its
    /// files meanwhile. `None`: it is destroyed.
    pub(super) async fn rest(
        &self,
        sandbox: &Sandbox,
        owner: &mut Owner,
        home: &mut Home,
        again: Option<Duration>,
    ) -> Option<Option<Answer>> {
        let mut reader: Option<Reader> = None;
        let mut again = again.map(|pause| Instant::now() + pause);
        let started = loop {
            sandbox.life().change(|runs| runs.restarting = again.is_some());
            let lease = reader.as_ref().map(|reader| reader.lease.clone());
            let idle = async {
                tokio::select! {
                    () = maybe(lease.map(Lease::idle)) => {}
                    () = maybe(again.map(tokio::time::sleep_until)) => {}
                }
            };
            match owner.rest(idle).await {
                Rest::Destroy => break None,
                Rest::Start(answer) => {
                    sandbox.life().change(|runs| (runs.restarts, runs.was_asked) = (0, false));
                    break Some(Some(answer));
                }
                Rest::Stay(answer) => {
                    again = None;
                    sandbox.life().change(|runs| runs.was_asked = true);
                    // The caller may have been dropped.
                    answer.send(Ok(())).ok();
                }
                Rest::Idle if again.is_some_and(|again| again <= Instant::now()) => {
                    owner.happen(Event::Start);
                    sandbox.life().change(|runs| runs.restarts += 1);
                    break Some(None);
                }
                Rest::Idle => end_reading(sandbox, reader.take()).await,
                Rest::Read(answer) => {
                    let mut made = Ok(());
                    if reader.is_none() {
                        made = self.reader(home).await.map(|made| {
                            sandbox.set_reader(Some(made.lease.clone()));
                            reader = Some(made);
                        });
                    }
                    answer.send(made.map_err(ControlError::Failed)).ok();
                }
            }
        };
        sandbox.life().change(|runs| runs.restarting = false);
        end_reading(sandbox, reader.take()).await;
        started
    }

    /// Starts the persistent sandboxes whose restart policy asks for it, as a server does when it starts.
    ///
    /// ```no_run
    /// # async fn example(options: bouvet_host::HostOptions) -> Result<(), Box<dyn std::error::Error>> {
    /// let host = bouvet_host::Host::start(options).await?;
    /// host.start_kept();
    /// # Ok(()) }
    /// ```
    pub fn start_kept(&self) {
        let sandboxes: Vec<_> = self.registry().sandboxes.values().cloned().collect();
        let wants = |sandbox: &Sandbox| {
            let policy = Restart::parse(&sandbox.config().restart).unwrap_or_default();
            let is_down = matches!(sandbox.state(), State::Stopped(_) | State::Failed(_));
            is_down && policy.starts_with_host(sandbox.life().runs().was_asked)
        };
        for sandbox in sandboxes.into_iter().filter(wants) {
            self.0.tasks.spawn(async move {
                // Why it did not start is in the log, and in its state.
                sandbox.start().await.ok();
            });
        }
    }

    /// Calls a sandbox something else. Its host name stays until it is made again.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// host.rename(&host.find("web")?, "web-old")?;
    /// # Ok(()) }
    /// ```
    pub fn rename(&self, sandbox: &Sandbox, name: &str) -> Result<(), CreateError> {
        check_name("name", name)?;
        let registry = self.registry();
        if sandbox.name() != name {
            registry.check_name(name)?;
        }
        let config = BoxConfig { name: name.to_owned(), ..sandbox.config().clone() };
        if let Some(boxes) = self.0.boxes.as_ref().filter(|_| config.persistent) {
            boxes::keep_name(&boxes.dir_of(sandbox.id()), name)?;
        }
        if let Some(network) = sandbox.network() {
            network.set_names(network::names(&config, sandbox.id()));
        }
        sandbox.life().rename(name.to_owned());
        Ok(())
    }

    /// Where the disk of a sandbox is while it is stopped.
    pub(super) fn rest_disk(&self, id: SandboxId) -> PathBuf {
        self.0.dir.join(format!("{id}.ext4"))
    }

    /// Boots a VM that serves the files of a stopped sandbox.
    async fn reader(&self, home: &mut Home) -> Result<Reader, String> {
        let permit = self.0.readers.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            format!("files of {MAX_READERS} stopped sandboxes are being read, which is the limit")
        })?;
        self.settle(home).await.map_err(|error| crate::chain(&error))?;
        let disk = home.kept.as_ref().map_or(home.rest_disk.as_path(), Kept::scratch);
        if !disk.exists() {
            return Err("the sandbox is stopped, and its disk was not kept".into());
        }
        let _turn = self.0.starts.acquire().await.map_err(|_closed| CreateError::ShuttingDown.to_string())?;
        let rootfs = home.ground.as_ref().map_or(&self.0.base, |ground| &ground.rootfs);
        let site = self.site(home.slot, rootfs);
        let wanted = Wanted {
            id: home.id,
            blueprint: &home.blueprint,
            journals: home.journals.clone(),
            network: home.network.as_ref(),
        };
        let live = create::reader(site, &wanted, disk).await;
        let live = live.map_err(|error| crate::chain(&error))?;
        let lease = Lease::new(live.link.client(), home.kept.is_some());
        Ok(Reader { live, lease, _permit: permit })
    }
}

/// Whether a sandbox that came down is started again by itself. One that was never up is not.
pub(super) fn wants_restart(sandbox: &Sandbox, policy: Restart, was_up: bool) -> bool {
    let runs = sandbox.life().runs();
    let failed = match sandbox.state() {
        State::Stopped(stop) => stop.exit_code != 0,
        State::Failed(_) => true,
        _ => return false,
    };
    (was_up || runs.restarts > 0) && policy.wants(failed, runs.was_asked, runs.restarts)
}

/// Waits for `idle`; for ever, where there is none.
async fn maybe(idle: Option<impl Future<Output = ()>>) {
    match idle {
        Some(idle) => idle.await,
        None => std::future::pending().await,
    }
}

/// Ends the VM that serves files of a stopped sandbox. What was written to a persistent one is on its disk then.
async fn end_reading(sandbox: &Sandbox, reader: Option<Reader>) {
    let Some(Reader { live, lease, .. }) = reader else { return };
    sandbox.set_reader(None);
    if let Err(error) = lease.sync().await {
        warn!(sandbox = %sandbox.id(), %error, "what was copied into a stopped sandbox may be lost");
    }
    owner::release(live).await;
}
