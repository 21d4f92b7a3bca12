//! A hostile guest's packets: what is read of one is what stands in it, and a policy opens nothing that is never open.
//!
//! smoltcp takes every checksum for right while it is fuzzed.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use bouvet_net::packet::{self, Packet, Transport};
use bouvet_net::{Name, Policy, Protocol, Surroundings};
use libfuzzer_sys::fuzz_target;

static POLICIES: LazyLock<[Policy; 2]> = LazyLock::new(|| {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    let allow =
        rules(&["*", "*:1-65535/udp", "0.0.0.0/0", "::/0", "a.example", "10.1.0.0/16", "127.0.0.1", "host"]);
    [Policy::default(), Policy { allow, deny: rules(&["10.1.2.0/24", "1.2.3.0/24", "evil.example"]) }]
});
static NAMES: LazyLock<[Name; 1]> = LazyLock::new(|| ["a.example".parse().expect("a name")]);

fuzz_target!(|bytes: &[u8]| {
    let Ok(packet) = packet::parse(bytes) else { return };
    let (header, destination) = as_it_stands(&packet, bytes);
    let word = |at: usize| u16::from_be_bytes([bytes[header + at], bytes[header + at + 1]]);
    let flag = |bit: u8| bytes[header + 13] & bit != 0;
    let protocol = match packet.transport {
        Transport::Tcp { source_port, destination_port, syn, ack, rst } => {
            assert_eq!((source_port, destination_port), (word(0), word(2)));
            assert_eq!((syn, ack, rst), (flag(2), flag(16), flag(4)));
            Protocol::Tcp
        }
        Transport::Udp { source_port, destination_port, payload } => {
            assert_eq!((source_port, destination_port, payload), (word(0), word(2), &bytes[header + 8..]));
            Protocol::Udp
        }
        Transport::Echo { id, sequence, payload } => {
            assert_eq!((id, sequence, payload), (word(4), word(6), &bytes[header + 8..]));
            Protocol::Icmp
        }
        Transport::Answer => {
            let kinds: &[u8] = if destination.is_ipv4() { &[0, 3, 11] } else { &[1, 2, 3, 129] };
            assert!(kinds.contains(&bytes[header]));
            Protocol::Icmp
        }
    };
    for (policy, has_rules) in POLICIES.iter().zip([false, true]) {
        for (is_host, names) in [(false, &NAMES[..]), (false, &[]), (true, &NAMES[..])] {
            let opened = policy.open(protocol, packet.ends().1, Surroundings { is_host, names });
            assert!(opened.is_err() || may_be_open(destination, has_rules) && !is_host, "{destination}");
        }
    }
});

/// Reads the ends by their places, and says where what the packet carries begins, and whom it is for.
fn as_it_stands(packet: &Packet<'_>, bytes: &[u8]) -> (usize, IpAddr) {
    let (header, source, destination): (_, IpAddr, IpAddr) = match bytes[0] >> 4 {
        4 => {
            let address = |at: usize| bytes[at..at + 4].try_into().map(<[u8; 4]>::into).expect("four bytes");
            assert_eq!((bytes[0], bytes[6] & 0x3f, bytes[7]), (0x45, 0, 0));
            (20, address(12), address(16))
        }
        version => {
            let address =
                |at: usize| bytes[at..at + 16].try_into().map(<[u8; 16]>::into).expect("sixteen bytes");
            assert!(version == 6 && matches!(bytes[6], 6 | 17 | 58));
            (40, address(8), address(24))
        }
    };
    assert_eq!((packet.source, packet.destination), (source, destination));
    (header, destination)
}

/// What the standard library says of an address, which has no part in what is tested.
fn may_be_open(address: IpAddr, has_rules: bool) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            let is_ruled = has_rules && (a, b) == (10, 1) && c != 2;
            let is_private = address.is_private() && !is_ruled;
            let is_shared = a == 100 && b >> 6 == 1;
            let is_reserved = a >= 224 || a == 0;
            let is_denied = has_rules && (a, b, c) == (1, 2, 3) || address == Ipv4Addr::new(168, 63, 129, 16);
            let is_nobodys = address.is_loopback() || address.is_link_local() || address.is_documentation();
            !is_private && !is_shared && !is_reserved && !is_denied && !is_nobodys
        }
        IpAddr::V6(address) => {
            let within = |first: u16, bits: u32| (address.segments()[0] ^ first) >> (16 - bits) == 0;
            let is_embedded = address.to_ipv4().is_some() || address.segments()[0] == 0x2002;
            let is_teredo = address.segments()[..2] == [0x2001, 0];
            within(0x2000, 3) && !is_embedded && !is_teredo && address != Ipv6Addr::LOCALHOST
        }
    }
}
