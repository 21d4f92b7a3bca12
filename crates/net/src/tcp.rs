//! Connections: each is ended here, towards the sandbox by a [`machine`], towards its destination by a socket of the host.

mod machine;
mod relay;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::debug;

use self::relay::{Connection, Ending};
use crate::count::add;
use crate::dns::DNS_PORT;
use crate::flow::Flow;
use crate::intercept::{Proxy, Server};
use crate::judge::Permit;
use crate::name::Name;
use crate::policy::Claimed;
use crate::refusal::Refusal;
use crate::reply;
use crate::shared::{Shared, Waiting};

/// Packets of one connection that wait for it: a window of short ones. More are lost, and come again.
pub(crate) const QUEUE: usize = 512;

/// Where a connection leads.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// To its destination.
    Out(Permit),
    /// To this port of the host's loopback.
    Host,
    /// To whom names are asked for.
    Names,
}

impl Way {
    /// Where a connection of `flow` may lead now.
    pub(crate) fn of(shared: &Shared, flow: Flow) -> Result<Self, Refusal> {
        let Flow { protocol, destination, .. } = flow;
        if !shared.addresses.is_gateway(destination.ip()) {
            return shared.open(protocol, destination).map(Self::Out);
        }
        match destination.port() {
            DNS_PORT => Ok(Self::Names),
            port => shared.judge().host(protocol, port).map(|()| Self::Host),
        }
    }

    /// Where one that has led there may lead from now on, by the policy as it is now.
    pub(crate) fn again(&self, shared: &Shared, flow: Flow) -> Result<Self, Refusal> {
        match self {
            Self::Out(permit) => shared.open_again(flow.protocol, flow.destination, permit).map(Self::Out),
            Self::Host | Self::Names => Self::of(shared, flow),
        }
    }
}

/// Makes the connection that `syn` asks for, and has it end. Its other packets come by `packets`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    (flow, way): (Flow, Way),
    syn: Waiting,
    packets: mpsc::Receiver<Waiting>,
) {
    let _open = shared.counters.open(|counters| &counters.open_connections);
    let mut connection = Connection::new(shared.clone(), flow, way, packets);
    if let Way::Names = connection.way {
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        connection.accept(syn.take());
        tokio::join!(connection.run(near), shared.name_server.serve_stream(far));
        return;
    }
    // First the host's own connection: what cannot be had is refused as if nobody were in between.
    let way = connection.way.clone();
    let socket = tokio::select! {
        dialled = dial(&shared, flow, &way) => dialled,
        refusal = connection.called_off() => {
            if let Some(refusal) = refusal {
                shared.refuse(refusal, flow);
            }
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    };
    let Ok(mut socket) = socket else {
        return shared.answer(reply::reset(syn.bytes()));
    };
    add(&shared.counters.connections, 1);
    connection.accept(syn.take());
    let ending = connection.run(&mut socket).await;
    if !matches!(ending, Ending::Broken) && SockRef::from(&socket).set_linger(None).is_err() {
        return;
    }
    match ending {
        Ending::Over | Ending::Broken => {}
        Ending::Requests => serve_requests(&shared, connection, socket).await,
        Ending::Secrets => serve_secrets(&shared, connection, socket).await,
    }
}

/// Has `connection` served from within this process, until both sides have said all or the sandbox's is broken off.
async fn serve(connection: &mut Connection, near: DuplexStream, served: impl Future<Output = ()>) {
    let mut served = pin!(served);
    let mut run = pin!(connection.run(near));
    tokio::select! {
        // What it has said may still be on its way. If it is broken off, nobody waits for an answer.
        ending = run.as_mut() => if ending == Ending::Over { served.await },
        () = served.as_mut() => { run.await; }
    }
}

/// Passes on what requests of plain HTTP are allowed, each by the policy as it is then.
async fn serve_requests(shared: &Arc<Shared>, mut connection: Connection, socket: TcpStream) {
    let Way::Out(permit) = connection.way.clone() else { return };
    let (flow, judge) = (connection.flow, shared.clone());
    let is_allowed = move |name: &Name| {
        let permit = judge.open_again(flow.protocol, flow.destination, &permit);
        let claimed = Claimed::Http(Some(name));
        let judged = permit.and_then(|permit| judge.judge().claim(&permit, flow.destination, claimed));
        if let Err(refusal) = judged {
            judge.counters.refuse(refusal, Some(flow), Some(name));
        }
        judged.is_ok()
    };
    let server = Server::Judged(Box::new(is_allowed), flow.destination.port());
    let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
    let served = async {
        if let Err(error) = Proxy::new(server, Vec::new()).serve_http1(far, socket).await {
            debug!(error = &error as &dyn std::error::Error, "a connection of HTTP was broken off");
        }
    };
    serve(&mut connection, near, served).await;
}

/// Ends the sandbox's TLS, and has the server's instead, to put secrets into requests.
async fn serve_secrets(shared: &Shared, mut connection: Connection, socket: TcpStream) {
    let (Some(interceptor), Some(name)) = (&shared.interceptor, connection.name().cloned()) else { return };
    let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
    let served = async {
        if let Err(error) = interceptor.serve(far, socket, &name).await {
            debug!(%name, error = &error as &dyn std::error::Error, "a connection with secrets was broken off");
        }
    };
    serve(&mut connection, near, served).await;
}

/// Between a connection and what serves it in this process.
const DUPLEX_BYTES: usize = 64 * 1024;

async fn dial(shared: &Shared, flow: Flow, way: &Way) -> io::Result<TcpStream> {
    let port = flow.destination.port();
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let connect = async {
        match way {
            Way::Host => {
                TcpStream::connect(&loopback.map(|address| SocketAddr::new(address, port))[..]).await
            }
            _ => TcpStream::connect(flow.destination).await,
        }
    };
    let timeout = Duration::from_millis(shared.limits.dial_timeout_ms.into());
    let socket = tokio::time::timeout(timeout, connect).await??;
    socket.set_nodelay(true)?;
    // Until both sides have said all, neither is what was said last to be taken for all.
    socket.set_zero_linger()?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
