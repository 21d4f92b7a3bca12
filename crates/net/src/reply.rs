//! Packets to the sandbox that no connection makes: what is refused, datagrams and echoes. Pure.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr,
    UdpPacket, UdpRepr,
};

const HOP_LIMIT: u8 = 64;
/// Of a packet that was refused, what an answer to it repeats: its headers, and a little more (RFC 792; RFC 4443, 2.4,
/// would take more).
const REPEATED_BYTES: usize = 64;

/// Why a packet does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// Somebody forbids it.
    Prohibited,
    /// Nobody listens there.
    Port,
}

/// What breaks off the connection that `packet` is of; `None` for one that breaks it off itself (RFC 9293, 3.10.7.1).
pub(crate) fn reset(packet: &[u8]) -> Option<Bytes> {
    let (source, destination, segment) = tcp_of(packet)?;
    let tcp = TcpPacket::new_checked(segment).ok()?;
    if tcp.rst() {
        return None;
    }
    let (sequence, acknowledged) = match tcp.ack() {
        true => (tcp.ack_number(), None),
        false => (Default::default(), Some(tcp.seq_number() + tcp.segment_len())),
    };
    let repr = TcpRepr {
        src_port: tcp.dst_port(),
        dst_port: tcp.src_port(),
        control: TcpControl::Rst,
        seq_number: sequence,
        ack_number: acknowledged,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = (destination.into(), source.into());
    Some(packet_of(destination, source, IpProtocol::Tcp, repr.buffer_len(), |buffer| {
        repr.emit(&mut TcpPacket::new_unchecked(buffer), &from, &to, &checksums());
    }))
}

fn tcp_of(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            (ip.next_header() == IpProtocol::Tcp)
                .then(|| (ip.src_addr().into(), ip.dst_addr().into(), ip.payload()))
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            (ip.next_header() == IpProtocol::Tcp)
                .then(|| (ip.src_addr().into(), ip.dst_addr().into(), ip.payload()))
        }
        _ => None,
    }
}

/// A datagram, if it is not too long for a packet.
pub(crate) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Bytes> {
    let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let length = repr.header_len() + payload.len();
    let (source, destination) = (from.ip(), to.ip());
    let header = if source.is_ipv4() { 20 } else { 0 };
    u16::try_from(header + length).ok()?;
    Some(packet_of(source, destination, IpProtocol::Udp, length, |buffer| {
        let (from, to) = (source.into(), destination.into());
        let fill = |room: &mut [u8]| room.copy_from_slice(payload);
        repr.emit(&mut UdpPacket::new_unchecked(buffer), &from, &to, payload.len(), fill, &checksums());
    }))
}

/// An answer to an echo that was asked for.
pub(crate) fn echo(from: IpAddr, to: IpAddr, (id, sequence): (u16, u16), payload: &[u8]) -> Option<Bytes> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let repr = Icmpv4Repr::EchoReply { ident: id, seq_no: sequence, data: payload };
            Some(packet_of(from, to, IpProtocol::Icmp, repr.buffer_len(), |buffer| {
                repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checksums());
            }))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let repr = Icmpv6Repr::EchoReply { ident: id, seq_no: sequence, data: payload };
            Some(packet_of(from, to, IpProtocol::Icmpv6, repr.buffer_len(), |buffer| {
                repr.emit(&source, &destination, &mut Icmpv6Packet::new_unchecked(buffer), &checksums());
            }))
        }
        _ => None,
    }
}

/// Says to the sender of `packet` that it did not arrive.
pub(crate) fn unreachable(packet: &[u8], why: Unreachable) -> Option<Bytes> {
    let repeated = |header: usize| &packet[header..packet.len().min(header + REPEATED_BYTES)];
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let reason = match why {
                Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
            };
            let header = Ipv4Repr {
                src_addr: ip.src_addr(),
                dst_addr: ip.dst_addr(),
                next_header: ip.next_header(),
                payload_len: ip.payload().len(),
                hop_limit: ip.hop_limit(),
            };
            let data = repeated(ip.header_len().into());
            let repr = Icmpv4Repr::DstUnreachable { reason, header, data };
            let (from, to) = (ip.dst_addr().into(), ip.src_addr().into());
            Some(packet_of(from, to, IpProtocol::Icmp, repr.buffer_len(), |buffer| {
                repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checksums());
            }))
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let reason = match why {
                Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
            };
            let header = Ipv6Repr {
                src_addr: ip.src_addr(),
                dst_addr: ip.dst_addr(),
                next_header: ip.next_header(),
                payload_len: ip.payload().len(),
                hop_limit: ip.hop_limit(),
            };
            let data = repeated(ip.header_len());
            let repr = Icmpv6Repr::DstUnreachable { reason, header, data };
            let (source, destination) = (ip.dst_addr(), ip.src_addr());
            let (from, to) = (source.into(), destination.into());
            Some(packet_of(from, to, IpProtocol::Icmpv6, repr.buffer_len(), |buffer| {
                repr.emit(&source, &destination, &mut Icmpv6Packet::new_unchecked(buffer), &checksums());
            }))
        }
        _ => None,
    }
}

/// All are made.
fn checksums() -> ChecksumCapabilities {
    ChecksumCapabilities::default()
}

/// A packet with `length` bytes that `fill` writes. Both ends are of one family.
fn packet_of(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Bytes {
    let ip = IpRepr::new(source.into(), destination.into(), protocol, length, HOP_LIMIT);
    let mut packet = vec![0; ip.buffer_len()];
    let header = ip.header_len();
    ip.emit(&mut packet[..], &checksums());
    fill(&mut packet[header..]);
    packet.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Transport, parse};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_made_is_what_is_read() {
        for (from, to) in
            [("1.2.3.4:5", "10.0.2.15:6"), ("[2606::1]:5", "[fd00::15]:6")].map(|(a, b)| (at(a), at(b)))
        {
            let packet = datagram(from, to, b"payload").unwrap();
            let read = parse(&packet).unwrap();
            assert_eq!(read.ends(), (from, to));
            assert_eq!(
                read.transport,
                Transport::Udp { source_port: 5, destination_port: 6, payload: b"payload" }
            );
            for why in [Unreachable::Port, Unreachable::Prohibited] {
                let answer = unreachable(&packet, why).unwrap();
                let read = parse(&answer).unwrap();
                assert_eq!(
                    (read.source, read.destination, read.transport),
                    (to.ip(), from.ip(), Transport::Answer)
                );
            }
            assert!(echo(from.ip(), to.ip(), (1, 2), b"x").is_some());
            assert!(reset(&packet).is_none());
        }
        assert!(datagram(at("1.2.3.4:5"), at("1.2.3.4:6"), &[0; 65_507]).is_some());
        assert!(datagram(at("1.2.3.4:5"), at("1.2.3.4:6"), &[0; 65_508]).is_none());
    }
}
