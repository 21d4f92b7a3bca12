//! Each packet of the sandbox to whom it is for: the one task that sees all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};

use crate::count::add;
use crate::dns::{DNS_PORT, Transport as Carrier};
use crate::flow::{Flow, Protocol};
use crate::limit::Rate;
use crate::packet::{self, Packet, Transport};
use crate::ping::{self, Echo};
use crate::refusal::Refusal;
use crate::reply::{self, Unreachable};
use crate::shared::{Shared, Waiting};
use crate::tcp::{self, Way};
use crate::udp::{self, Datagram};

/// Two ends: the sandbox's, and the other.
type Ends = (SocketAddr, SocketAddr);

#[derive(Debug)]
pub(crate) struct Router {
    shared: Arc<Shared>,
    connections: HashMap<Ends, mpsc::Sender<Waiting>>,
    datagrams: HashMap<Ends, mpsc::Sender<Datagram>>,
    /// Those of them that have ended are known by the ends that they return.
    tasks: JoinSet<Option<(Protocol, Ends)>>,
    packets: Rate,
    bytes: Rate,
    asked: Arc<Semaphore>,
}

/// Names that are asked for and echoes that are waited for at once.
const MAX_ASKED: usize = 256;

impl Router {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let limits = shared.limits;
        Self {
            shared,
            connections: HashMap::new(),
            datagrams: HashMap::new(),
            tasks: JoinSet::new(),
            packets: Rate::per_second(limits.packets_per_s),
            bytes: Rate::per_second(limits.bytes_per_s),
            asked: Arc::new(Semaphore::new(MAX_ASKED)),
        }
    }

    /// Takes packets until there will be no more. All that came of them then ends.
    pub(crate) async fn run(mut self, mut inbound: mpsc::Receiver<Vec<Bytes>>) {
        loop {
            tokio::select! {
                batch = inbound.recv() => {
                    let Some(batch) = batch else { return };
                    let bytes = batch.iter().map(Bytes::len).sum();
                    add(&self.shared.counters.sent_packets, batch.len());
                    add(&self.shared.counters.sent_bytes, bytes);
                    self.packets.take(batch.len()).await;
                    self.bytes.take(bytes).await;
                    for packet in batch {
                        self.take(&packet);
                    }
                }
                Some(ended) = self.tasks.join_next() => self.forget(&ended),
            }
        }
    }

    fn forget(&mut self, ended: &Result<Option<(Protocol, Ends)>, JoinError>) {
        match ended {
            // Another may have begun between the same ends.
            Ok(Some((Protocol::Tcp, ends))) => {
                if self.connections.get(ends).is_some_and(mpsc::Sender::is_closed) {
                    self.connections.remove(ends);
                }
            }
            Ok(Some((_, ends))) => {
                if self.datagrams.get(ends).is_some_and(mpsc::Sender::is_closed) {
                    self.datagrams.remove(ends);
                }
            }
            Ok(None) => {}
            // It does not say which it was.
            Err(_) => {
                self.connections.retain(|_, queue| !queue.is_closed());
                self.datagrams.retain(|_, queue| !queue.is_closed());
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let packet = match packet::parse(bytes) {
            Ok(packet) => packet,
            Err(refusal) => return self.shared.counters.refuse(refusal, None, None),
        };
        let (source, destination) = packet.ends();
        if !self.shared.addresses.is_own(source.ip()) {
            let protocol = protocol(&packet);
            return self.shared.refuse(Refusal::Source, Flow { protocol, source, destination });
        }
        if let Some(member) = &self.shared.member
            && self.shared.addresses.is_near(destination.ip())
            && member.deliver(destination.ip(), bytes)
        {
            return;
        }
        match packet.transport {
            Transport::Tcp { syn, ack, rst, .. } => {
                let begins = syn && !ack && !rst;
                self.take_segment((source, destination), begins, bytes);
            }
            Transport::Udp { payload, .. } => {
                self.take_datagram((source, destination), bytes, payload.len());
            }
            Transport::Echo { id, sequence, payload } => {
                let (source, destination) = (source.ip(), destination.ip());
                let number = (id, sequence);
                self.take_echo(Echo { source, destination, number, payload_bytes: payload.len() }, bytes);
            }
            // Nothing was sent to it that could be answered so.
            Transport::Answer => {
                self.shared.refuse(Refusal::Protocol, Flow { protocol: Protocol::Icmp, source, destination });
            }
        }
    }

    fn take_segment(&mut self, ends: Ends, begins: bool, bytes: &[u8]) {
        if let Some(queue) = self.connections.get(&ends).filter(|queue| !queue.is_closed()) {
            // Without room it is lost, and comes again.
            if let (Ok(place), Some(packet)) = (queue.try_reserve(), self.shared.room.take(bytes)) {
                place.send(packet);
            }
            return;
        }
        if !begins {
            return self.shared.answer(reply::reset(bytes));
        }
        let flow = Flow { protocol: Protocol::Tcp, source: ends.0, destination: ends.1 };
        let way = match self.connections.len() < self.shared.limits.max_connections as usize {
            true => Way::of(&self.shared, flow),
            false => Err(Refusal::Limit),
        };
        let way = way.and_then(|way| {
            Ok((self.socket(&way)?, way, self.shared.room.take(bytes).ok_or(Refusal::Limit)?))
        });
        match way {
            Ok((socket, way, syn)) => {
                let (queue, packets) = mpsc::channel(tcp::QUEUE);
                self.connections.insert(ends, queue);
                let run = tcp::run(self.shared.clone(), (flow, way), syn, packets);
                self.tasks.spawn(async move {
                    let _socket = socket;
                    run.await;
                    Some((Protocol::Tcp, ends))
                });
            }
            Err(refusal) => {
                self.shared.refuse(refusal, flow);
                self.shared.answer(reply::reset(bytes));
            }
        }
    }

    /// A place for the socket that a connection has, if it is to have one.
    fn socket(&self, way: &Way) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        match way {
            Way::Names => Ok(None),
            Way::Out(_) | Way::Host => self.shared.sockets.take().map(Some),
        }
    }

    fn take_datagram(&mut self, ends: Ends, bytes: &[u8], payload_bytes: usize) {
        // Without room it is lost, as datagrams are.
        let Some(packet) = self.shared.room.take(bytes) else { return };
        let datagram = Datagram { packet, payload_bytes };
        if self.shared.addresses.is_gateway(ends.1.ip()) && ends.1.port() == DNS_PORT {
            return self.take_query(ends, datagram);
        }
        let open = self.datagrams.len();
        let entry = match self.datagrams.entry(ends) {
            Entry::Occupied(entry) if !entry.get().is_closed() => {
                // Full: it is lost, as datagrams are.
                entry.get().try_send(datagram).ok();
                return;
            }
            entry => entry,
        };
        let flow = Flow { protocol: Protocol::Udp, source: ends.0, destination: ends.1 };
        let way = match open < self.shared.limits.max_datagram_flows as usize {
            true => Way::of(&self.shared, flow),
            false => Err(Refusal::Limit),
        };
        match way.and_then(|way| Ok((self.shared.sockets.take()?, way))) {
            Ok((socket, way)) => {
                let (queue, datagrams) = mpsc::channel(udp::QUEUE);
                // There is room: nothing was sent yet.
                queue.try_send(datagram).ok();
                entry.insert_entry(queue);
                let run = udp::run(self.shared.clone(), (flow, way), datagrams);
                self.tasks.spawn(async move {
                    let _socket = socket;
                    run.await;
                    Some((Protocol::Udp, ends))
                });
            }
            Err(refusal) => {
                self.shared.refuse(refusal, flow);
                self.shared.answer(reply::unreachable(bytes, Unreachable::Prohibited));
            }
        }
    }

    fn take_query(&mut self, (source, destination): Ends, datagram: Datagram) {
        let flow = Flow { protocol: Protocol::Udp, source, destination };
        let Ok(asked) = self.asked.clone().try_acquire_owned() else {
            return self.shared.refuse(Refusal::Limit, flow);
        };
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let _asked = asked;
            let answer = shared.name_server.answer(datagram.payload(), Carrier::Udp).await;
            if let Some(answer) = answer {
                shared.answer(reply::datagram(destination, source, &answer));
            }
            None
        });
    }

    fn take_echo(&mut self, echo: Echo, bytes: &[u8]) {
        add(&self.shared.counters.echoes, 1);
        if self.shared.addresses.is_gateway(echo.destination) {
            return self.shared.answer(echo.reply(bytes));
        }
        let end = |address| SocketAddr::new(address, 0);
        let (source, destination) = (end(echo.source), end(echo.destination));
        let flow = Flow { protocol: Protocol::Icmp, source, destination };
        match self.open_echo(destination, bytes) {
            Ok((asked, packet)) => {
                let shared = self.shared.clone();
                self.tasks.spawn(async move {
                    let _asked = asked;
                    ping::run(shared, echo, packet).await;
                    None
                });
            }
            Err(refusal) => {
                self.shared.refuse(refusal, flow);
                self.shared.answer(reply::unreachable(bytes, Unreachable::Prohibited));
            }
        }
    }

    fn open_echo(
        &self,
        destination: SocketAddr,
        bytes: &[u8],
    ) -> Result<([OwnedSemaphorePermit; 2], Waiting), Refusal> {
        let asked = self.asked.clone().try_acquire_owned().map_err(|_| Refusal::Limit)?;
        let packet = self.shared.room.take(bytes).filter(|_| self.shared.echoes.try_take());
        self.shared.open(Protocol::Icmp, destination)?;
        Ok(([asked, self.shared.sockets.take()?], packet.ok_or(Refusal::Limit)?))
    }
}

fn protocol(packet: &Packet<'_>) -> Protocol {
    match packet.transport {
        Transport::Tcp { .. } => Protocol::Tcp,
        Transport::Udp { .. } => Protocol::Udp,
        Transport::Echo { .. } | Transport::Answer => Protocol::Icmp,
    }
}
