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
    /// What answers another packet, or says that it did not arrive.
    Answer,
}

impl Packet<'_> {
    /// Its ends, with the port 0 for what has none.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (source, destination) = match self.transport {
            Transport::Tcp { source_port, destination_port, .. }
            | Transport::Udp { source_port, destination_port, .. } => (source_port, destination_port),
            Transport::Echo { .. } | Transport::Answer => (0, 0),
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
                Icmpv4Message::EchoReply | Icmpv4Message::DstUnreachable | Icmpv4Message::TimeExceeded => {
                    Transport::Answer
                }
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
                Icmpv6Message::EchoReply
                | Icmpv6Message::DstUnreachable
                | Icmpv6Message::PktTooBig
                | Icmpv6Message::TimeExceeded => Transport::Answer,
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

    /// Writes what was read, by the RFCs' offsets, with checksums of its own.
    fn write(packet: &Packet<'_>) -> Vec<u8> {
        let (protocol, mut body, sum_at) = match packet.transport {
            Transport::Tcp { source_port, destination_port, syn, ack, rst } => {
                let mut body = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
                body.extend([0; 8]);
                body.extend([
                    0x50,
                    u8::from(syn) << 1 | u8::from(rst) << 2 | u8::from(ack) << 4,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                (6, body, 16)
            }
            Transport::Udp { source_port, destination_port, payload } => {
                let length = u16::try_from(8 + payload.len()).unwrap();
                let header = [source_port, destination_port, length, 0].map(u16::to_be_bytes).concat();
                (17, [&header, payload].concat(), 6)
            }
            Transport::Echo { id, sequence, payload } => {
                let (protocol, kind) = if packet.source.is_ipv4() { (1, 8_u16) } else { (58, 128) };
                let header = [kind << 8, 0, id, sequence].map(u16::to_be_bytes).concat();
                (protocol, [&header, payload].concat(), 2)
            }
            Transport::Answer if packet.source.is_ipv4() => (1, vec![0; 8], 2),
            Transport::Answer => (58, [&[129][..], &[0; 7]].concat(), 2),
        };
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let ends = [octets(packet.source), octets(packet.destination)].concat();
        let length = u16::try_from(body.len()).unwrap();
        let pseudo = [&ends[..], &length.to_be_bytes(), &[0, protocol]].concat();
        let sum = checksum(&[if protocol == 1 { &[] } else { &pseudo[..] }, &body]);
        let sum = if sum == 0 && protocol == 17 { 0xffff } else { sum };
        body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut header = match packet.source {
            IpAddr::V4(_) => {
                let total = (20 + length).to_be_bytes();
                vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0]
            }
            IpAddr::V6(_) => [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64]].concat(),
        };
        header.extend(ends);
        if packet.source.is_ipv4() {
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        [header, body].concat()
    }

    /// The internet's checksum (RFC 1071) of what is of even length but for the last.
    fn checksum(parts: &[&[u8]]) -> u16 {
        let words = parts.iter().flat_map(|part| part.chunks(2));
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        let mut sum: u32 = words.map(word).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn any_ends() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(from, to)| (from.into(), to.into())),
            any::<([u16; 8], [u16; 8])>().prop_map(|(from, to)| (from.into(), to.into())),
        ]
    }

    #[test]
    fn headers_that_lead_elsewhere_are_not_followed() {
        let ends = ("fd00:b0e7::15".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let transport = Transport::Udp { source_port: 1000, destination_port: 2000, payload: b"abc" };
        let packet = Packet { source: ends.0, destination: ends.1, transport };
        let good = write(&packet);
        assert_eq!(parse(&good), Ok(packet));
        // Authentication, encryption, mobility, identity, shims, tests, nothing, and IPv4 or IPv6 within.
        for header in [51, 50, 135, 139, 140, 253, 254, 59, 4, 41, 47, 132, 2] {
            let mut bytes = good.clone();
            bytes[6] = header;
            assert_eq!(parse(&bytes), Err(Refusal::Protocol), "{header}");
        }
        for (header, refusal) in
            [(0, Refusal::Options), (43, Refusal::Options), (60, Refusal::Options), (44, Refusal::Fragment)]
        {
            let mut bytes = good.clone();
            bytes[6] = header;
            assert_eq!(parse(&bytes), Err(refusal), "{header}");
        }
        // ICMP of the other family.
        let mut bytes = good.clone();
        bytes[6] = 1;
        assert_eq!(parse(&bytes), Err(Refusal::Protocol));
        let mut bytes = good;
        bytes[46..48].fill(0);
        assert_eq!(parse(&bytes), Err(Refusal::Malformed), "over IPv6 there is a checksum");
        for version in (0..16).filter(|version| !matches!(version, 4 | 6)) {
            bytes[0] = version << 4;
            assert_eq!(parse(&bytes), Err(Refusal::Malformed), "{version}");
        }
    }

    #[test]
    fn over_ipv4_a_datagram_may_be_without_checksum() {
        let mut bytes = datagram();
        bytes[26..28].fill(0);
        assert!(parse(&bytes).is_ok(), "RFC 768");
        bytes[26..28].copy_from_slice(&[0, 1]);
        assert_eq!(parse(&bytes), Err(Refusal::Malformed));
    }

    #[test]
    fn of_icmp_echoes_and_what_answers_is_all() {
        for (source, destination, asked, answers) in [
            ("10.0.2.15", "93.184.215.14", 8, &[0, 3, 11][..]),
            ("fd00:b0e7::15", "2001:db8::1", 128, &[129, 1, 2, 3]),
        ] {
            let transport = Transport::Echo { id: 1, sequence: 2, payload: b"abc" };
            let packet = Packet {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                transport,
            };
            let good = write(&packet);
            let icmp = good.len() - 11;
            assert_eq!(parse(&good), Ok(packet));
            // The checksum of what is changed is changed by as much.
            let changed = |at: usize, to: u8| {
                let mut bytes = good.clone();
                let sum = u16::from_be_bytes([bytes[icmp + 2], bytes[icmp + 3]]);
                let shift = if at.is_multiple_of(2) { 8 } else { 0 };
                let (old, new) = (u32::from(bytes[icmp + at]) << shift, u32::from(to) << shift);
                let sum = (u32::from(!sum) + (0xffff - old) + new) % 0xffff;
                bytes[icmp + at] = to;
                bytes[icmp + 2..icmp + 4].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
                parse(&bytes).map(drop)
            };
            for kind in (0..=u8::MAX).filter(|kind| *kind != asked) {
                // Not all kinds are known to be whole.
                let read = changed(0, kind);
                match answers.contains(&kind) {
                    true => assert!(matches!(read, Ok(()) | Err(Refusal::Malformed)), "{kind} {read:?}"),
                    false => assert!(
                        matches!(read, Err(Refusal::Protocol | Refusal::Malformed)),
                        "{kind} {read:?}"
                    ),
                }
            }
            assert_eq!(changed(0, asked), Ok(()));
            assert_eq!(changed(1, 1), Err(Refusal::Malformed), "no echo has another code");
        }
    }

    proptest! {
        #[test]
        fn a_packet_is_read_as_it_was_written(
            ends in any_ends(), kind in 0..4, ports in (1..=u16::MAX, 1..=u16::MAX), flags: [bool; 3],
            payload in prop::collection::vec(any::<u8>(), 0..1500),
        ) {
            let ((one, other), [syn, ack, rst], payload) = (ports, flags, &payload[..]);
            let transport = match kind {
                0 => Transport::Tcp { source_port: one, destination_port: other, syn, ack, rst },
                1 => Transport::Udp { source_port: one, destination_port: other, payload },
                2 => Transport::Echo { id: one, sequence: other, payload },
                _ => Transport::Answer,
            };
            let packet = Packet { source: ends.0, destination: ends.1, transport };
            let bytes = write(&packet);
            let read = parse(&bytes);
            prop_assert_eq!(read, Ok(packet));
            for length in [0, 1, 19, 20, 39, 40, 47, bytes.len() - 1] {
                prop_assert!(length >= bytes.len() || parse(&bytes[..length]).is_err());
            }
        }

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
