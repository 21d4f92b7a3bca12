//! Datagrams: each pair of ends has a socket of the host, by which answers find their way back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::count::add;
use crate::flow::Flow;
use crate::reply::{self, Unreachable};
use crate::shared::{Shared, Waiting};
use crate::tcp::Way;

/// Datagrams of one flow that wait for it. More are lost, as datagrams are.
pub(crate) const QUEUE: usize = 32;
/// The longest that there is.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// A datagram with the packet that it came in.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) packet: Waiting,
    /// At the end of the packet.
    pub(crate) payload_bytes: usize,
}

impl Datagram {
    pub(crate) fn payload(&self) -> &[u8] {
        let packet = self.packet.bytes();
        &packet[packet.len() - self.payload_bytes..]
    }
}

/// Carries the datagrams of `flow` until there were none for a while, or they are no longer allowed.
pub(crate) async fn run(
    shared: Arc<Shared>,
    (flow, mut way): (Flow, Way),
    mut datagrams: mpsc::Receiver<Datagram>,
) {
    add(&shared.counters.datagram_flows, 1);
    let _open = shared.counters.open(|counters| &counters.open_datagram_flows);
    let shared = &shared;
    let Ok(socket) = connect(flow, &way).await else {
        if let Some(first) = datagrams.recv().await {
            shared.answer(reply::unreachable(first.packet.bytes(), Unreachable::Port));
        }
        return;
    };
    let mut judge = shared.judge.subscribe();
    let idle = Duration::from_secs(shared.limits.idle_datagrams_s.into());
    let mut last = Bytes::new();
    let mut answer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let result = tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(datagram) => {
                    // What the host's system does not take is lost.
                    let sent = socket.send(datagram.payload()).await.map(drop);
                    last = datagram.packet.take();
                    sent
                }
                None => return,
            },
            received = socket.recv(&mut answer) => match received {
                Ok(length) => {
                    let packet = reply::datagram(flow.destination, flow.source, &answer[..length]);
                    if let Some(packet) = packet && shared.outbound.send(packet).await.is_err() {
                        return;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
            changed = judge.changed() => match changed.map(|()| way.again(shared, flow)) {
                Ok(Ok(again)) => {
                    way = again;
                    Ok(())
                }
                Ok(Err(refusal)) => return shared.refuse(refusal, flow),
                Err(_) => return,
            },
            () = tokio::time::sleep(idle) => return,
        };
        if let Err(error) = result
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            shared.answer(reply::unreachable(&last, Unreachable::Port));
        }
    }
}

async fn connect(flow: Flow, way: &Way) -> std::io::Result<UdpSocket> {
    let destination = match way {
        Way::Host => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), flow.destination.port()),
        Way::Out(_) | Way::Names => flow.destination,
    };
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(destination).await?;
    Ok(socket)
}
