//! Connections to where a program of a sandbox listens, through the link: on every engine, and without a network.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bouvet_wire::limits::{MAX_CONNECTIONS, TUNNEL_WINDOW_BYTES};
use bouvet_wire::v1::{self, connect_input::Input, connect_output::Output};
use bytes::BytesMut;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
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
/// Bytes that are passed on before the guest is told.
const TAKEN_BYTES: usize = TUNNEL_WINDOW_BYTES / 2;
/// How long a guest has to end what was given up, or is complete, before the call is cut off. Cutting one off whose
/// answers are still on their way is counted against a link by HTTP/2, and ends it in the long run.
const FAREWELL: Duration = Duration::from_secs(10);

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
    #[error("no answer from the sandbox for {seconds} s", seconds = .0.as_secs())]
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
            _ => Self::Link(crate::link::said(&status)),
        }
    }
}

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
        client: Client,
        port: u32,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, ConnectError> {
        let mut call = Call::begin(client, v1::ConnectStart { port, tcp: false });
        call.opened().await?;
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        let (broken, held) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (breaks, dropped) = (broken.clone(), held.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let (reader, mut writer) = tokio::io::split(theirs);
            let over = CancellationToken::new();
            let linger = async {
                dropped.cancelled().await;
                // What was written is still delivered.
                tokio::time::sleep(FAREWELL).await;
                over.cancel();
                std::future::pending().await
            };
            let passed = tokio::select! {
                passed = call.carry(reader, &mut writer, Unread::Discarded, &over) => passed,
                () = linger => return,
            };
            // The writer outlives the word of it: its end is what a reader sees.
            breaks.store(passed.is_err(), Ordering::Release);
            drop(writer);
            call.farewell().await;
        });
        Ok(Self { stream: ours, broken, _held: held.drop_guard() })
    }
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

/// A call that carries one connection.
pub(crate) struct Call {
    /// `None` once it is given up.
    input: Option<mpsc::Sender<v1::ConnectInput>>,
    answer: Answer,
}

enum Answer {
    Coming(BoxFuture<'static, Result<Streaming<v1::ConnectOutput>, ConnectError>>),
    Came(Box<Streaming<v1::ConnectOutput>>),
    /// There are no more.
    Over,
}

/// What becomes of what comes from the program, once nobody reads it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It breaks the connection off.
    Breaks,
    /// It is thrown away, and the other direction goes on.
    Discarded,
}

impl Call {
    /// Asks the guest to connect. Bytes may be sent at once.
    pub(crate) fn begin(mut client: Client, start: v1::ConnectStart) -> Self {
        let (input, later) = mpsc::channel(PARTS);
        // There is room: nothing was sent yet.
        input.try_send(message(Input::Start(start))).ok();
        let connected = async move {
            let mut outputs = client.connect(ReceiverStream::new(later)).await?.into_inner();
            match outputs.message().await?.and_then(|message| message.output) {
                Some(Output::Connected(_)) => Ok(outputs),
                _ => Err(ConnectError::Link("it did not say that somebody listens".into())),
            }
        };
        let answer = async move {
            let connected = tokio::time::timeout(DEADLINE, connected).await;
            connected.map_err(|_| ConnectError::Deadline(DEADLINE))?
        };
        Self { input: Some(input), answer: Answer::Coming(Box::pin(answer)) }
    }

    /// Waits until somebody has answered it.
    async fn opened(&mut self) -> Result<(), ConnectError> {
        if let Answer::Coming(answer) = &mut self.answer {
            let answer = answer.await;
            self.answer = Answer::Over;
            self.answer = Answer::Came(Box::new(answer?));
        }
        Ok(())
    }

    /// Passes bytes both ways, until both directions have ended, something breaks or it is `over`. Says whether they
    /// ended.
    pub(crate) async fn carry(
        &mut self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
        unread: Unread,
        over: &CancellationToken,
    ) -> Result<(), ConnectError> {
        let Some(input) = self.input.clone() else { return Err(broken()) };
        let allowed = Semaphore::new(TUNNEL_WINDOW_BYTES);
        let up = async {
            upload(reader, &input, &allowed).await?;
            // What the program sends may go on.
            std::future::pending().await
        };
        let down = async {
            self.opened().await?;
            let Answer::Came(outputs) = &mut self.answer else { return Err(broken()) };
            let (buffer, waiting) = tokio::io::duplex(TUNNEL_WINDOW_BYTES);
            let received = receive(outputs, buffer, &allowed);
            tokio::try_join!(received, deliver(waiting, writer, unread, &input)).map(drop)
        };
        let passed = tokio::select! {
            passed = down => passed,
            passed = up => passed,
            () = over.cancelled() => Err(broken()),
        };
        if passed.is_ok() {
            self.answer = Answer::Over;
        }
        passed
    }

    /// Gives it up if it is not at its end, and waits until the guest has seen that. Whose bytes it carried may be gone
    /// before.
    pub(crate) async fn farewell(mut self) {
        // Its end is the word to the guest.
        self.input = None;
        let rest = async {
            self.opened().await.ok()?;
            let Answer::Came(outputs) = &mut self.answer else { return None };
            while outputs.message().await.ok()?.is_some() {}
            None::<()>
        };
        // It is cut off then.
        tokio::time::timeout(FAREWELL, rest).await.ok();
    }
}

fn broken() -> ConnectError {
    ConnectError::Link("the connection was broken off".into())
}

fn message(input: Input) -> v1::ConnectInput {
    v1::ConnectInput { input: Some(input) }
}

/// Sends what comes from here, to the end of that, as far as the guest has room for it.
async fn upload(
    mut reader: impl AsyncRead + Unpin,
    input: &mpsc::Sender<v1::ConnectInput>,
    allowed: &Semaphore,
) -> Result<(), ConnectError> {
    loop {
        let Ok(first) = allowed.acquire().await else { return Err(broken()) };
        // Only this takes of it.
        let most = (1 + allowed.available_permits()).min(PART_BYTES);
        let mut part = BytesMut::with_capacity(most);
        let length = (&mut reader).take(most as u64).read_buf(&mut part).await.map_err(|_| broken())?;
        let next = match length {
            0 => Input::Ended(v1::Ended {}),
            _ => {
                first.forget();
                allowed.forget_permits(length - 1);
                Input::Data(part.freeze())
            }
        };
        // Why the guest takes no more, its answers say.
        if input.send(message(next)).await.is_err() || length == 0 {
            return Ok(());
        }
    }
}

/// Reads all that the guest says at once, whether or not anybody reads here: there is room for what it may send. Its end
/// is that of both directions.
async fn receive(
    outputs: &mut Streaming<v1::ConnectOutput>,
    buffer: DuplexStream,
    allowed: &Semaphore,
) -> Result<(), ConnectError> {
    let mut buffer = Some(buffer);
    while let Some(message) = outputs.message().await? {
        match (message.output, &mut buffer) {
            (Some(Output::Data(data)), Some(buffer)) if !data.is_empty() => {
                buffer.write_all(&data).await.map_err(|_| broken())?;
            }
            (Some(Output::Ended(_)), Some(_)) => buffer = None,
            (Some(Output::Taken(bytes)), _) => {
                let bytes = bytes as usize;
                let sent = TUNNEL_WINDOW_BYTES.saturating_sub(allowed.available_permits());
                if !(1..=sent).contains(&bytes) {
                    return Err(broken());
                }
                allowed.add_permits(bytes);
            }
            _ => return Err(broken()),
        }
    }
    match buffer {
        None => Ok(()),
        Some(_) => Err(broken()),
    }
}

/// Passes on what came from the program, to the end of that.
async fn deliver(
    mut waiting: DuplexStream,
    mut writer: impl AsyncWrite + Unpin,
    unread: Unread,
    input: &mpsc::Sender<v1::ConnectInput>,
) -> Result<(), ConnectError> {
    let (mut part, mut taken, mut wanted) = (BytesMut::with_capacity(PART_BYTES), 0, true);
    loop {
        part.clear();
        let length = waiting.read_buf(&mut part).await.map_err(|_| broken())?;
        if length == 0 {
            break;
        }
        if wanted && writer.write_all(&part).await.is_err() {
            match unread {
                Unread::Breaks => return Err(broken()),
                Unread::Discarded => wanted = false,
            }
        }
        taken += length;
        if taken >= TAKEN_BYTES {
            let bytes = u32::try_from(taken).unwrap_or(u32::MAX);
            // The guest may be through with it already.
            input.send(message(Input::Taken(bytes))).await.ok();
            taken = 0;
        }
    }
    // Whoever is gone needs no end.
    writer.shutdown().await.ok();
    Ok(())
}
