//! One connection's TCP, towards the sandbox: packets and time in, packets and bytes out. No I/O.
//!
//! Each connection has a machine of its own, so that a packet costs the same however many there are.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Ticks;
use smoltcp::wire::{HardwareAddress, IpCidr};

/// Of the packets that it sends and asks for: a window has room for some of them.
const MTU_BYTES: usize = 16_384;
/// Packets that are made before they are fetched. Who asks for small ones does not have a whole window of them made.
pub(super) const MAX_OUTPUTS: usize = 32;

/// The end of a connection that the sandbox believes to be its destination.
pub(crate) struct Machine {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
    began: Instant,
    /// Both sides have said that they have said all.
    ended: bool,
    /// Since when there is nothing left to do, which is as late as it gets: at the end of a connection's time what was not
    /// received yet would be forgotten.
    waits_since: Option<Ticks>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("state", &self.socket().state()).finish_non_exhaustive()
    }
}

impl Machine {
    /// Waits for a connection to `destination`.
    pub(crate) fn new(destination: SocketAddr, buffer_bytes: usize, seed: u64) -> Self {
        let began = Instant::now();
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, Ticks::ZERO);
        interface.update_ip_addrs(|addresses| {
            let length = if destination.is_ipv4() { 32 } else { 128 };
            // There is room for one.
            addresses.push(IpCidr::new(destination.ip().into(), length)).ok();
        });
        let buffer = || SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        // Neither its state nor its port can be wrong.
        socket.listen(destination).ok();
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, wire, began, ended: false, waits_since: None }
    }

    /// Takes a packet of the sandbox's.
    pub(crate) fn input(&mut self, packet: Bytes) {
        self.wire.inputs.push_back(packet);
    }

    /// Does what is to be done now. Packets to send are then in [`Machine::outputs`]; as many as there may be can be
    /// followed by more.
    pub(crate) fn poll(&mut self) {
        let now = self.now();
        self.ended |= matches!(self.socket().state(), State::LastAck | State::Closing | State::TimeWait);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        if self.socket().state() == State::TimeWait {
            self.waits_since.get_or_insert(now);
        }
    }

    /// When it has something to do of itself.
    pub(crate) fn wake_in(&mut self) -> Option<Duration> {
        if self.socket().state() == State::TimeWait {
            return None;
        }
        let now = self.now();
        let at = self.interface.poll_at(now, &self.sockets)?;
        Some(Duration::from_micros(u64::try_from(at.total_micros() - now.total_micros()).unwrap_or(0)))
    }

    fn now(&self) -> Ticks {
        let now = || Ticks::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX));
        self.waits_since.unwrap_or_else(now)
    }

    /// What is to be sent to the sandbox.
    pub(crate) fn outputs(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.wire.outputs
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// What the sandbox has said, in one piece, and not all of it.
    pub(crate) fn received(&mut self) -> &[u8] {
        let socket = self.socket_mut();
        let length = socket.recv_queue();
        // Before a connection and after its end there is nothing.
        socket.peek(length).unwrap_or_default()
    }

    /// Forgets the first of what the sandbox has said.
    pub(crate) fn consume(&mut self, length: usize) {
        self.socket_mut().recv(|bytes| (length.min(bytes.len()), ())).ok();
    }

    /// Whether the sandbox will say no more than was received.
    pub(crate) fn has_said_all(&self) -> bool {
        let socket = self.socket();
        let before = matches!(socket.state(), State::Listen | State::SynReceived);
        !before && !socket.may_recv()
    }

    /// How much can be said to the sandbox now.
    pub(crate) fn room(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    /// Has `fill` put what is to be said where there is room for it, and say how much it put there. There is room.
    pub(crate) fn say_with<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut().send(fill).ok()
    }

    /// Says no more, once all was said.
    pub(crate) fn close(&mut self) {
        self.socket_mut().close();
    }

    /// Breaks the connection off.
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Whether the sandbox has broken it off, or it was never made. Once both sides have ended, nothing is left to break.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.socket().state(), State::Closed | State::Listen) && !self.ended
    }

    /// Whether both sides have said all.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.socket().state(), State::Closed | State::TimeWait)
    }
}

/// Where packets wait on their way in and out.
#[derive(Debug, Default)]
struct Wire {
    inputs: VecDeque<Bytes>,
    outputs: VecDeque<Bytes>,
}

#[derive(Debug)]
struct Input(Bytes);

#[derive(Debug)]
struct Output<'a>(&'a mut VecDeque<Bytes>);

impl RxToken for Input {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Output<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push_back(packet.into());
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Input;
    type TxToken<'a> = Output<'a>;

    fn receive(&mut self, _: Ticks) -> Option<(Input, Output<'_>)> {
        if self.outputs.len() >= MAX_OUTPUTS {
            return None;
        }
        Some((Input(self.inputs.pop_front()?), Output(&mut self.outputs)))
    }

    fn transmit(&mut self, _: Ticks) -> Option<Output<'_>> {
        (self.outputs.len() < MAX_OUTPUTS).then_some(Output(&mut self.outputs))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU_BYTES;
        // Packets were read with their checksums before they came here.
        capabilities.checksum.ipv4 = smoltcp::phy::Checksum::Tx;
        capabilities.checksum.tcp = smoltcp::phy::Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests;
