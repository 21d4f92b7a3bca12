//! Bounded output: the head of a stream goes out as it comes, of the rest the tail is kept to the end.
//!
//! A program that prints without end thus costs the link and the guest a fixed amount, and its reader sees
//! both how it began and how it ended.

use std::time::Duration;

use bouvet_wire::v1::exec_output::Output;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;

use super::{Answer, send};

const READ_BYTES: usize = 32 * 1024;
/// Reads after the stop: enough for what a pipe can hold (64 KiB), too few to follow a process that never
/// stops printing.
const MAX_LATE_READS: u32 = 4;

/// What is left of a stream beyond its head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) bytes: Vec<u8>,
    pub(super) dropped_bytes: u64,
}

impl Tail {
    /// Appends `data`, and drops from the front what is over twice the limit: each byte is moved at most
    /// once per `limit` bytes of input.
    pub(super) fn push(&mut self, data: &[u8], limit: usize) {
        self.bytes.extend_from_slice(data);
        if self.bytes.len() > 2 * limit {
            self.trim(limit);
        }
    }

    /// The last `limit` bytes.
    pub(super) fn trimmed(mut self, limit: usize) -> Self {
        self.trim(limit);
        self
    }

    fn trim(&mut self, limit: usize) {
        let over = self.bytes.len().saturating_sub(limit);
        self.bytes.drain(..over);
        self.dropped_bytes += over as u64;
    }
}

/// Reads one stream of a program.
#[derive(Debug)]
pub(super) struct Capture {
    tail: oneshot::Receiver<Tail>,
    stop: oneshot::Sender<()>,
}

impl Capture {
    /// Reads `stream` in the background; its head goes to `answer` wrapped by `wrap`.
    pub(super) fn start<R>(
        stream: Option<R>,
        (head_limit, tail_limit): (usize, usize),
        answer: Answer,
        wrap: fn(Bytes) -> Output,
    ) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let (done, tail) = oneshot::channel();
        tokio::spawn(async move {
            let Some(mut stream) = stream else { return };
            let mut bounds = Bounds { head_left: head_limit, tail_limit, tail: Tail::default() };
            bounds.read(&mut stream, stopped, answer, wrap).await;
            bounds.tail.trim(tail_limit);
            // Nobody waits when the call was given up.
            done.send(bounds.tail).ok();
            // A background process that prints must not die of it (SIGPIPE) because its command is over.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
        });
        Self { tail, stop }
    }

    /// What is left once the stream has ended. Processes that the program left behind may hold it open for
    /// ever: they get `patience`, then only what is there already is read.
    pub(super) async fn finish(mut self, patience: Duration) -> Tail {
        if let Ok(tail) = tokio::time::timeout(patience, &mut self.tail).await {
            return tail.unwrap_or_default();
        }
        // The reader may have ended this very moment; then there is nothing to stop.
        self.stop.send(()).ok();
        self.tail.await.unwrap_or_default()
    }
}

struct Bounds {
    head_left: usize,
    tail_limit: usize,
    tail: Tail,
}

impl Bounds {
    /// Reads until the stream ends, or `stopped` and nothing more is there.
    async fn read<R>(
        &mut self,
        stream: &mut R,
        mut stopped: oneshot::Receiver<()>,
        answer: Answer,
        wrap: fn(Bytes) -> Output,
    ) where
        R: AsyncRead + Unpin,
    {
        let mut late_reads = 0;
        while late_reads < MAX_LATE_READS {
            let mut data = BytesMut::with_capacity(READ_BYTES);
            let read = tokio::select! {
                biased;
                _ = &mut stopped, if !stopped.is_terminated() => continue,
                read = stream.read_buf(&mut data) => read,
                // Stopped, and nothing there to read at once.
                () = std::future::ready(()), if stopped.is_terminated() => return,
            };
            // A pipe's read fails only when it was closed under us.
            if read.unwrap_or(0) == 0 || self.take(data.freeze(), &answer, wrap).await.is_err() {
                return;
            }
            late_reads += u32::from(stopped.is_terminated());
        }
    }

    async fn take(&mut self, mut data: Bytes, answer: &Answer, wrap: fn(Bytes) -> Output) -> Result<(), ()> {
        let head = data.split_to(self.head_left.min(data.len()));
        self.head_left -= head.len();
        if !head.is_empty() {
            send(answer, wrap(head)).await?;
        }
        if !data.is_empty() {
            self.tail.push(&data, self.tail_limit);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use bouvet_wire::v1;

    use super::*;

    proptest! {
        /// Head, dropped and tail always add up to what was printed, in order.
        #[test]
        fn nothing_is_lost_uncounted(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
            head in 0usize..500,
            tail in 0usize..500,
        ) {
            let printed = pieces.concat();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (sent, left) = runtime.block_on(async {
                let (answer, mut answers) = tokio::sync::mpsc::channel(64);
                let stream = tokio_stream_of(printed.clone());
                let capture = Capture::start(Some(stream), (head, tail), answer, Output::Stdout);
                let left = capture.finish(Duration::from_secs(10)).await;
                let mut sent = Vec::new();
                while let Some(Ok(v1::ExecOutput { output: Some(Output::Stdout(data)) })) = answers.recv().await {
                    sent.extend_from_slice(&data);
                }
                (sent, left)
            });
            prop_assert_eq!(&sent[..], &printed[..head.min(printed.len())]);
            prop_assert_eq!(&left.bytes[..], &printed[printed.len() - left.bytes.len()..]);
            prop_assert!(left.bytes.len() <= tail);
            prop_assert_eq!(sent.len() as u64 + left.dropped_bytes + left.bytes.len() as u64, printed.len() as u64);
        }
    }

    fn tokio_stream_of(bytes: Vec<u8>) -> std::io::Cursor<Vec<u8>> {
        std::io::Cursor::new(bytes)
    }
}
