//! Sandboxes without a VM on their host: until when they rest, and their names.

use std::time::Duration;

use tokio::time::Instant;

use super::life::Home;
use super::reader::{Changed, Reading};
use super::{CreateError, Host};
use crate::boxconfig::BoxConfig;
use crate::boxconfig::fresh::check_new_name;
use crate::boxconfig::restart::Restart;
use crate::boxes;
use crate::network;
use crate::sandbox::Sandbox;
use crate::sandbox::order::Answer;
use crate::sandbox::owner::{self, Owner, Rest};
use crate::sandbox::state::{Event, State};

/// What ends the rest of a sandbox, or its wait for an order.
enum Woken {
    Files(Changed),
    /// It is to be started again by itself.
    Due,
}

impl Host {
    /// Waits until a sandbox without a VM is to be started, by whom is returned, or by itself after `again`. Serves its
    /// files meanwhile. `None`: it is destroyed.
    pub(super) async fn rest(
        &self,
        sandbox: &Sandbox,
        owner: &mut Owner,
        home: &Home,
        again: Option<Duration>,
    ) -> Option<Option<Answer>> {
        let mut files = Reading::default();
        let mut again = again.map(|pause| Instant::now() + pause);
        let started = loop {
            owner.runs.change(|runs| runs.restarting = again.is_some());
            let woken = async {
                tokio::select! {
                    changed = files.changed(sandbox) => Woken::Files(changed),
                    () = owner::until(again) => Woken::Due,
                }
            };
            match owner.rest(woken).await {
                Rest::Destroy => break None,
                Rest::Start(answer) => {
                    owner.runs.change(|runs| (runs.restarts, runs.was_asked) = (0, false));
                    break Some(Some(answer));
                }
                Rest::Stop(answer) => {
                    again = None;
                    owner.runs.change(|runs| (runs.restarting, runs.was_asked) = (false, true));
                    // A host that starts later must know it too.
                    home.save(sandbox);
                    answer.send(Ok(())).ok();
                }
                Rest::Close(answer) => {
                    again = None;
                    answer.send(Ok(())).ok();
                }
                Rest::Read(answer) => files.open(self, home, answer),
                Rest::Woken(Woken::Files(changed)) => files.advance(sandbox, home, changed).await,
                Rest::Woken(Woken::Due) => {
                    owner.happen(Event::Start);
                    owner.runs.change(|runs| runs.restarts += 1);
                    break Some(None);
                }
            }
        };
        owner.runs.change(|runs| runs.restarting = false);
        files.close(sandbox, home).await;
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
    /// host.rename(&host.find("web")?, "web-old").await?;
    /// # Ok(()) }
    /// ```
    pub async fn rename(&self, sandbox: &Sandbox, name: &str) -> Result<(), CreateError> {
        check_new_name(name)?;
        let (host, sandbox, name) = (self.clone(), sandbox.clone(), name.to_owned());
        // In a task of its own: what is written must also be known, although the caller may go away.
        let renamed = self.0.tasks.spawn(async move { host.rename_now(&sandbox, name).await });
        renamed.await.unwrap_or(Err(CreateError::ShuttingDown))
    }

    async fn rename_now(&self, sandbox: &Sandbox, name: String) -> Result<(), CreateError> {
        let _one_at_a_time = self.0.renaming.lock().await;
        if sandbox.name() != name {
            self.registry().reserve_name(&name)?;
        }
        let config = BoxConfig { name: name.clone(), ..sandbox.config().clone() };
        let kept = match self.0.boxes.as_ref().filter(|_| config.persistent) {
            Some(boxes) => {
                let (dir, name) = (boxes.dir_of(sandbox.id()), name.clone());
                // Without the registry's lock: a slow disk must not hold up all other sandboxes.
                let kept = tokio::task::spawn_blocking(move || boxes::keep_name(&dir, &name)).await;
                kept.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            }
            None => Ok(()),
        };
        let mut registry = self.registry();
        registry.release_name(&name);
        kept?;
        if let Some(network) = sandbox.network() {
            network.set_names(network::names(&config, sandbox.id()));
        }
        sandbox.life().rename(name);
        Ok(())
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
