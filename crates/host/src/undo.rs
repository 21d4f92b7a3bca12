//! What to release, collected while acquiring.

use std::io;

use tracing::warn;

type Release = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A stack of releases. Each thing acquired pushes its own; they run in reverse, once, when the stack is
/// dropped, so that a failure at any step of an acquisition leaves nothing behind.
#[derive(Default)]
pub(crate) struct Undo(Vec<(&'static str, Release)>);

impl Undo {
    /// Adds the release of `what`, which later releases may still need.
    pub(crate) fn push(
        &mut self,
        what: &'static str,
        release: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        self.0.push((what, Box::new(release)));
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some((what, release)) = self.0.pop() {
            if let Err(error) = release() {
                warn!(what, %error, "could not release");
            }
        }
    }
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(what, _)| what)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn releases_run_in_reverse_and_past_failures() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for number in 0..3 {
            let order = order.clone();
            undo.push("thing", move || {
                order.lock().unwrap().push(number);
                if number == 1 { Err(io::Error::other("stuck")) } else { Ok(()) }
            });
        }
        drop(undo);
        assert_eq!(*order.lock().unwrap(), [2, 1, 0]);
    }
}
