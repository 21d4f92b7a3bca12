//! Descriptors that all volumes of this process may have together. A guest chooses how many files it opens; it must not
//! be able to leave this process without any for all else that it does.

use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;

use crate::descriptors;

/// A place for each of them.
pub(super) fn shared() -> Arc<Semaphore> {
    static BUDGET: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let places = || descriptors::share().min(Semaphore::MAX_PERMITS);
    BUDGET.get_or_init(|| Arc::new(Semaphore::new(places()))).clone()
}
