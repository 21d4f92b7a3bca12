//! Descriptors that all volumes of this process may have together. A guest chooses how many files it opens; it must not
//! be able to leave this process without any for all else that it does.

use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, Rlimit};
use tokio::sync::Semaphore;

/// As many as a process may have at most on most systems (`fs.nr_open`), for where nothing else bounds them.
const MOST: u64 = 1024 * 1024;

/// A place for each of them: half of what this process may have. The limit that it was started with, which is for
/// programs that cannot count further, is raised to the one that it may set itself.
pub(super) fn shared() -> Arc<Semaphore> {
    static BUDGET: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let places = || {
        let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
        let wanted = maximum.unwrap_or(MOST).min(MOST);
        let raised = Rlimit { current: Some(wanted), maximum };
        let has = match rustix::process::setrlimit(Resource::Nofile, raised) {
            Ok(()) => wanted,
            Err(_stays) => current.unwrap_or(MOST),
        };
        usize::try_from(has.min(MOST) / 2).unwrap_or(Semaphore::MAX_PERMITS)
    };
    BUDGET.get_or_init(|| Arc::new(Semaphore::new(places()))).clone()
}
