//! Tasks that end with the connection that they are for, however it ends.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

/// What starts tasks for HTTP/2.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

/// Ends them when it is dropped.
#[derive(Debug)]
pub(super) struct EndsTasks(Tasks);

impl Tasks {
    pub(super) fn ended_by_drop(&self) -> EndsTasks {
        EndsTasks(self.clone())
    }
}

impl Drop for EndsTasks {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended take room until somebody asks for them.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async {
            task.await;
        });
    }
}
