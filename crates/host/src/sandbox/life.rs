//! Mutable facts about a sandbox other than its state: its name, and the times of its runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// When a sandbox ran, and how often it was started again by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Runs {
    /// When it was up last.
    pub(crate) started_at: Option<SystemTime>,
    /// When it came down last.
    pub(crate) finished_at: Option<SystemTime>,
    /// Starts by its restart policy since somebody started it.
    pub(crate) restarts: u32,
    /// Whether somebody stopped it, or sent its main program a signal to end.
    pub(crate) was_asked: bool,
    /// Whether it waits to be started again by itself.
    #[serde(skip)]
    pub(crate) restarting: bool,
}

impl Runs {
    /// Notes that the sandbox is up or down now.
    pub(super) fn pass(&mut self, is_up: bool, is_down: bool) {
        let now = Some(SystemTime::now());
        if is_up {
            (self.started_at, self.restarting) = (now, false);
        }
        if is_down {
            self.finished_at = now;
        }
    }
}

/// The name and the runs of one sandbox, as all who know it have them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life(Arc<Mutex<(String, Runs)>>);

/// Changes the runs of one sandbox. Its owner's task alone has it.
#[derive(Debug)]
pub(crate) struct RunsWriter(Life);

impl RunsWriter {
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Runs)) {
        change(&mut self.0.lock().1);
    }

    pub(crate) fn runs(&self) -> Runs {
        self.0.runs()
    }
}

impl Life {
    pub(crate) fn new(name: String, runs: Runs) -> (Self, RunsWriter) {
        let life = Self(Arc::new(Mutex::new((name, runs))));
        (life.clone(), RunsWriter(life))
    }

    pub(crate) fn name(&self) -> String {
        self.lock().0.clone()
    }

    pub(crate) fn rename(&self, name: String) {
        self.lock().0 = name;
    }

    pub(crate) fn runs(&self) -> Runs {
        self.lock().1.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (String, Runs)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
