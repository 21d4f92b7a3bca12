//! Echoes. The host asks for one of its own, with bytes of its own: nothing that the sandbox says leaves by it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::refusal::Refusal;
use crate::reply::{self, Unreachable};
use crate::shared::{Shared, Waiting};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// An echo of ICMP (RFC 792) and of ICMPv6 (RFC 4443).
const REQUEST: [u8; 2] = [8, 128];

/// What the sandbox asked for.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) number: (u16, u16),
    /// At the end of its packet.
    pub(crate) payload_bytes: usize,
}

impl Echo {
    /// The answer to it, which came in `packet`.
    pub(crate) fn reply(&self, packet: &[u8]) -> Option<Bytes> {
        let payload = &packet[packet.len() - self.payload_bytes..];
        reply::echo(self.destination, self.source, self.number, payload)
    }
}

/// Asks for the echo that the sandbox asked for in `packet`, and tells it when it came.
pub(crate) async fn run(shared: Arc<Shared>, echo: Echo, packet: Waiting) {
    match tokio::time::timeout(DEADLINE, ask(echo.destination, echo.number.1)).await {
        Ok(Ok(())) => shared.answer(echo.reply(packet.bytes())),
        Ok(Err(error)) if is_forbidden(&error) => {
            shared.counters.refuse(Refusal::NoPing, None, None);
            shared.answer(reply::unreachable(packet.bytes(), Unreachable::Prohibited));
        }
        // Nobody answered, which is what the sandbox sees too.
        Ok(Err(_)) | Err(_) => {}
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
}

/// By a socket that needs no rights, where `net.ipv4.ping_group_range` lets the server's group have one (icmp(7)). Its
/// system sets the number of who asks, and the checksum.
async fn ask(destination: IpAddr, sequence: u16) -> io::Result<()> {
    let (domain, protocol, kind) = match destination {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, REQUEST[0]),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, REQUEST[1]),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(OwnedFd::from(socket)))?;
    socket.connect(SocketAddr::new(destination, 0)).await?;
    let [high, low] = sequence.to_be_bytes();
    socket.send(&[kind, 0, 0, 0, 0, 0, high, low]).await?;
    let mut answer = [0; 64];
    // Of whatever comes to this socket, all is an answer to what it sent.
    socket.recv(&mut answer).await.map(drop)
}
