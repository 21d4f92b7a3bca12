//! Other ways to stop a sandbox.

use std::time::Duration;

use super::Sandbox;
use super::owner::{ControlError, Order};
use super::state::Refusal;
use crate::exec::{self, ExecError};

impl Sandbox {
    /// Like [`Sandbox::stop`], and asks the main program by another signal than its image's.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.stop_by("INT".parse()?, Duration::from_secs(10)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn stop_by(&self, signal: exec::Signal, grace: Duration) -> Result<(), ControlError> {
        // It is not started again by itself then, however it ends.
        self.0.life.change(|runs| runs.was_asked = true);
        match self.signal(signal).await {
            // Without a main program there is nobody to ask.
            Ok(()) | Err(ExecError::Refused(Refusal::NoMain)) => {}
            Err(ExecError::Refused(refusal)) => return Err(refusal.into()),
            Err(error) => return Err(ControlError::Failed(crate::chain(&error))),
        }
        match tokio::time::timeout(grace, self.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(refusal.into()),
            Err(_) => match self.stop(Duration::ZERO).await {
                // It ended in the meantime.
                Err(ControlError::Refused(Refusal::Stopping | Refusal::Stopped(_))) => Ok(()),
                stopped => stopped,
            },
        }
    }

    /// Stops it because its host ends: it may be started again by itself later.
    pub(crate) async fn close(&self, grace: Duration) -> Result<(), ControlError> {
        self.order(Order::Close(grace)).await
    }
}
