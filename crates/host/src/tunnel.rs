//! Connections to where a program of a sandbox listens, through the link: on every engine, and without a network.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bouvet_wire::v1::{self, connect_input::Input, connect_output::Output};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::link::Client;
use crate::sandbox::state::Refusal;

/// From the call to the answer that somebody listens. The guest gives up earlier.
const DEADLINE: Duration = Duration::from_secs(30);
/// What waits in each direction for whoever does not read.
const BUFFER_BYTES: usize = 64 * 1024;
/// The largest part that is sent at once.
const PART_BYTES: usize = 32 * 1024;
/// Parts that wait for the link.
const PARTS: usize = 2;

/// Why a program in a sandbox could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The sandbox cannot take it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was made without one.
    #[error("the sandbox has no sidecar")]
    NoSidecar,
    /// As many connections as may be are open.
    #[error("{0} connections into the sandbox are open, which is the limit")]
    TooMany(usize),
    /// Nobody listens there, or not yet.
    #[error("{0}")]
    NotListening(String),
    /// The guest did not answer.
    #[error("the sandbox did not answer within {0:?}")]
    Deadline(Duration),
    /// The link broke, or the guest broke its rules.
    #[error("the sandbox failed while it was connected to: {0}")]
    Link(String),
}

impl From<Status> for ConnectError {
    fn from(status: Status) -> Self {
        // With a cause it comes from our end of the link, not from the guest.
        let from_guest = std::error::Error::source(&status).is_none();
        match status.code() {
            Code::Unavailable | Code::ResourceExhausted if from_guest => {
                Self::NotListening(status.message().to_owned())
            }
            _ => Self::Link(crate::chain(&status)),
        }
    }
}

/// A connection to a program in a sandbox: what is written the program reads, and the other way round. Each direction
/// ends by itself. Dropping it closes both.
#[derive(Debug)]
pub struct Tunnel(DuplexStream);

impl Tunnel {
    /// Connects to `port`, for as long as the permit is good.
    pub(crate) async fn open(
        mut client: Client,
        port: u32,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, ConnectError> {
        let (input, later) = mpsc::channel(PARTS);
        // There is room: nothing was sent yet.
        input.try_send(message(Input::Start(v1::ConnectStart { port }))).ok();
        let begin = async {
            let mut outputs = client.connect(ReceiverStream::new(later)).await?.into_inner();
            match outputs.message().await?.and_then(|message| message.output) {
                Some(Output::Connected(_)) => Ok(outputs),
                _ => Err(ConnectError::Link("it did not say that somebody listens".into())),
            }
        };
        let outputs = tokio::time::timeout(DEADLINE, begin).await;
        let outputs = outputs.map_err(|_| ConnectError::Deadline(DEADLINE))??;
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(theirs);
            tokio::join!(upload(reader, input), download(outputs, writer));
            drop(permit);
        });
        Ok(Self(ours))
    }
}

fn message(input: Input) -> v1::ConnectInput {
    v1::ConnectInput { input: Some(input) }
}

async fn upload(mut reader: impl AsyncRead + Unpin, input: mpsc::Sender<v1::ConnectInput>) {
    loop {
        let mut part = BytesMut::with_capacity(PART_BYTES);
        match reader.read_buf(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(_) if input.send(message(Input::Data(part.freeze()))).await.is_err() => return,
            Ok(_) => {}
        }
    }
}

/// What the program sends, until it or whoever reads it here has enough.
async fn download(mut outputs: Streaming<v1::ConnectOutput>, mut writer: impl AsyncWrite + Unpin) {
    while let Ok(Some(message)) = outputs.message().await {
        match message.output {
            Some(Output::Data(data)) if writer.write_all(&data).await.is_ok() => {}
            Some(Output::Ended(_)) => {
                // Whoever is gone needs no end.
                writer.shutdown().await.ok();
                // The other direction goes on until the guest has it whole.
                while let Ok(Some(_)) = outputs.message().await {}
                return;
            }
            _ => return,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
