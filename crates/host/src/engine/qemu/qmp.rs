//! QEMU's control protocol, QMP: one JSON object a line (docs/interop/qmp-spec.rst in its source). Only what
//! we say is here; events are passed over.
//!
//! A QEMU that was taken over by its guest speaks here too: lines are bounded, and every answer has a deadline.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec};

use crate::engine::EngineError;

const MAX_LINE_BYTES: usize = 64 * 1024;
/// QEMU answers between two pieces of the guest's work; on a busy machine that takes a moment.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why QEMU did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The socket failed.
    #[error("the VMM's control socket failed")]
    Socket(#[source] io::Error),
    /// It said what is not QMP.
    #[error("the VMM answered what is not QMP: {0}")]
    Garbage(String),
    /// It closed the socket: it is gone.
    #[error("the VMM closed its control socket")]
    Closed,
    /// It refused.
    #[error("the VMM refused `{command}`: {reason}")]
    Refused {
        /// What it was told.
        command: &'static str,
        /// What it said.
        reason: String,
    },
    /// It did not answer.
    #[error("the VMM did not answer `{0}` within {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline(&'static str),
}

impl From<QmpError> for EngineError {
    fn from(error: QmpError) -> Self {
        Self::Control(Box::new(error))
    }
}

/// A connection on which QEMU takes commands.
#[derive(Debug)]
pub(super) struct Qmp(Framed<UnixStream, LinesCodec>);

impl Qmp {
    /// Leaves the negotiation behind.
    pub(super) async fn start(stream: UnixStream) -> Result<Self, QmpError> {
        let mut qmp = Self(Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES)));
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs `command` and returns what it returns.
    pub(super) async fn run(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        let answered = async {
            self.0.send(line).await.map_err(|error| QmpError::Socket(io::Error::other(error)))?;
            self.answer(command).await
        };
        tokio::time::timeout(DEADLINE, answered).await.unwrap_or(Err(QmpError::Deadline(command)))
    }

    /// Hands QEMU a descriptor, which it will know as `name`.
    pub(super) async fn give(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        let line = json!({ "execute": "getfd", "arguments": { "fdname": name } }).to_string() + "\n";
        let given = async {
            let socket = self.0.get_ref();
            let send = || send_with_fd(socket.as_fd(), line.as_bytes(), fd);
            socket.async_io(Interest::WRITABLE, send).await.map_err(QmpError::Socket)?;
            self.answer("getfd").await.map(drop)
        };
        tokio::time::timeout(DEADLINE, given).await.unwrap_or(Err(QmpError::Deadline("getfd")))
    }

    async fn answer(&mut self, command: &'static str) -> Result<Value, QmpError> {
        loop {
            let line = self.0.next().await.ok_or(QmpError::Closed)?;
            let line = line.map_err(|error| QmpError::Garbage(error.to_string()))?;
            let mut message: Value =
                serde_json::from_str(&line).map_err(|error| QmpError::Garbage(error.to_string()))?;
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("(no reason given)").to_owned();
                return Err(QmpError::Refused { command, reason });
            }
            // The greeting, or an event.
        }
    }
}

/// One small message: a socket takes it whole or not at all.
fn send_with_fd(socket: BorrowedFd<'_>, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;

    /// A QEMU that reads a command for each of its answers.
    async fn scripted(answers: &[&str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answers: Vec<String> = answers.iter().map(|answer| format!("{answer}\n")).collect();
        tokio::spawn(async move {
            let mut stream = BufReader::new(theirs);
            stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            for answer in answers {
                stream.read_line(&mut String::new()).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        ours
    }

    #[tokio::test]
    async fn answers_are_told_from_events_and_refusals() {
        let answers = [
            r#"{"return": {}}"#,
            "{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"running\"}}",
            r#"{"error": {"class": "GenericError", "desc": "not now"}}"#,
            "nonsense",
        ];
        let mut qmp = Qmp::start(scripted(&answers).await).await.unwrap();
        assert_eq!(qmp.run("query-status", json!({})).await.unwrap()["status"], "running");
        let refused = qmp.run("stop", json!({})).await.unwrap_err();
        assert_eq!(refused.to_string(), "the VMM refused `stop`: not now");
        assert!(matches!(qmp.run("cont", json!({})).await, Err(QmpError::Garbage(_))));
        assert!(matches!(qmp.run("cont", json!({})).await, Err(QmpError::Closed | QmpError::Socket(_))));
    }

    #[tokio::test]
    async fn endless_lines_end() {
        let long = "x".repeat(2 * MAX_LINE_BYTES);
        let error = Qmp::start(scripted(&[&long]).await).await.unwrap_err();
        assert!(matches!(error, QmpError::Garbage(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_descriptor_goes_over() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        tokio::join!(
            async {
                let stream = Framed::new(ours, LinesCodec::new_with_max_length(MAX_LINE_BYTES));
                Qmp(stream).give("state", file.as_fd()).await.unwrap();
            },
            async {
                let mut stream = BufReader::new(theirs);
                stream.get_ref().readable().await.unwrap();
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
                let mut bytes = [0; 1000];
                let mut into = [io::IoSliceMut::new(&mut bytes)];
                let flags = rustix::net::RecvFlags::empty();
                rustix::net::recvmsg(stream.get_ref(), &mut into, &mut control, flags).unwrap();
                assert_eq!(control.drain().count(), 1);
                stream.write_all(b"{\"return\": {}}\n").await.unwrap();
            }
        );
    }
}
