//! Other ways to stop a sandbox.

use std::time::Duration;

use super::Sandbox;
use super::order::{ControlError, Order, StopOrder};
use crate::exec;

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
        Ok(self.order(Order::Stop(StopOrder { signal: Some(signal), grace })).await?)
    }

    /// Stops it because its host ends: it may be started again by itself later.
    pub(crate) async fn close(&self, grace: Duration) -> Result<(), ControlError> {
        Ok(self.order(Order::Close(grace)).await?)
    }
}
