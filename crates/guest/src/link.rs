//! The guest's end of the link: finds the host's HELLO in the byte stream, and serves HTTP/2 in the frames
//! that follow it until the host begins afresh.

pub(crate) mod port;
pub(crate) mod vsock;

use std::io;

use bouvet_wire::frame::{self, Decoder, Epoch, Event, MAX_PAYLOAD_BYTES, Preamble};
use bouvet_wire::limits::{CONNECTION_WINDOW_BYTES, MAX_CALLS, STREAM_WINDOW_BYTES};
use bytes::BytesMut;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use crate::service::{GuestServer, Service};

/// Bytes that wait between the link and HTTP/2 in either direction.
const BUFFER_BYTES: usize = 256 * 1024;

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
                .max_concurrent_streams(MAX_CALLS)
                // These count what an attacker does over the whole life of a connection. A host is none, and may well
                // give up more calls than that.
                .max_pending_accept_reset_streams(MAX_CALLS as usize)
                .max_local_error_reset_streams(None)
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
