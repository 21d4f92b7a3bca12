//! Connections to where a program of a sandbox listens, through the link: on every engine, and without a network.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bouvet_wire::limits::MAX_CONNECTIONS;
use bouvet_wire::v1::{self, connect_input::Input, connect_output::Output};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
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
///
/// ```no_run
/// use bouvet_host::ConnectError;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.connect_sidecar().await {
///     Ok(_connection) => println!("it takes orders"),
///     Err(ConnectError::NotListening(why)) => println!("not yet: {why}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
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
            Code::Unavailable if from_guest => Self::NotListening(status.message().to_owned()),
            // One that was closed just now may not be closed there yet.
            Code::ResourceExhausted if from_guest => Self::TooMany(MAX_CONNECTIONS),
            _ => Self::Link(crate::chain(&status)),
        }
    }
}

/// How long what was written is still delivered once nobody holds the connection any more.
const LINGER: Duration = Duration::from_secs(10);

/// A connection to a program in a sandbox: what is written the program reads, and the other way round. Each direction
/// ends by itself. One that breaks is an error of whoever reads, not an end. Dropping it closes both.
///
/// ```no_run
/// use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut control = BufReader::new(sandbox.connect_sidecar().await?);
/// control.write_all(b"allow example.org\n").await?;
/// let mut answer = String::new();
/// control.read_line(&mut answer).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Tunnel {
    stream: DuplexStream,
    broken: Arc<AtomicBool>,
    _held: DropGuard,
}

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
        let (broken, held) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (breaks, dropped) = (broken.clone(), held.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let (reader, mut writer) = tokio::io::split(theirs);
            let pass = async {
                // What breaks ends both directions. The writer outlives the word of it: its end is what a reader sees.
                let passed = tokio::try_join!(upload(reader, input), download(outputs, &mut writer));
                if let Err(Broken) = passed {
                    breaks.store(true, Ordering::Release);
                }
            };
            tokio::select! {
                () = pass => {}
                // A guest that does not end it keeps nothing here.
                () = async { dropped.cancelled().await; tokio::time::sleep(LINGER).await } => {}
            }
        });
        Ok(Self { stream: ours, broken, _held: held.drop_guard() })
    }
}

fn message(input: Input) -> v1::ConnectInput {
    v1::ConnectInput { input: Some(input) }
}

async fn upload(
    mut reader: impl AsyncRead + Unpin,
    input: mpsc::Sender<v1::ConnectInput>,
) -> Result<(), Broken> {
    loop {
        let mut part = BytesMut::with_capacity(PART_BYTES);
        match reader.read_buf(&mut part).await {
            Ok(0) | Err(_) => return Ok(()),
            // The program reads no more, which is no error.
            Ok(_) if input.send(message(Input::Data(part.freeze()))).await.is_err() => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// A direction ended before its end.
struct Broken;

/// What the program sends, until it or whoever reads it here has enough.
async fn download(
    mut outputs: Streaming<v1::ConnectOutput>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Broken> {
    while let Ok(Some(message)) = outputs.message().await {
        match message.output {
            Some(Output::Data(data)) => match writer.write_all(&data).await {
                Ok(()) => {}
                // Nobody reads it any more.
                Err(_) => return Ok(()),
            },
            Some(Output::Ended(_)) => {
                // Whoever is gone needs no end.
                writer.shutdown().await.ok();
                // The other direction goes on until the guest has it whole. More it has not to say.
                outputs.message().await.ok();
                return Ok(());
            }
            Some(Output::Connected(_)) | None => break,
        }
    }
    Err(Broken)
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let is_end = buf.filled().len() == before && buf.remaining() > 0;
        match is_end && self.broken.load(Ordering::Acquire) {
            true => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
