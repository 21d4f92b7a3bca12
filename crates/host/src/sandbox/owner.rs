//! The task that owns a sandbox, from its creation to its end. It alone changes the sandbox's state.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::SandboxId;
use super::create::Live;
use super::state::{self, Event, State};

/// How long the end of a link waits for the end of its VM, which explains it better.
const PATIENCE: Duration = Duration::from_millis(300);

/// The owner's ends of what a [`super::Sandbox`] holds.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: SandboxId,
    pub(crate) state: watch::Sender<State>,
    pub(crate) destroy: mpsc::Receiver<()>,
}

impl Owner {
    pub(crate) fn happen(&self, event: Event) {
        self.state.send_if_modified(|state| match state::next(state, event) {
            Some(next) => {
                *state = next;
                true
            }
            None => false,
        });
    }

    /// Holds `live` until the sandbox fails, its time is over or it is destroyed; then releases it. Returns
    /// when it was asked to be destroyed, and all that is left to release is its place among the others.
    pub(crate) async fn own(&mut self, mut live: Live, expires: Option<Instant>, lifetime: Duration) {
        self.happen(Event::Ready);
        let failure = tokio::select! {
            // Closed means that nobody can ask any more: the host itself is gone.
            _ = self.destroy.recv() => None,
            reason = live.vm.exited() => Some(reason),
            broken = live.link.broken() => {
                let reason = tokio::time::timeout(PATIENCE, live.vm.exited()).await;
                Some(reason.unwrap_or(broken))
            }
            () = until(expires) => Some(format!("its time of {} s is over", lifetime.as_secs())),
        };
        match failure {
            None => {
                self.happen(Event::Destroy);
                release(live).await;
            }
            Some(reason) => {
                warn!(sandbox = %self.id, %reason, "sandbox failed");
                release(live).await;
                self.happen(Event::Failed(reason));
                self.destroy.recv().await;
                self.happen(Event::Destroy);
            }
        }
        info!(sandbox = %self.id, "sandbox destroyed");
    }
}

async fn release(live: Live) {
    let Live { mut vm, link, undo } = live;
    drop(link);
    vm.stop().await;
    drop(undo);
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
