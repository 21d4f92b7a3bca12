//! Which ports of the host lead into sandboxes, and which did.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The ports of TCP that lead into sandboxes of one host, or once did: a page that was loaded from one may outlive it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Led(Arc<Mutex<BTreeSet<u16>>>);

impl Led {
    pub(super) fn add(&self, port: u16) {
        self.ports().insert(port);
    }

    pub(crate) fn has(&self, port: u16) -> bool {
        self.ports().contains(&port)
    }

    fn ports(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
