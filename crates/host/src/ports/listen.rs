//! Listening on a port of the host.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{Entrance, PortError, tcp, udp};
use crate::boxconfig::{PortProtocol, PortSpec};

/// Connections that wait to be accepted: while a sandbox is paused or starts, these are all.
const BACKLOG: i32 = 128;

/// A port that is listened on, and not served yet.
#[derive(Debug)]
pub(super) struct Listening {
    host: SocketAddr,
    guest: u16,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listening {
    pub(super) fn on(port: PortSpec) -> Result<Self, PortError> {
        let PortSpec { host, guest, protocol } = port;
        let listening = || match protocol {
            PortProtocol::Tcp => {
                let socket = TcpListener::from_std(open(host, SocketType::STREAM)?.into())?;
                Ok(Self { host: socket.local_addr()?, guest, socket: Socket::Tcp(socket) })
            }
            PortProtocol::Udp => {
                let socket = UdpSocket::from_std(open(host, SocketType::DGRAM)?.into())?;
                Ok(Self { host: socket.local_addr()?, guest, socket: Socket::Udp(socket) })
            }
        };
        listening().map_err(|error| PortError::of(port, error))
    }

    /// Where it listens: never port 0.
    pub(super) fn host(&self) -> SocketAddr {
        self.host
    }

    pub(super) fn protocol(&self) -> PortProtocol {
        match self.socket {
            Socket::Tcp(_) => PortProtocol::Tcp,
            Socket::Udp(_) => PortProtocol::Udp,
        }
    }

    /// Serves it, until it is `closed` or its sandbox is no more.
    pub(super) async fn serve(self, entrance: Entrance, closed: CancellationToken) {
        match self.socket {
            Socket::Tcp(listener) => tcp::serve(listener, self.guest, entrance, closed).await,
            Socket::Udp(socket) => udp::serve(socket, self.guest, entrance, closed).await,
        }
    }
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // `[::]` is what it says, whatever the machine's default: IPv4 is another port.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections that have just ended do not keep a new listener away; another listener does.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
