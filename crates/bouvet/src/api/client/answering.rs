//! The deadline for the first bytes of a server: the system accepts connections for a server that is stopped.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::OwnedReadHalf;
use tokio::time::{Sleep, sleep};

use super::{CallError, FIRST_ANSWER_TIMEOUT};

/// The socket of a server, and whether the server sent nothing before the deadline.
#[derive(Debug)]
pub(super) struct Silence {
    pub(super) path: PathBuf,
    pub(super) is_over_time: AtomicBool,
}

impl Silence {
    /// The reason for `error`, where that is silence.
    pub(super) fn explain(&self, error: CallError) -> CallError {
        match self.is_over_time.load(Ordering::Relaxed) {
            true => CallError::Silent(self.path.clone()),
            false => error,
        }
    }
}

/// The reading half of a connection, which fails if no byte arrives before the deadline. Later pauses may be of any length.
#[derive(Debug)]
pub(super) struct Answering {
    stream: OwnedReadHalf,
    /// `None` once a byte has arrived.
    deadline: Option<Pin<Box<Sleep>>>,
    silence: Arc<Silence>,
}

impl Answering {
    pub(super) fn new(stream: OwnedReadHalf, silence: Arc<Silence>) -> Self {
        Self { stream, deadline: Some(Box::pin(sleep(FIRST_ANSWER_TIMEOUT))), silence }
    }
}

impl AsyncRead for Answering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            self.deadline = None;
            return Poll::Ready(read);
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        if deadline.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.silence.is_over_time.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::time::Instant;

    use crate::api::client::{CallError, Client, ConnectError, FIRST_ANSWER_TIMEOUT};
    use crate::config::SocketChoice;

    #[tokio::test(start_paused = true)]
    async fn silent_server_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bouvet.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let started = Instant::now();
        let called = match Client::connect(&SocketChoice::At(path.clone())).await {
            Ok(client) => client.get::<serde_json::Value>("/v1/sandboxes").await,
            Err(ConnectError::Call(error)) => Err(error),
            Err(error) => panic!("{error}"),
        };
        assert!(matches!(&called, Err(CallError::Silent(at)) if *at == path), "{called:?}");
        assert_eq!(started.elapsed().as_secs(), FIRST_ANSWER_TIMEOUT.as_secs());
    }
}
