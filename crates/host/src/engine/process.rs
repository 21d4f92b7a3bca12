//! The process of one VM, whatever VMM it runs.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tracing::warn;

use super::EngineError;
use super::log::Log;
use crate::cgroup::{Cgroup, OutOfMemory};

/// See the module. Killed when it is dropped, but not waited for: see [`Process::stop`].
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stderr: Log,
    console: Log,
    /// Where it is, or soon will be, if VMs have cgroups.
    cgroup: Option<Arc<Cgroup>>,
}

impl Process {
    /// Watches `child`, whose guest's console is `console`, and whose memory `cgroup` limits.
    pub(super) fn new(mut child: Child, console: Log, cgroup: Option<Arc<Cgroup>>) -> Self {
        let stderr = child.stderr.take().map(Log::follow).unwrap_or_default();
        Self { child, stderr, console, cgroup }
    }

    /// Its id, until it has been waited for.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Moves it into `cgroup`. What is returned holds nothing of `self`, so that it may be waited for meanwhile.
    pub(super) fn enter<'a>(
        &self,
        cgroup: &'a Cgroup,
    ) -> impl Future<Output = Result<(), EngineError>> + use<'a> {
        let pid = self.id();
        async move {
            // Never 0, by which cgroups mean whoever writes: this process itself.
            let entered = match pid {
                Some(pid) => cgroup.admit(pid).await,
                None => Err(rustix::io::Errno::SRCH.into()),
            };
            entered.map_err(|error| EngineError::Prepare("the VM's cgroup", error))
        }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Waits until it has ended by itself, and says what is known of the reason: see [`super::Vm::exited`].
    pub(super) async fn exited(&mut self) -> String {
        let status = match self.ended().await {
            Ok(status) => status.to_string(),
            Err(error) => return format!("the VM cannot be watched: {error}"),
        };
        if let Some(reason) = self.out_of_memory() {
            warn!(%status, %reason, "a VM ended");
            return reason;
        }
        let said = self.last_words().await;
        // A kernel that dies says why in many lines, too many for whoever called.
        warn!(%status, console = %self.console.last_lines(150), "a VM ended");
        match said.is_empty() {
            true => format!("the VM ended ({status})"),
            false => format!("the VM ended ({status}); the last it said: {said}"),
        }
    }

    /// Why the kernel has killed it for lack of memory, if it has.
    fn out_of_memory(&self) -> Option<String> {
        match self.cgroup.as_ref()?.out_of_memory() {
            Ok(None) => None,
            Ok(Some(OutOfMemory::Limit(mb))) => Some(format!(
                "the sandbox's VM was killed: it used more memory than its limit of {mb} MiB on this machine"
            )),
            Ok(Some(OutOfMemory::Host)) => {
                Some("the sandbox's VM was killed: this machine has no memory left".to_owned())
            }
            Err(error) => {
                warn!(%error, "could not read why a VM ended");
                None
            }
        }
    }

    /// The last that it and its guest said; it must have ended.
    pub(super) async fn last_words(&self) -> String {
        tokio::join!(self.stderr.settle(), self.console.settle());
        let said = [self.stderr.last_lines(3), self.console.last_lines(3)];
        said.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" | ")
    }

    /// Sends it `signal`.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), EngineError> {
        let pid = self.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        // It is our child: until we have waited for it, no other process has its id.
        let sent =
            pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| rustix::process::kill_process(pid, signal));
        sent.map_err(|error| EngineError::Signal(error.into()))
    }

    /// Ends it, and returns when it is gone.
    pub(super) async fn stop(&mut self) {
        self.child.kill().await.ok(); // fails only for a process that is gone
    }
}
