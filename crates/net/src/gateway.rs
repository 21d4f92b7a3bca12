//! The sandbox's gateway as a name server: over datagrams and over connections, counted and within its rate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

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
        while let Ok(Ok(())) = tokio::time::timeout(IDLE, self.serve_one(&mut stream)).await {}
    }

    async fn serve_one<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> io::Result<()> {
        let mut query = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut query).await?;
        let answer = self.answer(&query, Transport::Tcp).await.ok_or(io::ErrorKind::ConnectionAborted)?;
        stream.write_u16(u16::try_from(answer.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&answer).await
    }
}
