//! Live output, for callers that asked for progress.

use std::time::Duration;

use bouvet_host::{Host, ResourceConfig};
use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::{Peer, RequestContext};
use tokio::time::Instant;

use crate::command::FIRST_OF_ITS_SIZE;

/// The least time between two notifications; output in between is sent together.
const INTERVAL: Duration = Duration::from_millis(100);
/// The most time between two: many clients give a call up after a minute of silence.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Interval at which a long creation is checked for its cause.
const TEMPLATE_POLL: Duration = Duration::from_millis(500);
/// Output in one notification. The result has it all; this is to watch.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Tells a caller how its program is doing. Silent unless the caller sent a progress token.
#[derive(Debug)]
pub(super) struct Progress {
    caller: Option<(Peer<RoleServer>, ProgressToken)>,
    started: Instant,
    last_sent: Instant,
    waiting: Vec<u8>,
    sent: f64,
}

impl Progress {
    pub(super) fn new(context: &RequestContext<RoleServer>) -> Self {
        let caller = context.meta.get_progress_token().map(|token| (context.peer.clone(), token));
        let now = Instant::now();
        Self { caller, started: now, last_sent: now, waiting: Vec::new(), sent: 0.0 }
    }

    /// Waits for a sandbox with `resources`, and tells the caller why that takes long.
    pub(super) async fn while_made<T>(
        mut self,
        host: &Host,
        resources: &ResourceConfig,
        made: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(made);
        let mut is_told = self.caller.is_none();
        loop {
            tokio::select! {
                made = &mut made => return made,
                () = tokio::time::sleep(TEMPLATE_POLL), if !is_told => {
                    if host.is_making_template(resources) {
                        is_told = true;
                        self.notify(FIRST_OF_ITS_SIZE.to_owned()).await;
                    }
                }
                () = until(self.due()) => {
                    let waited = self.started.elapsed().as_secs();
                    self.notify(format!("the sandbox is still being made after {waited} s")).await;
                }
            }
        }
    }

    /// Takes what the program printed.
    pub(super) fn output(&mut self, bytes: &[u8]) {
        if self.caller.is_some() {
            self.waiting.extend_from_slice(bytes);
            let over = self.waiting.len().saturating_sub(MAX_MESSAGE_BYTES);
            self.waiting.drain(..over);
        }
    }

    /// When [`Progress::send`] has something to do; `None` for callers who want nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        self.caller.as_ref()?;
        Some(self.last_sent + if self.waiting.is_empty() { HEARTBEAT } else { INTERVAL })
    }

    /// Sends what is waiting, or that the program still runs.
    pub(super) async fn send(&mut self) {
        let message = if self.waiting.is_empty() {
            format!("still running after {} s", self.started.elapsed().as_secs())
        } else {
            String::from_utf8_lossy(&std::mem::take(&mut self.waiting)).into_owned()
        };
        self.notify(message).await;
    }

    async fn notify(&mut self, message: String) {
        let Some((peer, token)) = &self.caller else { return };
        self.sent += 1.0;
        self.last_sent = Instant::now();
        let progress = ProgressNotificationParam::new(token.clone(), self.sent).with_message(message);
        // A caller that cannot be told any more has gone, and its call is cancelled elsewhere.
        peer.notify_progress(progress).await.ok();
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
