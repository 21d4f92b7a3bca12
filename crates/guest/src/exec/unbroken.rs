//! Starts that nobody waits for any more.

use tonic::Status;

/// Waits for `start`, which goes on to its end when this is dropped: a process that another thread is about to start
/// cannot be killed yet. What the start then comes to is dropped, and so killed.
pub(super) async fn unbroken<T: Send + 'static>(
    start: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let started = tokio::spawn(start).await;
    started.map_err(|error| Status::internal(format!("a start broke off: {error}")))?
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use bouvet_wire::v1;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    use super::super::{Executor, Run};

    /// The fewest pieces of work that a start leaves to another thread: its directory, its environment, its process.
    const PIECES: usize = 3;
    /// How often a task runs until it can only wait for the other thread.
    const TURNS: usize = 100;

    /// Keeps the only thread for blocking work busy until the sender is dropped. Whatever came before it has been done
    /// when the receiver has an answer.
    fn gate() -> (Sender<()>, oneshot::Receiver<()>) {
        let (open, opened) = channel::<()>();
        let (reach, reached) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            reach.send(()).ok();
            opened.recv().ok();
        });
        (open, reached)
    }

    /// Whether a process has `marker` within its arguments.
    fn runs(marker: &str) -> bool {
        let lines = fs::read_dir("/proc").unwrap().flatten();
        let mut lines = lines.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.any(|line| line.windows(marker.len()).any(|part| part == marker.as_bytes()))
    }

    /// Gives up the start of a program when the other thread has done `pieces` of it. Whether it was under way then.
    async fn given_up_after(pieces: usize) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let executor = Arc::new(Executor::new(dir.path(), &dir.path().join("run"), None).unwrap());
        // As with a volume, everything is left to the other thread.
        let _volume = executor.mounts().occupy();
        let marker = format!("marker-{}-{pieces}", dir.path().file_name().unwrap().display());
        let source = format!("sleep 1000; : {marker}").into_bytes();
        let start = v1::ExecStart { program: v1::Program::Command.into(), ..v1::ExecStart::default() };

        let (mut open, reached) = gate();
        reached.await.unwrap();
        let run = tokio::spawn(Run::begin(executor.clone(), start, source));
        for _ in 0..pieces {
            for _ in 0..TURNS {
                yield_now().await;
            }
            let (next, reached) = gate();
            drop(std::mem::replace(&mut open, next));
            reached.await.unwrap();
        }
        for _ in 0..TURNS {
            yield_now().await;
        }
        run.abort();
        let was_under_way = run.await.is_err();
        drop(open);
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        let ended = async {
            while Arc::strong_count(&executor) > 1 || runs(&marker) {
                yield_now().await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        assert!(
            ended.is_ok(),
            "the program outlives its caller, who left after {pieces} pieces of its start"
        );
        was_under_way
    }

    #[test]
    fn start_given_up_anywhere_leaves_no_program() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            let mut pieces = 0;
            while given_up_after(pieces).await {
                pieces += 1;
            }
            assert!(pieces >= PIECES, "it was given up at {pieces} points only");
        });
    }
}
