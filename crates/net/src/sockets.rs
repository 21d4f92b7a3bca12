//! Sockets of the host that the networks of many sandboxes may have together. A sandbox chooses how many it has made for it;
//! it must not be able to leave the process without any for all else that it does.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::Refusal;

/// A place for each socket. Copies are about the same places.
///
/// ```
/// let sockets = bouvet_net::Sockets::new(1000);
/// assert_eq!(sockets.free(), 1000);
/// ```
#[derive(Debug, Clone)]
pub struct Sockets(Arc<Semaphore>);

impl Sockets {
    /// So many at once.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
    }

    /// How many more there may be now.
    pub fn free(&self) -> usize {
        self.0.available_permits()
    }

    /// A place for one, until it is dropped.
    pub(crate) fn take(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.0.clone().try_acquire_owned().map_err(|_| Refusal::Limit)
    }
}
