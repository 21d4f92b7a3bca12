//! IP packets, as far as they are understood here. Pure; every byte is the guest's.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use crate::refusal::Refusal;

/// A packet that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who says that he sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport<'a>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport<'a> {
    /// A segment of TCP.
    Tcp {
        /// Its ports.
        source_port: u16,
        /// See `source_port`.
        destination_port: u16,
        /// It begins a connection.
        syn: bool,
        /// It answers.
        ack: bool,
        /// It breaks a connection off.
        rst: bool,
    },
    /// A datagram of UDP.
    Udp {
        /// Its ports.
        source_port: u16,
        /// See `source_port`.
        destination_port: u16,
        /// What is in it.
        payload: &'a [u8],
    },
    /// An echo that is asked for.
    Echo {
        /// Who asks.
        id: u16,
        /// How often he has.
        sequence: u16,
        /// What he gets back.
        payload: &'a [u8],
    },
}

impl Packet<'_> {
    /// Its ends, with the port 0 for an echo.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (source, destination) = match self.transport {
            Transport::Tcp { source_port, destination_port, .. }
            | Transport::Udp { source_port, destination_port, .. } => (source_port, destination_port),
            Transport::Echo { .. } => (0, 0),
        };
        (SocketAddr::new(self.source, source), SocketAddr::new(self.destination, destination))
    }
}

/// Reads a packet that must be whole, with the right checksums, and without anything between its headers.
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::Malformed);
    }
    match IpVersion::of_packet(bytes) {
        Ok(IpVersion::Ipv4) => parse_ipv4(bytes),
        Ok(IpVersion::Ipv6) => parse_ipv6(bytes),
        Err(_) => Err(Refusal::Malformed),
    }
}

fn malformed<E>(_: E) -> Refusal {
    Refusal::Malformed
}

fn parse_ipv4(bytes: &[u8]) -> Result<Packet<'_>, Refusal> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(malformed)?;
    if usize::from(packet.total_len()) != bytes.len() || !packet.verify_checksum() {
        return Err(Refusal::Malformed);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Refusal::Fragment);
    }
    if packet.header_len() != 20 {
        return Err(Refusal::Options);
    }
    let ends = (packet.src_addr().into(), packet.dst_addr().into());
    parse_transport(ends, packet.next_header(), packet.payload())
}

fn parse_ipv6(bytes: &[u8]) -> Result<Packet<'_>, Refusal> {
    let packet = Ipv6Packet::new_checked(bytes).map_err(malformed)?;
    if packet.total_len() != bytes.len() {
        return Err(Refusal::Malformed);
    }
    let ends = (packet.src_addr().into(), packet.dst_addr().into());
    match packet.next_header() {
        IpProtocol::Ipv6Frag => Err(Refusal::Fragment),
        IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => Err(Refusal::Options),
        next => parse_transport(ends, next, packet.payload()),
    }
}

fn parse_transport<'a>(
    (source, destination): (IpAddr, IpAddr),
    protocol: IpProtocol,
    payload: &'a [u8],
) -> Result<Packet<'a>, Refusal> {
    let (from, to) = (source.into(), destination.into());
    let transport = match (protocol, source) {
        (IpProtocol::Tcp, _) => {
            let tcp = TcpPacket::new_checked(payload).map_err(malformed)?;
            if !tcp.verify_checksum(&from, &to) {
                return Err(Refusal::Malformed);
            }
            Transport::Tcp {
                source_port: port(tcp.src_port())?,
                destination_port: port(tcp.dst_port())?,
                syn: tcp.syn(),
                ack: tcp.ack(),
                rst: tcp.rst(),
            }
        }
        (IpProtocol::Udp, _) => {
            let udp = UdpPacket::new_checked(payload).map_err(malformed)?;
            // Over IPv6 there must be a checksum (RFC 8200, 8.1).
            let is_missing = source.is_ipv6() && udp.checksum() == 0;
            if usize::from(udp.len()) != payload.len() || is_missing || !udp.verify_checksum(&from, &to) {
                return Err(Refusal::Malformed);
            }
            Transport::Udp {
                source_port: port(udp.src_port())?,
                destination_port: port(udp.dst_port())?,
                payload: &payload[8..],
            }
        }
        (IpProtocol::Icmp, IpAddr::V4(_)) => {
            let icmp = Icmpv4Packet::new_checked(payload).map_err(malformed)?;
            if !icmp.verify_checksum() {
                return Err(Refusal::Malformed);
            }
            match icmp.msg_type() {
                Icmpv4Message::EchoRequest => echo(icmp.msg_code(), payload)?,
                _ => return Err(Refusal::Protocol),
            }
        }
        (IpProtocol::Icmpv6, IpAddr::V6(from)) => {
            let icmp = Icmpv6Packet::new_checked(payload).map_err(malformed)?;
            let IpAddr::V6(to) = destination else { return Err(Refusal::Malformed) };
            if !icmp.verify_checksum(&from, &to) {
                return Err(Refusal::Malformed);
            }
            match icmp.msg_type() {
                Icmpv6Message::EchoRequest => echo(icmp.msg_code(), payload)?,
                _ => return Err(Refusal::Protocol),
            }
        }
        _ => return Err(Refusal::Protocol),
    };
    Ok(Packet { source, destination, transport })
}

/// No connection has the port 0.
fn port(port: u16) -> Result<u16, Refusal> {
    if port == 0 { Err(Refusal::Malformed) } else { Ok(port) }
}

/// Of both families alike (RFC 792, RFC 4443, 4.1).
fn echo(code: u8, message: &[u8]) -> Result<Transport<'_>, Refusal> {
    let (Some(id), Some(sequence), Some(payload), 0) =
        (message.get(4..6), message.get(6..8), message.get(8..), code)
    else {
        return Err(Refusal::Malformed);
    };
    let number = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    Ok(Transport::Echo { id: number(id), sequence: number(sequence), payload })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A datagram of 3 bytes from 10.0.2.15:1000 to 93.184.215.14:2000.
    fn datagram() -> Vec<u8> {
        let mut bytes = vec![0; 31];
        bytes[..28].copy_from_slice(&[
            0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 93, 184, 215, 14, 3, 232, 7, 208, 0, 11,
            0, 0,
        ]);
        bytes[28..].copy_from_slice(b"abc");
        fix(&mut bytes);
        bytes
    }

    fn fix(bytes: &mut [u8]) {
        let mut ip = Ipv4Packet::new_unchecked(bytes);
        ip.fill_checksum();
        let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
        let is_plain = ip.next_header() == IpProtocol::Udp && ip.header_len() == 20;
        if is_plain && UdpPacket::new_checked(ip.payload_mut()).is_ok() {
            UdpPacket::new_unchecked(ip.payload_mut()).fill_checksum(&from, &to);
        }
    }

    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Refusal> {
        let mut bytes = datagram();
        change(&mut bytes);
        fix(&mut bytes);
        parse(&bytes).map(drop)
    }

    #[test]
    fn a_packet_is_read_whole_or_not_at_all() {
        let bytes = datagram();
        let packet = parse(&bytes).unwrap();
        assert_eq!(packet.ends(), ("10.0.2.15:1000".parse().unwrap(), "93.184.215.14:2000".parse().unwrap()));
        assert!(matches!(packet.transport, Transport::Udp { payload: b"abc", .. }));
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Err(Refusal::Malformed));
        }
        assert_eq!(parse(&[&bytes[..], b"x"].concat()), Err(Refusal::Malformed), "something follows");
        for (index, what) in [(10, "header"), (30, "payload")] {
            let mut wrong = bytes.clone();
            wrong[index] ^= 1;
            assert_eq!(parse(&wrong), Err(Refusal::Malformed), "{what}");
        }
    }

    #[test]
    fn what_could_pass_unread_does_not() {
        assert_eq!(changed(|_| ()), Ok(()));
        assert_eq!(changed(|bytes| bytes[6] = 0x20), Err(Refusal::Fragment), "more to come");
        assert_eq!(changed(|bytes| bytes[7] = 1), Err(Refusal::Fragment), "not the first");
        assert_eq!(changed(|bytes| bytes[6] = 0x40), Ok(()), "not to be fragmented");
        let options = |bytes: &mut Vec<u8>| {
            (bytes[0], bytes[3]) = (0x46, 35);
            bytes.splice(20..20, [131, 3, 4, 0]);
        };
        assert_eq!(changed(options), Err(Refusal::Options));
        assert_eq!(changed(|bytes| bytes[9] = 47), Err(Refusal::Protocol), "GRE");
        assert_eq!(changed(|bytes| bytes[9] = 1), Err(Refusal::Malformed), "ICMP without its checksum");
        assert_eq!(
            changed(|bytes| bytes[21] = 0).and(changed(|bytes| bytes[20..22].fill(0))),
            Err(Refusal::Malformed)
        );
        assert_eq!(changed(|bytes| bytes[25] = 12), Err(Refusal::Malformed), "longer than the packet");
        assert_eq!(changed(|bytes| bytes[25] = 10), Err(Refusal::Malformed), "shorter than the packet");
        let mut ipv6 = vec![0x60, 0, 0, 0, 0, 8, 44, 64];
        ipv6.extend([0; 40]);
        assert_eq!(parse(&ipv6), Err(Refusal::Fragment));
        for header in [0, 43, 60] {
            ipv6[6] = header;
            assert_eq!(parse(&ipv6), Err(Refusal::Options));
        }
    }

    proptest! {
        #[test]
        fn nothing_is_too_odd(mut bytes in prop::collection::vec(any::<u8>(), 0..100), version in prop::option::of(4..=6_u8)) {
            if let (Some(first), Some(version)) = (bytes.first_mut(), version) {
                *first = version << 4 | *first & 15;
            }
            if let Ok(packet) = parse(&bytes) {
                prop_assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
            }
        }

        #[test]
        fn one_wrong_bit_is_noticed_or_changes_nothing_that_counts(bit in 0..31 * 8_usize) {
            let (good, mut bytes) = (datagram(), datagram());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(&good, &bytes);
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
