//! What an address is for, by IANA's registries of special-purpose addresses (RFC 6890) and of multicast ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Anybody's on the internet.
    Public,
    /// Somebody's own: private (RFC 1918), shared (RFC 6598) or unique local (RFC 4193).
    Private,
    /// Of the neighbours on a wire (RFC 3927, RFC 4291).
    LinkLocal,
    /// Where clouds tell their machines secrets.
    Metadata,
    /// The machine's own.
    Loopback,
    /// No one machine's: multicast, reserved, for documents and measurements, or with another address in it.
    Special,
}

impl Class {
    pub(crate) fn of(address: IpAddr) -> Self {
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => of_ipv4(address),
            IpAddr::V6(address) => of_ipv6(address),
        }
    }

    /// Whether rules of addresses can open it, but nothing else.
    pub(crate) fn is_somebodys(self) -> bool {
        matches!(self, Self::Private | Self::LinkLocal | Self::Metadata)
    }
}

/// Where machines of clouds and containers are told what they are: AWS and most others, ECS, EKS, Oracle, Alibaba,
/// Azure, Scaleway, Tencent; over IPv6 AWS, EKS, Scaleway, Google, Oracle, OpenStack, Linode, Alibaba.
const METADATA: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200)),
];

/// First address, length of the prefix, and what it is. What is in none is public.
const IPV4: &[([u8; 4], u8, Class)] = &[
    ([0, 0, 0, 0], 8, Class::Special),
    ([10, 0, 0, 0], 8, Class::Private),
    ([100, 64, 0, 0], 10, Class::Private),
    ([127, 0, 0, 0], 8, Class::Loopback),
    ([169, 254, 0, 0], 16, Class::LinkLocal),
    ([172, 16, 0, 0], 12, Class::Private),
    ([192, 0, 0, 0], 24, Class::Special),
    ([192, 0, 2, 0], 24, Class::Special),
    ([192, 31, 196, 0], 24, Class::Special),
    ([192, 52, 193, 0], 24, Class::Special),
    ([192, 88, 99, 0], 24, Class::Special),
    ([192, 168, 0, 0], 16, Class::Private),
    ([192, 175, 48, 0], 24, Class::Special),
    ([198, 18, 0, 0], 15, Class::Special),
    ([198, 51, 100, 0], 24, Class::Special),
    ([203, 0, 113, 0], 24, Class::Special),
    ([224, 0, 0, 0], 4, Class::Special),
    ([240, 0, 0, 0], 4, Class::Special),
];

/// The same; of IPv6 nothing is public but 2000::/3, of which these are not.
const IPV6: &[([u16; 8], u8, Class)] = &[
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Class::Loopback),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Class::Private),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Class::LinkLocal),
    // Teredo, benchmarks, ORCHID and the other assignments of protocols.
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Class::Special),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Class::Special),
    // 6to4.
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Class::Special),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, Class::Special),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Class::Special),
];

fn of_ipv4(address: Ipv4Addr) -> Class {
    let bits = address.to_bits();
    let within = |first: [u8; 4], prefix: u8| (bits ^ Ipv4Addr::from(first).to_bits()) >> (32 - prefix) == 0;
    let found = IPV4.iter().find(|(first, prefix, _)| within(*first, *prefix));
    found.map_or(Class::Public, |(_, _, class)| *class)
}

fn of_ipv6(address: Ipv6Addr) -> Class {
    let bits = address.to_bits();
    let within =
        |first: [u16; 8], prefix: u8| (bits ^ Ipv6Addr::from(first).to_bits()) >> (128 - prefix) == 0;
    let found = IPV6.iter().find(|(first, prefix, _)| within(*first, *prefix));
    match found {
        Some((_, _, class)) => *class,
        None if within([0x2000, 0, 0, 0, 0, 0, 0, 0], 3) => Class::Public,
        None => Class::Special,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written out a second time, and not computed from the tables above: what is before a block, its first address, its
    /// last, and what is after it.
    #[test]
    fn every_block_begins_and_ends_where_it_should() {
        use Class::{LinkLocal, Loopback, Private, Public, Special};
        for (before, first, last, after, within) in [
            ("", "0.0.0.0", "0.255.255.255", "1.0.0.0", Special),
            ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0", Private),
            ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0", Private),
            ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0", Loopback),
            ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0", LinkLocal),
            ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0", Private),
            ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0", Special),
            ("192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0", Special),
            ("192.31.195.255", "192.31.196.0", "192.31.196.255", "192.31.197.0", Special),
            ("192.52.192.255", "192.52.193.0", "192.52.193.255", "192.52.194.0", Special),
            ("192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0", Special),
            ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0", Private),
            ("192.175.47.255", "192.175.48.0", "192.175.48.255", "192.175.49.0", Special),
            ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0", Special),
            ("198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0", Special),
            ("203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0", Special),
            ("223.255.255.255", "224.0.0.0", "255.255.255.255", "", Special),
            ("", "::2", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::", Special),
            ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1ff:ffff::", "2001:200::", Special),
            (
                "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:db8::",
                "2001:db8:ffff::",
                "2001:db9::",
                Special,
            ),
            ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff::", "2003::", Special),
            ("2620:4f:7fff:ffff::", "2620:4f:8000::", "2620:4f:8000:ffff::", "2620:4f:8001::", Special),
            ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff::", "3fff:1000::", Special),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "fbff:ffff:ffff:ffff::", "", Special),
            ("", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", Private),
            ("", "fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", Special),
            ("", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", LinkLocal),
            ("", "fec0::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", Special),
            ("", "::1", "::1", "", Loopback),
            ("", "::", "::", "", Special),
        ] {
            for (text, class) in [(before, Public), (first, within), (last, within), (after, Public)] {
                if !text.is_empty() {
                    assert_eq!(Class::of(text.parse().unwrap()), class, "{text}");
                }
            }
        }
    }

    #[test]
    fn services_of_clouds_are_told_from_their_neighbours() {
        use Class::{LinkLocal, Private, Public, Special};
        for (address, around) in [
            ("169.254.169.254", LinkLocal),
            ("169.254.170.2", LinkLocal),
            ("169.254.170.23", LinkLocal),
            ("169.254.42.42", LinkLocal),
            ("169.254.0.23", LinkLocal),
            ("192.0.0.192", Special),
            ("100.100.100.200", Private),
            ("168.63.129.16", Public),
            ("fd00:ec2::254", Private),
            ("fd00:ec2::23", Private),
            ("fd00:42::42", Private),
            ("fd20:ce::254", Private),
            ("fd00:c1::a9fe:a9fe", Private),
            ("fe80::a9fe:a9fe", LinkLocal),
            ("fd00:a9fe:a9fe::1", Private),
            ("fd00:100::100:200", Private),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(Class::of(address), Class::Metadata, "{address}");
            let next = |step: i8| match address {
                IpAddr::V4(address) => {
                    IpAddr::from(address.to_bits().wrapping_add_signed(step.into()).to_be_bytes())
                }
                IpAddr::V6(address) => {
                    IpAddr::from(address.to_bits().wrapping_add_signed(step.into()).to_be_bytes())
                }
            };
            assert_eq!((Class::of(next(-1)), Class::of(next(1))), (around, around), "{address}");
        }
    }

    #[test]
    fn addresses_are_what_they_are_for() {
        use Class::{LinkLocal, Loopback, Metadata, Private, Public, Special};
        for (address, class) in [
            ("1.1.1.1", Public),
            ("9.255.255.255", Public),
            ("11.0.0.0", Public),
            ("172.15.255.255", Public),
            ("172.32.0.0", Public),
            ("172.31.255.255", Private),
            ("100.63.255.255", Public),
            ("100.127.255.255", Private),
            ("100.128.0.0", Public),
            ("198.17.255.255", Public),
            ("198.20.0.0", Public),
            ("223.255.255.255", Public),
            ("255.255.255.255", Special),
            ("169.254.169.253", LinkLocal),
            ("169.254.169.254", Metadata),
            ("100.100.100.200", Metadata),
            ("168.63.129.16", Metadata),
            ("127.255.255.255", Loopback),
            ("2606:4700::1111", Public),
            ("2001:4860:4860::8888", Public),
            ("2001:200::1", Public),
            ("2001:1ff:ffff::", Special),
            ("2001:db8::1", Special),
            ("2002:7f00:1::", Special),
            ("::", Special),
            ("::1", Loopback),
            ("::ffff:127.0.0.1", Special),
            ("::127.0.0.1", Special),
            ("64:ff9b::7f00:1", Special),
            ("64:ff9b:1::1", Special),
            ("100::1", Special),
            ("fd00:ec2::254", Metadata),
            ("fd00:ec2::255", Private),
            ("fdff::1", Private),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("fec0::1", Special),
            ("ff02::1", Special),
            ("4000::1", Special),
            ("1fff::1", Special),
        ] {
            assert_eq!(Class::of(address.parse().unwrap()), class, "{address}");
        }
    }
}
