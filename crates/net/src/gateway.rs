//! The sandbox's gateway as a name server: over datagrams and over connections, counted and within its rate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::count::{Counters, add};
use crate::dns::{self, Answer, Transport};
use crate::limit::Rate;
use crate::refusal::Refusal;
use crate::sockets::Sockets;

/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);

/// Answers for names.
#[derive(Debug)]
pub(crate) struct NameServer {
    server: dns::NameServer,
    counters: Arc<Counters>,
    sockets: Sockets,
    queries: Rate,
}

impl NameServer {
    pub(crate) fn new(
        server: dns::NameServer,
        counters: Arc<Counters>,
        sockets: Sockets,
        queries_per_s: u32,
    ) -> Self {
        Self { server, counters, sockets, queries: Rate::per_second(queries_per_s) }
    }

    /// The answer to one query, if it gets one.
    pub(crate) async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        add(&self.counters.queries, 1);
        // Whoever is asked for the sandbox is asked by one at a time.
        let Some(_socket) = self.sockets.take().ok().filter(|_| self.queries.try_take()) else {
            self.counters.refuse(Refusal::Limit, None, None);
            return None;
        };
        let Answer { bytes, refused } = self.server.answer(query, transport).await?;
        if let Some(dns::Refused { name, refusal }) = refused {
            self.counters.refuse(refusal, None, name.as_ref());
        }
        Some(bytes)
    }

    /// Answers queries, each after its length (RFC 1035, 4.2.2), one after the other.
    pub(crate) async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        // What breaks or says nothing is closed.
        while self.serve_one(&mut stream).await.is_ok() {}
    }

    async fn serve_one<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> io::Result<()> {
        let query = timeout(IDLE, read_message(stream)).await??;
        let answer = self.answer(&query, Transport::Tcp).await.ok_or(io::ErrorKind::ConnectionAborted)?;
        timeout(IDLE, write_message(stream, &answer)).await?
    }
}

async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    stream.write_u16(u16::try_from(message.len()).map_err(io::Error::other)?).await?;
    stream.write_all(message).await
}
