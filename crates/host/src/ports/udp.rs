//! Datagrams between a port of the host and one of a sandbox.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bouvet_wire::limits::MAX_DATAGRAM_BYTES;
use bouvet_wire::v1::{self, datagrams_input::Input, datagrams_output::Output};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::debug;

use super::entrance::{Door, Entrance};
use crate::link::Client;

/// A peer to which and from which nothing came for so long is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// How often those are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// From the call to its answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Datagrams that wait for the link. Those beyond it are lost, as they are in networks.
const WAITING: usize = 16;
/// How long nothing is received once that could not be done.
const RESPITE: Duration = Duration::from_secs(1);

/// Passes datagrams while its sandbox runs. What comes while that is paused waits with the kernel, and what comes while
/// it has no VM is lost.
pub(super) async fn serve(socket: UdpSocket, guest: u16, mut entrance: Entrance, closed: CancellationToken) {
    let (mut exchange, mut buffer) = (None::<Exchange>, vec![0; MAX_DATAGRAM_BYTES]);
    let mut door = entrance.door();
    loop {
        tokio::select! {
            biased;
            () = closed.cancelled() => return,
            changed = entrance.changed() => {
                if !changed {
                    return;
                }
                door = entrance.door();
                if matches!(door, Door::Shut) {
                    exchange = None;
                }
            }
            answer = answer(&mut exchange) => match answer {
                Some(datagram) => deliver(&socket, exchange.as_mut(), &datagram),
                // The guest has ended it.
                None => exchange = None,
            },
            received = socket.recv_from(&mut buffer), if !matches!(door, Door::Ajar) => match (received, &door) {
                (Ok((length, from)), Door::Open(client)) => {
                    if exchange.is_none() {
                        exchange = Exchange::begin(client, guest, &closed).await;
                    }
                    if let Some(exchange) = &mut exchange {
                        exchange.send(from, &buffer[..length], &entrance);
                    }
                }
                (Ok(_), _) => {}
                (Err(error), _) => {
                    debug!(guest, %error, "could not receive a datagram for a sandbox's port");
                    tokio::time::sleep(RESPITE).await;
                }
            },
        }
    }
}

/// The next that a program of the sandbox has sent; `None` if there will be no more. For ever, where nobody could.
async fn answer(exchange: &mut Option<Exchange>) -> Option<v1::Datagram> {
    let Some(exchange) = exchange else { return std::future::pending().await };
    loop {
        tokio::select! {
            answer = exchange.outputs.message() => match answer {
                Ok(Some(v1::DatagramsOutput { output: Some(Output::Datagram(datagram)) })) => {
                    return Some(datagram);
                }
                _ => return None,
            },
            () = tokio::time::sleep_until(exchange.next_sweep) => exchange.sweep(),
        }
    }
}

fn deliver(socket: &UdpSocket, exchange: Option<&mut Exchange>, datagram: &v1::Datagram) {
    let peer = exchange.and_then(|exchange| exchange.peers.heard(datagram.peer));
    if let Some(address) = peer {
        // One that cannot be sent is lost.
        socket.try_send_to(&datagram.data, address).ok();
    }
}

/// A call that carries the datagrams of one port.
struct Exchange {
    input: mpsc::Sender<v1::DatagramsInput>,
    outputs: Streaming<v1::DatagramsOutput>,
    peers: Peers,
    next_sweep: Instant,
}

impl Exchange {
    /// `None` if the guest will not have it, or it is not wanted any more.
    async fn begin(client: &Client, guest: u16, closed: &CancellationToken) -> Option<Self> {
        let mut client = client.clone();
        let (input, later) = mpsc::channel(WAITING);
        let start = Input::Start(v1::DatagramsStart { port: guest.into() });
        // There is room: nothing was sent yet.
        input.try_send(v1::DatagramsInput { input: Some(start) }).ok();
        let begun = async {
            let begun = tokio::time::timeout(DEADLINE, client.datagrams(ReceiverStream::new(later))).await;
            begun.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        };
        let begun = tokio::select! {
            begun = begun => begun,
            () = closed.cancelled() => return None,
        };
        match begun {
            Ok(outputs) => Some(Self {
                input,
                outputs: outputs.into_inner(),
                peers: Peers::default(),
                next_sweep: Instant::now() + SWEEP,
            }),
            Err(status) => {
                debug!(guest, %status, "could not pass a datagram to a sandbox's port");
                None
            }
        }
    }

    /// Sends what came from `from`, as far as there is room for it.
    fn send(&mut self, from: SocketAddr, data: &[u8], entrance: &Entrance) {
        let peer = match self.peers.known(from) {
            Some(peer) => peer,
            None => {
                let permit = entrance.peer().or_else(|| self.give_way());
                let Some(permit) = permit else { return };
                self.peers.add(from, permit)
            }
        };
        let datagram = v1::Datagram { peer, data: Bytes::copy_from_slice(data) };
        self.input.try_send(v1::DatagramsInput { input: Some(Input::Datagram(datagram)) }).ok();
    }

    /// The place of the peer that was heard of least lately.
    fn give_way(&mut self) -> Option<OwnedSemaphorePermit> {
        self.forget(self.peers.oldest()?)
    }

    fn sweep(&mut self) {
        self.next_sweep = Instant::now() + SWEEP;
        for peer in self.peers.idle(IDLE) {
            self.forget(peer);
        }
    }

    /// Has the guest close a peer's socket, unless it must be asked later.
    fn forget(&mut self, peer: u32) -> Option<OwnedSemaphorePermit> {
        self.input.try_send(v1::DatagramsInput { input: Some(Input::Forget(peer)) }).ok()?;
        self.peers.remove(peer)
    }
}

/// Whose datagrams pass, by number and by address.
#[derive(Debug, Default)]
struct Peers {
    by_address: HashMap<SocketAddr, u32>,
    by_number: HashMap<u32, Peer>,
    last: u32,
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    heard: Instant,
    permit: OwnedSemaphorePermit,
}

impl Peers {
    /// The number of the peer at `address`, who is heard of.
    fn known(&mut self, address: SocketAddr) -> Option<u32> {
        let number = *self.by_address.get(&address)?;
        self.heard(number).map(|_| number)
    }

    /// The address of a peer who is heard of.
    fn heard(&mut self, number: u32) -> Option<SocketAddr> {
        let peer = self.by_number.get_mut(&number)?;
        peer.heard = Instant::now();
        Some(peer.address)
    }

    fn add(&mut self, address: SocketAddr, permit: OwnedSemaphorePermit) -> u32 {
        // Those that are known are fewer than numbers.
        while self.by_number.contains_key(&self.last) {
            self.last = self.last.wrapping_add(1);
        }
        let number = self.last;
        // Not at once again: an answer to another may be on its way.
        self.last = self.last.wrapping_add(1);
        self.by_address.insert(address, number);
        self.by_number.insert(number, Peer { address, heard: Instant::now(), permit });
        number
    }

    fn remove(&mut self, number: u32) -> Option<OwnedSemaphorePermit> {
        let peer = self.by_number.remove(&number)?;
        self.by_address.remove(&peer.address);
        Some(peer.permit)
    }

    fn oldest(&self) -> Option<u32> {
        self.by_number.iter().min_by_key(|(_, peer)| peer.heard).map(|(number, _)| *number)
    }

    fn idle(&self, longer: Duration) -> Vec<u32> {
        let is_idle = |(number, peer): (&u32, &Peer)| (peer.heard.elapsed() >= longer).then_some(*number);
        self.by_number.iter().filter_map(is_idle).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn peers_are_known_until_they_are_idle_and_their_numbers_are_not_used_again_at_once() {
        let room = Arc::new(Semaphore::new(2));
        let permit = || room.clone().try_acquire_owned().unwrap();
        let [one, other] = ["127.0.0.1:1", "[::1]:1"].map(|address| address.parse::<SocketAddr>().unwrap());
        let mut peers = Peers::default();
        let first = peers.add(one, permit());
        tokio::time::advance(IDLE / 2).await;
        let second = peers.add(other, permit());
        assert_eq!((peers.known(other), peers.oldest()), (Some(second), Some(first)));
        tokio::time::advance(IDLE / 2).await;
        assert_eq!(peers.idle(IDLE), [first]);
        // An answer counts as much as what it answers.
        assert_eq!(peers.heard(first), Some(one));
        assert_eq!((peers.idle(IDLE), peers.oldest()), (vec![], Some(second)));
        drop(peers.remove(second));
        assert_eq!((peers.known(other), peers.heard(second), room.available_permits()), (None, None, 1));
        assert!(![first, second].contains(&peers.add(other, permit())));
        peers.last = u32::MAX;
        assert_eq!(
            peers.add("127.0.0.2:1".parse().unwrap(), {
                room.add_permits(1);
                permit()
            }),
            u32::MAX
        );
        peers.last = first;
        room.add_permits(1);
        assert!(peers.add("127.0.0.3:1".parse().unwrap(), permit()) > first, "the first is still there");
    }
}
