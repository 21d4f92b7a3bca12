//! The guest's end of the link: finds the host's HELLO in the byte stream, and serves HTTP/2 in the frames
//! that follow it until the host begins afresh.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bouvet_wire::frame::{self, Decoder, Epoch, Event, MAX_PAYLOAD_BYTES, Preamble};
use bouvet_wire::limits::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use bytes::BytesMut;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;

use crate::service::{GuestServer, Service};

/// Bytes that wait between the link and HTTP/2 in either direction.
const BUFFER_BYTES: usize = 256 * 1024;
/// How long the VMM may take to announce the link's port, and how often we look.
const PORT_DEADLINE: Duration = Duration::from_secs(10);
const PORT_POLL: Duration = Duration::from_millis(1);

/// Serves `stream` until it ends. HTTP/2 connections come and go on it, one at a time.
pub(crate) async fn serve<S>(stream: S, service: Service) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(stream);
    let writer = std::sync::Arc::new(tokio::sync::Mutex::new(writer));
    let mut decoder = Decoder::guest();
    let mut input = BytesMut::with_capacity(BUFFER_BYTES);
    let mut connection: Option<Connection> = None;
    loop {
        if reader.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        // A guest's decoder never fails: it searches for the next HELLO.
        while let Ok(Some(event)) = decoder.next(&mut input) {
            match event {
                Event::Preamble(hello) => {
                    // Dropped first, and waited for: nothing of the old connection may follow the ACK.
                    if let Some(old) = connection.take() {
                        old.end().await;
                    }
                    let ack = Preamble { generation: bouvet_wire::GENERATION, epoch: hello.epoch };
                    writer.lock().await.write_all(&ack.ack()).await?;
                    connection = Some(Connection::begin(hello.epoch, service.clone(), writer.clone()));
                }
                Event::Data(data) => {
                    if let Some(current) = &mut connection
                        && current.input.write_all(&data).await.is_err()
                    {
                        connection = None;
                    }
                }
                Event::Lost => connection = None,
            }
        }
        input.reserve(BUFFER_BYTES.saturating_sub(input.len()));
    }
}

/// One HTTP/2 connection. Dropping it cancels the calls on it.
struct Connection {
    input: tokio::io::WriteHalf<DuplexStream>,
    http: JoinHandle<()>,
    output: JoinHandle<()>,
}

impl Connection {
    fn begin<W>(
        epoch: Epoch,
        service: Service,
        writer: std::sync::Arc<tokio::sync::Mutex<tokio::io::WriteHalf<W>>>,
    ) -> Self
    where
        W: AsyncWrite + Send + 'static,
    {
        let (near, far) = tokio::io::duplex(BUFFER_BYTES);
        let (output, input) = tokio::io::split(near);
        let http = tokio::spawn(async move {
            let server = GuestServer::new(service)
                .max_decoding_message_size(bouvet_wire::limits::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(bouvet_wire::limits::MAX_MESSAGE_BYTES);
            // How a connection ends is the host's business; the next HELLO begins another.
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .serve_connection(TokioIo::new(far), TowerToHyperService::new(server))
                .await
                .ok();
        });
        let output = tokio::spawn(async move {
            pump(epoch, output, writer).await.ok();
        });
        Self { input, http, output }
    }

    async fn end(mut self) {
        self.http.abort();
        self.output.abort();
        // Both were aborted: waiting only makes sure that they are gone.
        (&mut self.http).await.ok();
        (&mut self.output).await.ok();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.http.abort();
        self.output.abort();
    }
}

/// Puts what HTTP/2 writes into frames.
async fn pump<R, W>(
    epoch: Epoch,
    mut from: R,
    to: std::sync::Arc<tokio::sync::Mutex<tokio::io::WriteHalf<W>>>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite,
{
    let mut frame = vec![0; frame::HEADER_BYTES + MAX_PAYLOAD_BYTES];
    loop {
        let length = from.read(&mut frame[frame::HEADER_BYTES..]).await?;
        if length == 0 {
            return Ok(());
        }
        frame[..frame::HEADER_BYTES].copy_from_slice(&frame::header(epoch, length));
        to.lock().await.write_all(&frame[..frame::HEADER_BYTES + length]).await?;
    }
}

/// A virtio-serial port as an asynchronous stream.
#[derive(Debug)]
pub(crate) struct Port(AsyncFd<OwnedFd>);

impl Port {
    /// Opens the port called `name`. Linux shows it at `/sys/class/virtio-ports/vportNpM/name`, some time
    /// after the driver was loaded: the VMM announces ports by messages.
    pub(crate) async fn open(name: &str) -> io::Result<Self> {
        let deadline = Instant::now() + PORT_DEADLINE;
        let path = loop {
            match find_port(name) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_not_yet) => tokio::time::sleep(PORT_POLL).await,
                Ok(path) => break path,
            }
        };
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        #[expect(unsafe_code, reason = "tokio has no safe way to poll a device")]
        // SAFETY: the `AsyncFd` owns the descriptor, which names one open file until it is dropped.
        let registered = unsafe { AsyncFd::register(fd)? };
        Ok(Self(registered))
    }
}

fn find_port(name: &str) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        // The console is a port too, and has no name.
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim_end() == name) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port `{name}`")))
}

impl AsyncRead for Port {
    /// Reads all that is there and fits: the driver hands out 4 KiB a time, and each answer has its price.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled_before = buf.filled().len();
        while buf.remaining() > 0 {
            let mut ready = match self.0.poll_read_ready(cx)? {
                Poll::Ready(ready) => ready,
                Poll::Pending if buf.filled().len() > filled_before => break,
                Poll::Pending => return Poll::Pending,
            };
            let unfilled = buf.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd, unfilled)?)) {
                // A port reads 0 while no host end is connected (`port_fops_read`); another may come.
                Ok(Ok(0)) => ready.clear_ready(),
                Ok(Ok(read)) => buf.advance(read),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, buf)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
