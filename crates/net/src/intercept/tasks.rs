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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn tasks_end_with_what_they_are_for() {
        let tasks = Tasks::default();
        let end = tasks.ended_by_drop();
        let (alive, ended) = oneshot::channel::<()>();
        let kept = tasks.clone();
        tasks.execute(async move {
            let _held = (alive, kept);
            std::future::pending::<()>().await;
        });
        drop((tasks, end));
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), ended).await;
        ended.expect("it ends").expect_err("it was dropped");
    }

    #[tokio::test]
    async fn tasks_that_have_ended_take_no_room() {
        let tasks = Tasks::default();
        for _ in 0..100 {
            let (done, is_done) = oneshot::channel();
            tasks.execute(async move { done.send(()).expect("awaited") });
            is_done.await.expect("it runs");
            tokio::task::yield_now().await;
        }
        assert!(tasks.0.lock().unwrap().len() <= 2);
    }
}
