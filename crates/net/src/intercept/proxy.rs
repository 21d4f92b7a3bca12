//! Requests of a guest passed on to one server, each checked and given its secrets; responses passed back. Bodies go
//! through piece by piece, as fast as the slower side takes them.

use std::error::Error as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::{http1 as server1, http2 as server2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{client, server};

use super::request::{self, Refused, Server};
use super::tasks::Tasks;
use super::{HTTP_2, InterceptError};
use crate::name::Name;
use crate::secret::{self, Secret};

/// The headers of a request or a response: in bytes, and how many of HTTP/1.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;
/// What is read ahead of a slower reader in HTTP/1.
const BUFFER_BYTES: usize = 128 * 1024;
/// In HTTP/2: requests at once, what is read ahead of each and of all, and what waits to be written of each.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const WINDOW_BYTES: u32 = 1024 * 1024;
const SEND_BYTES: usize = 64 * 1024;
/// From one request's end to the whole head of the next.
const IDLE_DEADLINE: Duration = Duration::from_secs(120);
/// For telling a guest why it cannot have what it wants.
const APOLOGY_DEADLINE: Duration = Duration::from_secs(10);

type Body = Either<Incoming, Full<Bytes>>;

/// One connection of a guest to a server, as far as HTTP goes.
#[derive(Debug)]
pub(crate) struct Proxy {
    server: Server,
    /// Those that are for this server.
    secrets: Vec<Secret>,
    /// The server may be about to agree to an upgrade, and its end of HTTP is then no end of the connection.
    may_upgrade: AtomicBool,
    /// The two ends of what was upgraded.
    upgraded: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

/// The way to the server: one request at a time, or many.
#[derive(Debug)]
enum Sender {
    One(tokio::sync::Mutex<client1::SendRequest<Incoming>>),
    Many(client2::SendRequest<Incoming>),
}

impl Sender {
    async fn send(&self, request: Request<Incoming>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Many(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// How HTTP came to an end before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// It was broken off, or was none.
    #[error("HTTP failed")]
    Http(#[from] hyper::Error),
    /// What it was upgraded to was broken off.
    #[error("what HTTP was upgraded to failed")]
    Upgraded(#[source] std::io::Error),
}

impl ProxyError {
    /// Of a connection to `name`.
    pub(super) fn with(self, name: &Name) -> InterceptError {
        let name = name.clone();
        match self {
            Self::Http(source) => InterceptError::Http { name, source },
            Self::Upgraded(source) => InterceptError::Upgraded { name, source },
        }
    }
}

impl Proxy {
    pub(crate) fn new(server: Server, secrets: Vec<Secret>) -> Self {
        Self { server, secrets, may_upgrade: AtomicBool::default(), upgraded: Mutex::default() }
    }

    pub(crate) async fn serve_http1<G, S>(self, guest: G, server: S) -> Result<(), ProxyError>
    where
        G: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = client1::Builder::new();
        builder.max_headers(MAX_HEADERS).max_header_size(MAX_HEAD_BYTES).max_buf_size(BUFFER_BYTES);
        builder.preserve_header_case(true);
        let (sender, server) = builder.handshake(TokioIo::new(server)).await?;
        let sender = Sender::One(sender.into());
        let service = service_fn(|request| self.pass(request, &sender));
        let mut guest = pin!(server1().serve_connection(TokioIo::new(guest), service).with_upgrades());
        let mut server = pin!(server.with_upgrades());
        let mut is_open = true;
        let served = loop {
            tokio::select! {
                served = guest.as_mut() => break served,
                _ = server.as_mut(), if is_open => {
                    is_open = false;
                    // The guest gets what it was promised, and learns that no more is to be had here.
                    if !self.may_upgrade.load(Ordering::Relaxed) {
                        guest.as_mut().graceful_shutdown();
                    }
                }
            }
        };
        served?;
        let upgraded = self.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((of_guest, of_server)) = upgraded else { return Ok(()) };
        let both = async { tokio::try_join!(of_guest, of_server) };
        let mut both = pin!(both);
        let (of_guest, of_server) = loop {
            tokio::select! {
                both = both.as_mut() => break both?,
                _ = server.as_mut(), if is_open => is_open = false,
            }
        };
        let (mut of_guest, mut of_server) = (TokioIo::new(of_guest), TokioIo::new(of_server));
        let copied = tokio::io::copy_bidirectional(&mut of_guest, &mut of_server).await;
        copied.map(drop).map_err(ProxyError::Upgraded)
    }

    pub(super) async fn serve_http2<G>(
        self,
        guest: server::TlsStream<G>,
        server: client::TlsStream<TcpStream>,
    ) -> Result<(), ProxyError>
    where
        G: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tasks = Tasks::default();
        let _ended = tasks.ended_by_drop();
        let mut builder = client2::Builder::new(tasks.clone());
        builder.initial_stream_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        builder.max_header_list_size(HEAD_BYTES_OF_HTTP_2).max_send_buf_size(SEND_BYTES);
        let (sender, server) = builder.handshake(TokioIo::new(server)).await?;
        let proxy = Arc::new((self, Sender::Many(sender)));
        let service = service_fn(move |request| {
            let proxy = Arc::clone(&proxy);
            async move { proxy.0.pass(request, &proxy.1).await }
        });
        let mut guest = pin!(server2(tasks).serve_connection(TokioIo::new(guest), service));
        let mut server = pin!(server);
        let mut is_open = true;
        let served = loop {
            tokio::select! {
                served = guest.as_mut() => break served,
                _ = server.as_mut(), if is_open => {
                    is_open = false;
                    guest.as_mut().graceful_shutdown();
                }
            }
        };
        Ok(served?)
    }

    /// Passes one request on and its response back. An error breaks the connection off, as the server did.
    async fn pass(&self, mut request: Request<Incoming>, sender: &Sender) -> hyper::Result<Response<Body>> {
        let of_guest = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let name = match request::check(&parts, &self.server) {
            Ok(name) => name,
            Err(refused) => return Ok(refuse(refused)),
        };
        let websocket = request::is_websocket(&parts);
        request::readdress(&mut parts, &name);
        let secrets: Vec<_> = self.secrets.iter().collect();
        if secret::reveal(&mut parts.headers, &secrets, MAX_HEAD_BYTES).is_err() {
            return Ok(refuse(Refused::Oversized));
        }
        self.may_upgrade.store(websocket, Ordering::Relaxed);
        let mut response = sender.send(Request::from_parts(parts, body)).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !websocket {
                return Ok(message(
                    StatusCode::BAD_GATEWAY,
                    "the server switched protocols without being asked to",
                ));
            }
            let of_server = hyper::upgrade::on(&mut response);
            *self.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some((of_guest, of_server));
            return Ok(response.map(Either::Left));
        }
        let closes = response.headers().get(CONNECTION).is_some_and(|value| {
            value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("close"))
        });
        request::clear(response.headers_mut());
        if closes {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(Either::Left))
    }
}

fn refuse(refused: Refused) -> Response<Body> {
    message(refused.status(), refused.text())
}

/// What HTTP/2 counts of headers: also 32 bytes for each (RFC 9113, 6.5.2).
#[expect(clippy::cast_possible_truncation, reason = "64 KiB and what 128 headers add")]
const HEAD_BYTES_OF_HTTP_2: u32 = (MAX_HEAD_BYTES + 32 * MAX_HEADERS) as u32;

fn server1() -> server1::Builder {
    let mut builder = server1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_header_size(MAX_HEAD_BYTES).max_buf_size(BUFFER_BYTES);
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE);
    builder.preserve_header_case(true).auto_date_header(false);
    // Who has asked all that he asks may say so, and still be answered.
    builder.half_close(true);
    builder
}

fn server2(tasks: Tasks) -> server2::Builder<Tasks> {
    let mut builder = server2::Builder::new(tasks);
    builder.initial_stream_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    builder.max_header_list_size(HEAD_BYTES_OF_HTTP_2).max_send_buf_size(SEND_BYTES);
    builder.max_concurrent_streams(MAX_STREAMS).timer(TokioTimer::new()).auto_date_header(false);
    builder
}

/// An answer of our own.
fn message(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(format!("bouvet: {text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// Answers the guest's first request in the server's stead: it cannot be asked, and why.
pub(super) async fn apologise<G>(guest: server::TlsStream<G>, why: &InterceptError)
where
    G: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let cause = why.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    let text = format!("{why}{cause}. Nothing of the request was sent to it");
    let is_http2 = guest.get_ref().1.alpn_protocol() == Some(HTTP_2);
    let service = service_fn(move |_: Request<Incoming>| {
        let response = message(StatusCode::BAD_GATEWAY, &text);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let guest = TokioIo::new(guest);
    // Whoever does not stay to listen does not hear it.
    if is_http2 {
        let tasks = Tasks::default();
        let _ended = tasks.ended_by_drop();
        timeout(APOLOGY_DEADLINE, server2(tasks).serve_connection(guest, service)).await.ok();
    } else {
        timeout(APOLOGY_DEADLINE, server1().keep_alive(false).serve_connection(guest, service)).await.ok();
    }
}
