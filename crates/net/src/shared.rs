//! What all tasks of one sandbox's network share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::count::Counters;
use crate::flow::{Flow, Protocol};
use crate::gateway::NameServer;
use crate::intercept::Interceptor;
use crate::judge::{Judge, Permit};
use crate::limit::{Limits, Rate};
use crate::name::Name;
use crate::names::{MAX_NAMES, Names};
use crate::own;
use crate::policy::Surroundings;
use crate::refusal::Refusal;
use crate::sockets::Sockets;
use crate::switch::Member;

/// The addresses of a sandbox and of its gateway, with the lengths of their prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The sandbox's own.
    pub ipv4: (Ipv4Addr, u8),
    /// See `ipv4`.
    pub ipv6: (Ipv6Addr, u8),
    /// Whom it sends everything to, and asks for names.
    pub gateway_ipv4: Ipv4Addr,
    /// See `gateway_ipv4`.
    pub gateway_ipv6: Ipv6Addr,
}

impl Default for Addresses {
    /// Those of a sandbox that is alone in its network: every sandbox has the same.
    fn default() -> Self {
        let ipv6 = |last| Ipv6Addr::new(0xfd00, 0xb0e7, 0, 0, 0, 0, 0, last);
        Self {
            ipv4: (Ipv4Addr::new(10, 0, 2, 15), 24),
            ipv6: (ipv6(0x15), 64),
            gateway_ipv4: Ipv4Addr::new(10, 0, 2, 2),
            gateway_ipv6: ipv6(2),
        }
    }
}

impl Addresses {
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.ipv4.0,
            IpAddr::V6(address) => address == self.ipv6.0,
        }
    }

    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway_ipv4,
            IpAddr::V6(address) => address == self.gateway_ipv6,
        }
    }

    /// Whether it is on the sandbox's own wire.
    pub(crate) fn is_near(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let bits =
                    (address.to_bits() ^ self.ipv4.0.to_bits()).checked_shr(32 - u32::from(self.ipv4.1));
                bits.unwrap_or(0) == 0
            }
            IpAddr::V6(address) => {
                let bits =
                    (address.to_bits() ^ self.ipv6.0.to_bits()).checked_shr(128 - u32::from(self.ipv6.1));
                bits.unwrap_or(0) == 0
            }
        }
    }
}

/// Bytes of the sandbox's packets that wait at most for the tasks that they are for, all together.
const MAX_WAITING_BYTES: usize = 16 * 1024 * 1024;
/// What one of them takes beside its bytes, at most.
const WAITING_BYTES: usize = 256;

/// Room for packets that wait.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WAITING_BYTES)))
    }
}

impl Room {
    /// A copy of `packet` that may wait, if there is room: what it came in is longer, and must not wait with it.
    pub(crate) fn take(&self, packet: &[u8]) -> Option<Waiting> {
        let bytes = u32::try_from(packet.len() + WAITING_BYTES).ok()?;
        let room = self.0.clone().try_acquire_many_owned(bytes).ok()?;
        Some(Waiting { packet: Bytes::copy_from_slice(packet), _room: room })
    }
}

/// A packet that waits for a task, and takes room until it is there.
#[derive(Debug)]
pub(crate) struct Waiting {
    packet: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Waiting {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.packet
    }

    /// It waits no more.
    pub(crate) fn take(self) -> Bytes {
        self.packet
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) addresses: Addresses,
    pub(crate) member: Option<Arc<Member>>,
    pub(crate) limits: Limits,
    pub(crate) sockets: Sockets,
    pub(crate) judge: Arc<watch::Sender<Arc<Judge>>>,
    pub(crate) names: Arc<Mutex<Names>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) name_server: Arc<NameServer>,
    pub(crate) interceptor: Option<Arc<Interceptor>>,
    pub(crate) echoes: Rate,
    /// For packets of the sandbox that wait for a task.
    pub(crate) room: Room,
    /// To the sandbox.
    pub(crate) outbound: mpsc::Sender<Bytes>,
}

impl Shared {
    pub(crate) fn judge(&self) -> Arc<Judge> {
        self.judge.borrow().clone()
    }

    /// Whether something may be sent to `destination`, which is not the gateway, with the names that it has now.
    pub(crate) fn open(&self, protocol: Protocol, destination: SocketAddr) -> Result<Permit, Refusal> {
        self.open_by(protocol, destination, &self.names_of(destination.ip()))
    }

    /// Whether what was `permitted` may go on, by the policy as it is now: with the names that its destination had then,
    /// and those that it has now.
    pub(crate) fn open_again(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
        permitted: &Permit,
    ) -> Result<Permit, Refusal> {
        let mut names = permitted.names.clone();
        names.extend(
            self.names_of(destination.ip()).into_iter().filter(|name| !permitted.names.contains(name)),
        );
        names.truncate(MAX_NAMES);
        self.open_by(protocol, destination, &names)
    }

    fn open_by(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
        names: &[Name],
    ) -> Result<Permit, Refusal> {
        if self.addresses.is_near(destination.ip()) {
            return Err(Refusal::Sandbox);
        }
        let surroundings = Surroundings { is_host: own::is_own(destination.ip()), names };
        self.judge().open(protocol, destination, surroundings)
    }

    fn names_of(&self, address: IpAddr) -> Vec<Name> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).of(address, Instant::now())
    }

    pub(crate) fn refuse(&self, refusal: Refusal, flow: Flow) {
        self.counters.refuse(refusal, Some(flow), None);
    }

    /// Sends a packet that answers another, if there is room: whoever waits for it asks again.
    pub(crate) fn answer(&self, packet: Option<Bytes>) {
        if let Some(packet) = packet {
            self.outbound.try_send(packet).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_wait_while_there_is_room_and_not_past_it() {
        const PACKET_BYTES: usize = 65_536 - WAITING_BYTES;
        let (room, packet) = (Room::default(), vec![7; PACKET_BYTES]);
        let mut waiting: Vec<_> =
            (0..MAX_WAITING_BYTES / 65_536).map(|_| room.take(&packet).unwrap()).collect();
        assert!(room.take(&[]).is_none());
        assert_eq!(waiting.pop().unwrap().take(), packet);
        let last = room.take(&packet);
        assert!(last.is_some() && room.take(&[]).is_none());
    }
}
