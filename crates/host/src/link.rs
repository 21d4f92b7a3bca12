//! The host's end of the link to one guest: the handshake, the frames, and HTTP/2 over them.
//!
//! Nothing that comes from here is trusted. What breaks the rules of the frames or of HTTP/2 breaks the
//! link, and with it this one sandbox.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bouvet_wire::frame::{self, Decoder, Epoch, Event, MAX_PAYLOAD_BYTES, Preamble, Violation};
use bouvet_wire::limits::{CONNECTION_WINDOW_BYTES, MAX_MESSAGE_BYTES, STREAM_WINDOW_BYTES};
use bouvet_wire::v1::guest_client::GuestClient;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tracing::info;

const READ_BYTES: usize = 128 * 1024;
/// Headers of an answer: gRPC's own take a few hundred bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// Why a link could not be made.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, BringUpError, CreateError, LinkError};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.create(BoxConfig::default()).await {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(CreateError::BringUp(BringUpError::Link(LinkError::Generation(found)))) => {
///         println!("the base image has a guest of generation {found}");
///     }
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream under it failed.
    #[error("the link's stream failed")]
    Stream(#[source] io::Error),
    /// The stream ended: the VM is gone.
    #[error("the VM closed the link")]
    Closed,
    /// The guest did not follow the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The guest was built for another contract.
    #[error("the guest speaks generation {0} of the link; this host speaks {own}", own = bouvet_wire::GENERATION)]
    Generation(u32),
    /// HTTP/2 did not come up.
    #[error("HTTP/2 over the link failed")]
    Http(#[source] hyper::Error),
    /// The guest did not answer.
    #[error("the guest did not answer within {0:?}")]
    Deadline(Duration),
}

/// The connection to one guest. Dropping it ends every call on it.
#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    /// Whose calls the host's log names.
    logged: Arc<OnceLock<String>>,
    connection: JoinHandle<String>,
}

/// What makes calls to a guest. Cheap to clone; many calls may be under way at once.
pub(crate) type Client = GuestClient<Calls>;

impl Link {
    /// Shakes hands with the guest at the other end of `stream`.
    pub(crate) async fn connect(stream: UnixStream, deadline: Duration) -> Result<Self, LinkError> {
        let linked = tokio::time::timeout(deadline, Self::shake_hands(stream));
        linked.await.map_err(|_| LinkError::Deadline(deadline))?
    }

    async fn shake_hands(mut stream: UnixStream) -> Result<Self, LinkError> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| LinkError::Stream(error.into()))?;
        let epoch = Epoch::new(u32::from_le_bytes(random));
        let hello = Preamble { generation: bouvet_wire::GENERATION, epoch };
        stream.write_all(&hello.hello()).await.map_err(LinkError::Stream)?;

        let (mut decoder, mut input) = (Decoder::host(epoch), BytesMut::with_capacity(READ_BYTES));
        let ack = loop {
            if let Some(Event::Preamble(ack)) = decoder.next(&mut input)? {
                break ack;
            }
            if stream.read_buf(&mut input).await.map_err(LinkError::Stream)? == 0 {
                return Err(LinkError::Closed);
            }
        };
        if ack.generation != bouvet_wire::GENERATION {
            return Err(LinkError::Generation(ack.generation));
        }
        let frames = Frames { stream, epoch, decoder, input, data: Bytes::new(), output: BytesMut::new() };
        Self::start_http(frames).await
    }

    async fn start_http(frames: Frames) -> Result<Self, LinkError> {
        let (calls, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES)
            .handshake(TokioIo::new(frames))
            .await
            .map_err(LinkError::Http)?;
        let connection = tokio::spawn(async move {
            match connection.await {
                Ok(()) => "the guest closed the link".to_owned(),
                Err(error) => format!("the link broke: {}", crate::chain(&error)),
            }
        });
        // Only its form matters: there is one guest at the other end.
        let origin = http::Uri::from_static("http://guest");
        let logged = Arc::<OnceLock<String>>::default();
        let calls = Calls { calls, logged: logged.clone() };
        let client = GuestClient::with_origin(calls, origin)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client, logged, connection })
    }

    /// What makes calls over it.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Has the host's log name every call from now on, as one to `guest`.
    pub(crate) fn log_calls(&self, guest: &str) {
        // Set once: it remains the same guest.
        self.logged.set(guest.to_owned()).ok();
    }

    /// Waits until the link is of no more use, and says why.
    pub(crate) async fn broken(&mut self) -> String {
        (&mut self.connection).await.unwrap_or_else(|error| format!("the link's task ended: {error}"))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// hyper's HTTP/2 connection as the service that tonic's client calls.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    calls: hyper::client::conn::http2::SendRequest<Body>,
    logged: Arc<OnceLock<String>>,
}

impl tower::Service<http::Request<Body>> for Calls {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.calls.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(guest) = self.logged.get().cloned() else {
            return Box::pin(self.calls.send_request(request));
        };
        let (call, begun) = (request.uri().path().to_owned(), Instant::now());
        let answer = self.calls.send_request(request);
        Box::pin(async move {
            let answer = answer.await;
            let status = match &answer {
                // An error of the guest's comes at once, in the headers; otherwise the answer goes on from here.
                Ok(answer) => answer
                    .headers()
                    .get("grpc-status")
                    .map_or("ok", |code| code.to_str().unwrap_or("unreadable")),
                Err(_) => "broken",
            };
            info!(%guest, %call, status, took_ms = begun.elapsed().as_millis(), "gRPC");
            answer
        })
    }
}

/// The words of a failed call: those of the guest, or those of the link and what broke it. They contain nothing that
/// steers a terminal, and are no longer than the headers that they come in may be. `Display` of a status would show the
/// structures of libraries.
pub(crate) fn said(status: &tonic::Status) -> String {
    let mut text = status.message().replace(char::is_control, "");
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Whether a call failed because its link broke. Its sandbox has failed then, and reports why.
pub(crate) fn is_broken(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// A stream of bytes in frames of one epoch.
#[derive(Debug)]
struct Frames {
    stream: UnixStream,
    epoch: Epoch,
    decoder: Decoder,
    input: BytesMut,
    /// Payload that HTTP/2 has not taken yet.
    data: Bytes,
    /// A frame that the stream has not taken yet.
    output: BytesMut,
}

impl Frames {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            self.output.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Frames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.data.is_empty() {
            match this.decoder.next(&mut this.input).map_err(io::Error::other)? {
                Some(Event::Data(data)) => this.data = data,
                // A decoder that has seen its ACK reports only data.
                Some(Event::Preamble(_) | Event::Lost) => {}
                None => {
                    this.input.reserve(READ_BYTES);
                    let read = std::pin::pin!(this.stream.read_buf(&mut this.input));
                    if ready!(std::future::Future::poll(read, cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
        let taken = this.data.split_to(this.data.len().min(buf.remaining()));
        buf.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Frames {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        let payload = &buf[..buf.len().min(MAX_PAYLOAD_BYTES)];
        if payload.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.output.extend_from_slice(&frame::header(this.epoch, payload.len()));
        this.output.extend_from_slice(payload);
        // The frame is ours now: what the stream does not take at once goes out with the next call.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(payload.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod hostile;
