//! Connections of clients: how many may be open, and which close when there are too many.
//!
//! Each takes a file descriptor, and the process has a limit of those (`RLIMIT_NOFILE`), of which VMs and calls need theirs.
//! At the limit of connections the one that is idle for longest closes. If none is idle, a new connection is one of a few in
//! reserve, on which health is answered and everything else refused.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::serve::{IncomingStream, Listener};
use futures_util::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// The fewest file descriptors with which a server starts.
pub(crate) const MIN_DESCRIPTORS: u64 = 512;
/// A sixth is for connections. The host has a third for networks and a third for volumes; VMs, calls and the process
/// itself have what is left.
const CONNECTIONS_SHARE: u64 = 6;
/// Of the connections, the socket of the commands may have a quarter.
const COMMANDS_SHARE: u64 = 4;
/// The most connections, however many descriptors there are.
const MAX_CONNECTIONS: u64 = 8192;
/// Connections in reserve, beyond the limit.
const RESERVED_CONNECTIONS: usize = 8;
/// Paths that are answered on connections in reserve.
const RESERVED_PATHS: [&str; 2] = ["/health", "/v1/health"];

/// How many connections may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Of the HTTP server.
    pub(crate) http: usize,
    /// Of the socket of the commands.
    pub(crate) commands: usize,
}

/// The process may open too few files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the limit of open files is {limit}; a server needs {MIN_DESCRIPTORS}")]
pub struct TooFewDescriptors {
    /// The limit of this process.
    pub limit: u64,
}

impl Shares {
    /// Those of a process that may open `limit` files. `None`: as many as it likes.
    pub(crate) fn of(limit: Option<u64>) -> Result<Self, TooFewDescriptors> {
        let limit = limit.unwrap_or(u64::MAX);
        if limit < MIN_DESCRIPTORS {
            return Err(TooFewDescriptors { limit });
        }
        let connections = (limit / CONNECTIONS_SHARE).min(MAX_CONNECTIONS);
        let commands = connections / COMMANDS_SHARE;
        let of = |count: u64| usize::try_from(count).unwrap_or(usize::MAX) - RESERVED_CONNECTIONS;
        Ok(Self { http: of(connections - commands), commands: of(commands) })
    }

    /// Those of this process. Its host raises the limit as far as it may.
    pub(crate) fn here() -> Result<Self, TooFewDescriptors> {
        Self::of(rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum)
    }
}

/// A listener whose connections are bounded.
#[derive(Debug)]
pub(crate) struct Connections<L: Listener> {
    listener: L,
    address: fn(&L::Addr) -> Option<IpAddr>,
    open: Arc<Open>,
}

impl<L: Listener> Connections<L> {
    /// At most `limit` connections of `listener`, and those in reserve. `address` is that of a client, if it has one.
    pub(crate) fn new(listener: L, limit: usize, address: fn(&L::Addr) -> Option<IpAddr>) -> Self {
        Self { listener, address, open: Arc::new(Open { limit, ..Open::default() }) }
    }
}

impl<L> Listener for Connections<L>
where
    L: Listener,
    L::Io: Unpin,
{
    type Io = Counted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.open.until_there_is_room().await;
        let (stream, address) = self.listener.accept().await;
        let connection = self.open.admit((self.address)(&address));
        (Counted { stream, connection }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Open {
    limit: usize,
    /// In the order in which they were accepted.
    connections: Mutex<Table>,
    closed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_number: BTreeMap<u64, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// Requests under way, their answers among them.
    requests: usize,
    /// When it was used last, as a number that grows.
    used: u64,
    is_reserved: bool,
    end: Arc<End>,
}

impl Table {
    /// Tells the connection that is idle for longest to close.
    fn close_idle(&mut self) -> bool {
        let idle = self.ordinary().filter(|entry| entry.requests == 0);
        let oldest = idle.min_by_key(|entry| entry.used);
        oldest.map(|entry| entry.end.close()).is_some()
    }

    /// Tells the oldest connection in reserve to close, so that there is one for the next client.
    fn close_reserved(&mut self) {
        let mut reserved =
            self.by_number.values().filter(|entry| entry.is_reserved && !entry.end.is_closing());
        if let Some(oldest) = reserved.next() {
            oldest.end.close();
        }
    }

    /// Those that are neither in reserve nor closing.
    fn ordinary(&self) -> impl Iterator<Item = &Entry> {
        self.by_number.values().filter(|entry| !entry.is_reserved && !entry.end.is_closing())
    }

    /// Those that are not closing.
    fn count(&self) -> usize {
        self.by_number.values().filter(|entry| !entry.end.is_closing()).count()
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one to close, if even those in reserve are taken.
    async fn until_there_is_room(&self) {
        loop {
            let closed = self.closed.notified();
            if self.lock().by_number.len() < self.limit + RESERVED_CONNECTIONS {
                return;
            }
            closed.await;
        }
    }

    /// Knows a new connection, for which others may close.
    fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Arc<Connection> {
        let mut table = self.lock();
        let is_reserved = table.ordinary().count() >= self.limit && !table.close_idle();
        if table.count() + 1 >= self.limit + RESERVED_CONNECTIONS {
            table.close_reserved();
        }
        let (number, end) = (table.next, Arc::<End>::default());
        table.next += 1;
        table.clock += 1;
        let entry = Entry { requests: 0, used: table.clock, is_reserved, end: end.clone() };
        table.by_number.insert(number, entry);
        drop(table);
        Arc::new(Connection { number, address, is_reserved, end, open: self.clone() })
    }
}

/// Whether a connection is to close.
#[derive(Debug, Default)]
struct End {
    is_closing: AtomicBool,
    reader: AtomicWaker,
}

impl End {
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.reader.wake();
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    number: u64,
    address: Option<IpAddr>,
    is_reserved: bool,
    end: Arc<End>,
    open: Arc<Open>,
}

impl Connection {
    /// Keeps the connection from being idle until this is dropped.
    fn request(self: &Arc<Self>) -> Busy {
        self.count(|requests| requests + 1);
        Busy(self.clone())
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut table = self.open.lock();
        table.clock += 1;
        let used = table.clock;
        if let Some(entry) = table.by_number.get_mut(&self.number) {
            (entry.requests, entry.used) = (change(entry.requests), used);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.lock().by_number.remove(&self.number);
        self.open.closed.notify_waiters();
    }
}

/// A request under way.
#[derive(Debug)]
struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.count(|requests| requests.saturating_sub(1));
    }
}

/// The connection of a request, for its handlers.
#[derive(Debug, Clone)]
pub(crate) struct Peer(Arc<Connection>);

impl Peer {
    /// The address of the client, if it has one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.0.address
    }
}

impl<L> Connected<IncomingStream<'_, Connections<L>>> for Peer
where
    L: Listener,
    L::Io: Unpin,
{
    fn connect_info(stream: IncomingStream<'_, Connections<L>>) -> Self {
        Self(stream.io().connection.clone())
    }
}

/// Counts requests of connections, and refuses those that come on one in reserve.
pub(crate) async fn counted(
    ConnectInfo(Peer(connection)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if connection.is_reserved && !RESERVED_PATHS.contains(&request.uri().path()) {
        let headers = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
        let text = "all connections of the server are in use; try again";
        return (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response();
    }
    let busy = connection.request();
    let (mut parts, body) = next.run(request).await.into_parts();
    if connection.is_reserved {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    held(Response::from_parts(parts, body), busy)
}

/// `response`, with `guard` until its body has been sent, or is dropped.
pub(super) fn held(response: Response, guard: impl Send + Unpin + 'static) -> Response {
    response.map(|body| Body::new(Held { body, _guard: guard }))
}

struct Held<G> {
    body: Body,
    _guard: G,
}

impl<G: Send + Unpin + 'static> hyper::body::Body for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream of a connection. Once it is to close, nothing more is read from it.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Before looking, so that no word of it is lost.
        self.connection.end.reader.register(context.waker());
        if self.connection.end.is_closing() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_room_for_vms() {
        assert_eq!(Shares::of(Some(511)), Err(TooFewDescriptors { limit: 511 }));
        let few = Shares::of(Some(512)).unwrap();
        assert_eq!(few, Shares { http: 56, commands: 13 });
        for limit in [Some(512), Some(1024), Some(65_536), None] {
            let Shares { http, commands } = Shares::of(limit).unwrap();
            let most = u64::try_from(http + commands + 2 * RESERVED_CONNECTIONS).unwrap();
            assert!(most <= limit.unwrap_or(u64::MAX) / CONNECTIONS_SHARE && most <= MAX_CONNECTIONS);
        }
    }

    fn open(limit: usize) -> Arc<Open> {
        Arc::new(Open { limit, ..Open::default() })
    }

    #[test]
    fn connection_idle_for_longest_closes_first() {
        let open = open(3);
        let connections: Vec<_> = (0..3).map(|_| open.admit(None)).collect();
        let busy = connections[0].request();
        drop(connections[1].request());
        let new = open.admit(None);
        assert!(!new.is_reserved);
        let closing: Vec<_> = connections.iter().map(|connection| connection.end.is_closing()).collect();
        assert_eq!(closing, [false, false, true], "the first is in use, the second was used later");
        drop(busy);
    }

    #[test]
    fn reserve_is_for_times_when_none_is_idle() {
        let open = open(2);
        let connections: Vec<_> = (0..2).map(|_| open.admit(None)).collect();
        let busy: Vec<_> = connections.iter().map(Connection::request).collect();
        let reserved: Vec<_> = (0..RESERVED_CONNECTIONS)
            .map(|_| {
                let connection = open.admit(None);
                assert!(connection.is_reserved);
                let busy = connection.request();
                (connection, busy)
            })
            .collect();
        let closing = reserved.iter().filter(|(connection, _)| connection.end.is_closing()).count();
        assert_eq!(closing, 1, "one place is left for the next client");
        assert!(reserved[0].0.end.is_closing(), "the oldest");
        drop(busy);
        drop(connections);
        assert!(!open.admit(None).is_reserved);
    }
}
