//! Well-known resolvers that answer over HTTPS, where a query for a name looks like any other request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::Name;

/// Each with all that is below it.
const NAMES: &[&str] = &[
    "dns.google",
    "dns.google.com",
    "dns64.dns.google",
    "cloudflare-dns.com",
    "one.one.one.one",
    "dns.quad9.net",
    "dns9.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "doh.opendns.com",
    "doh.familyshield.opendns.com",
    "dns.umbrella.com",
    "dns.adguard.com",
    "dns.adguard-dns.com",
    "dns.nextdns.io",
    "doh.cleanbrowsing.org",
    "dns.controld.com",
    "freedns.controld.com",
    "doh.mullvad.net",
    "dns.mullvad.net",
    "doh.dns.sb",
    "doh.li",
    "dns.alidns.com",
    "doh.pub",
    "dns0.eu",
    "doh.libredns.gr",
    "odvr.nic.cz",
    "dns.switch.ch",
];

const IPV4: &[Ipv4Addr] = &[
    Ipv4Addr::new(8, 8, 8, 8),
    Ipv4Addr::new(8, 8, 4, 4),
    Ipv4Addr::new(1, 1, 1, 1),
    Ipv4Addr::new(1, 0, 0, 1),
    Ipv4Addr::new(1, 1, 1, 2),
    Ipv4Addr::new(1, 0, 0, 2),
    Ipv4Addr::new(1, 1, 1, 3),
    Ipv4Addr::new(1, 0, 0, 3),
    Ipv4Addr::new(9, 9, 9, 9),
    Ipv4Addr::new(9, 9, 9, 10),
    Ipv4Addr::new(9, 9, 9, 11),
    Ipv4Addr::new(149, 112, 112, 112),
    Ipv4Addr::new(149, 112, 112, 10),
    Ipv4Addr::new(149, 112, 112, 11),
    Ipv4Addr::new(208, 67, 222, 222),
    Ipv4Addr::new(208, 67, 220, 220),
    Ipv4Addr::new(94, 140, 14, 14),
    Ipv4Addr::new(94, 140, 15, 15),
    Ipv4Addr::new(185, 228, 168, 9),
    Ipv4Addr::new(76, 76, 2, 0),
    Ipv4Addr::new(194, 242, 2, 2),
    Ipv4Addr::new(223, 5, 5, 5),
    Ipv4Addr::new(223, 6, 6, 6),
];

const IPV6: &[Ipv6Addr] = &[
    Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888),
    Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844),
    Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111),
    Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1001),
    Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe),
    Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 9),
    Ipv6Addr::new(0x2620, 0x119, 0x35, 0, 0, 0, 0, 0x35),
    Ipv6Addr::new(0x2620, 0x119, 0x53, 0, 0, 0, 0, 0x53),
];

pub(crate) fn is_name(name: &Name) -> bool {
    NAMES.iter().any(|known| {
        name.as_str().strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

pub(crate) fn is_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => IPV4.contains(&address),
        IpAddr::V6(address) => IPV6.contains(&address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_known_by_its_name_and_what_is_below_it() {
        for (text, known) in [
            ("dns.google", true),
            ("mozilla.cloudflare-dns.com", true),
            ("google", false),
            ("xdns.google", false),
            ("dns.google.example", false),
        ] {
            assert_eq!(is_name(&text.parse().unwrap()), known, "{text}");
        }
        // Each entry is a name as names are written.
        for known in NAMES {
            assert_eq!(known.parse::<Name>().unwrap().as_str(), *known);
        }
    }
}
