//! Packets, as they would be on a wire.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, IpRepr, Ipv4Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

/// A segment of TCP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) control: TcpControl,
    pub(crate) number: u32,
    pub(crate) answers: Option<u32>,
    pub(crate) payload: &'a [u8],
}

fn packet(
    from: IpAddr,
    to: IpAddr,
    (protocol, length): (IpProtocol, usize),
    fill: impl FnOnce(&mut [u8], &IpAddress, &IpAddress, &ChecksumCapabilities),
) -> Bytes {
    let (from, to): (IpAddress, IpAddress) = (from.into(), to.into());
    let ip = IpRepr::new(from, to, protocol, length, 64);
    let mut bytes = vec![0; ip.buffer_len()];
    ip.emit(&mut bytes[..], &ChecksumCapabilities::default());
    fill(&mut bytes[ip.header_len()..], &from, &to, &ChecksumCapabilities::default());
    bytes.into()
}

pub(crate) fn tcp(segment: &Segment<'_>) -> Bytes {
    let number = |number: u32| TcpSeqNumber(number.cast_signed());
    let repr = TcpRepr {
        src_port: segment.from.port(),
        dst_port: segment.to.port(),
        control: segment.control,
        seq_number: number(segment.number),
        ack_number: segment.answers.map(number),
        window_len: u16::MAX,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: segment.payload,
    };
    let of = (IpProtocol::Tcp, repr.buffer_len());
    packet(segment.from.ip(), segment.to.ip(), of, |room, from, to, checksums| {
        repr.emit(&mut TcpPacket::new_unchecked(room), from, to, checksums);
    })
}

pub(crate) fn datagram(from: &str, to: &str, payload: &[u8]) -> Bytes {
    let (source, destination): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let repr = UdpRepr { src_port: source.port(), dst_port: destination.port() };
    let of = (IpProtocol::Udp, repr.header_len() + payload.len());
    packet(source.ip(), destination.ip(), of, |room, from, to, checksums| {
        let fill = |room: &mut [u8]| room.copy_from_slice(payload);
        repr.emit(&mut UdpPacket::new_unchecked(room), from, to, payload.len(), fill, checksums);
    })
}

pub(crate) fn echo(from: &str, to: &str, payload: &[u8]) -> Bytes {
    let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: payload };
    let of = (IpProtocol::Icmp, repr.buffer_len());
    packet(from.parse().unwrap(), to.parse().unwrap(), of, |room, _, _, checksums| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(room), checksums);
    })
}

/// Has the header's checksum be right again.
pub(crate) fn fix(bytes: &mut [u8]) {
    Ipv4Packet::new_unchecked(bytes).fill_checksum();
}
