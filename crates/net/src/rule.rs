//! Rules of a policy: what they say, and what they are about.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::address::Class;
use crate::flow::Protocol;
use crate::name::Name;

/// Longer than any rule that says something.
const MAX_RULE_BYTES: usize = 320;

/// What somebody may, or may not, reach: `TARGET[:PORTS][/PROTOCOL]`.
///
/// ```
/// use bouvet_net::Rule;
///
/// for text in ["pypi.org:443/tcp", "*.pypi.org", "10.1.0.0/16:5432", "[2001:db8::1]:53/udp", "host:8000-8999", "*"] {
///     assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
/// }
/// assert!("10.1.0.0/33".parse::<Rule>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub(crate) target: Target,
    pub(crate) ports: Option<RangeInclusive<u16>>,
    pub(crate) protocol: Option<Protocol>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// All that is public.
    Any,
    /// One host.
    Name(Name),
    /// All hosts below a name.
    Below(Name),
    Addresses(IpNet),
    /// The loopback of the machine that the sandbox is on.
    Host,
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no rule: {why}")]
pub struct RuleError {
    /// What was typed, made harmless for terminals.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Rule {
    /// Whether it is about this port and protocol. ICMP has no port, so that a rule with ports is not about it.
    pub(crate) fn is_about(&self, protocol: Protocol, port: u16) -> bool {
        let ports = match (&self.ports, protocol) {
            (None, _) => true,
            (Some(_), Protocol::Icmp) => false,
            (Some(ports), _) => ports.contains(&port),
        };
        ports && self.protocol.is_none_or(|own| own == protocol)
    }

    /// Whether it is about every port and protocol.
    pub(crate) fn is_about_all(&self) -> bool {
        self.ports.is_none() && self.protocol.is_none()
    }

    pub(crate) fn is_about_address(&self, address: IpAddr) -> bool {
        match &self.target {
            Target::Any => Class::of(address) == Class::Public,
            Target::Addresses(net) => net.contains(&address),
            Target::Name(_) | Target::Below(_) | Target::Host => false,
        }
    }

    pub(crate) fn is_about_name(&self, name: &Name) -> bool {
        match &self.target {
            Target::Name(own) => own == name,
            Target::Below(own) => name.is_below(own),
            Target::Any | Target::Addresses(_) | Target::Host => false,
        }
    }

    /// Whether its addresses are somebody's, all of them: then it was meant.
    pub(crate) fn is_meant_for_somebodys(&self) -> bool {
        let Target::Addresses(net) = &self.target else { return false };
        // Blocks of such addresses are whole: what begins and ends in one, and is no larger, lies in one.
        let smallest = if net.addr().is_ipv4() { 8 } else { 7 };
        net.prefix_len() >= smallest
            && Class::of(net.network()).is_somebodys()
            && Class::of(net.broadcast()).is_somebodys()
    }

    /// Whether it is about addresses of the loopback and no others, which are reached by none but `host`.
    ///
    /// ```
    /// use bouvet_net::Rule;
    ///
    /// let is_loopback = |text: &str| text.parse::<Rule>().map(|rule| rule.is_loopback());
    /// assert_eq!((is_loopback("127.0.0.1:80"), is_loopback("[::1]:80")), (Ok(true), Ok(true)));
    /// assert_eq!((is_loopback("host:80"), is_loopback("0.0.0.0/0")), (Ok(false), Ok(false)));
    /// ```
    pub fn is_loopback(&self) -> bool {
        let ends = |net: &IpNet| [net.network(), net.broadcast()];
        matches!(&self.target, Target::Addresses(net) if ends(net).iter().all(IpAddr::is_loopback))
    }

    /// Whether it names this address, and no other.
    pub(crate) fn is_exactly(&self, address: IpAddr) -> bool {
        matches!(&self.target, Target::Addresses(net) if net.prefix_len() == net.max_prefix_len() && net.addr() == address)
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_RULE_BYTES {
            return Err("it is too long");
        }
        let (text, protocol) = match text.rsplit_once('/') {
            Some((rest, word)) if word.chars().all(|c| c.is_ascii_alphabetic()) => {
                let protocol = word.to_ascii_lowercase().parse();
                (rest, Some(protocol.map_err(|()| "the protocols are tcp, udp and icmp")?))
            }
            _ => (text, None),
        };
        let (target, ports) = read_target(text)?;
        if protocol == Some(Protocol::Icmp) && ports.is_some() {
            return Err("ICMP has no ports");
        }
        Ok(Self { target, ports: ports.map(read_ports).transpose()?, protocol })
    }
}

/// Reads the target, and takes the ports off `text`. An IPv6 address has colons of its own: before ports it stands in
/// brackets.
fn read_target(text: &str) -> Result<(Target, Option<&str>), &'static str> {
    let Some(rest) = text.strip_prefix('[') else {
        return match text.split_once(':') {
            Some((target, ports)) if !ports.contains(':') => Ok((Target::read(target)?, Some(ports))),
            _ => Ok((Target::read(text)?, None)),
        };
    };
    let (address, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
    // The length of a prefix stands within the brackets or after them.
    let (length, ports) = match after.split_once(':') {
        Some((length, ports)) => (length, Some(ports)),
        None => (after, None),
    };
    if !length.is_empty() && (!length.starts_with('/') || address.contains('/')) {
        return Err("after the bracket there may be a prefix and ports");
    }
    let net = read_net(&format!("{address}{length}")).filter(|net| net.addr().is_ipv6());
    Ok((Target::Addresses(net.ok_or("in brackets there is an IPv6 address")?), ports))
}

/// An address or a range of them.
fn read_net(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse::<IpNet>().map(|net| net.trunc())).ok()
}

fn read_ports(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let wrong = "ports are 1 to 65535: `443`, `8000-8999`";
    let port =
        |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0 && !text.starts_with('+')).ok_or(wrong);
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => {
            let ports = port(first)?..=port(last)?;
            if ports.is_empty() { Err(wrong) } else { Ok(ports) }
        }
    }
}

/// The word for the machine that the sandbox is on.
const HOST: &str = "host";

impl Target {
    fn read(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.eq_ignore_ascii_case(HOST) {
            return Ok(Self::Host);
        }
        if let Some(name) = text.strip_prefix("*.") {
            return Ok(Self::Below(name.parse().map_err(|_| "after `*.` a name of a host is allowed")?));
        }
        if let Some(net) = read_net(text) {
            return Ok(Self::Addresses(net));
        }
        if text.contains('/') {
            return Err("a range of addresses is like `10.1.0.0/16`");
        }
        let name: Name = text.parse().map_err(
            |_| "its target is no name, address or range of addresses, and neither `*`, `*.NAME` nor `host`",
        )?;
        // Shown, it would be read as another rule.
        if name.as_str() == HOST {
            return Err("`host` is this machine: a host of that name cannot be said");
        }
        Ok(Self::Name(name))
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let shown = || text.chars().take(MAX_RULE_BYTES).collect::<String>().escape_debug().to_string();
        Self::read(text).map_err(|why| RuleError { text: shown(), why })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Any => f.write_str("*")?,
            Target::Host => f.write_str(HOST)?,
            Target::Name(name) => name.fmt(f)?,
            Target::Below(name) => write!(f, "*.{name}")?,
            Target::Addresses(net) => {
                let (address, length) = (net.addr(), net.prefix_len());
                match address.is_ipv6() && self.ports.is_some() {
                    true => write!(f, "[{address}]")?,
                    false => address.fmt(f)?,
                }
                if length < net.max_prefix_len() {
                    write!(f, "/{length}")?;
                }
            }
        }
        match &self.ports {
            None => {}
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start())?,
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end())?,
        }
        match self.protocol {
            None => Ok(()),
            Some(protocol) => write!(f, "/{protocol}"),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_are_read_in_every_form() {
        for (text, shown) in [
            ("*", "*"),
            ("*:443/udp", "*:443/udp"),
            ("Example.COM.", "example.com"),
            ("*.example.com:80-443/TCP", "*.example.com:80-443/tcp"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("192.0.2.7/32:22", "192.0.2.7:22"),
            ("10.0.0.0/8/icmp", "10.0.0.0/8/icmp"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::]/32:443", "[2001:db8::]/32:443"),
            ("[2001:db8::/32]:443", "[2001:db8::]/32:443"),
            ("[2001:db8::1]:443/udp", "[2001:db8::1]:443/udp"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("host:8080", "host:8080"),
            ("HOST:8080", "host:8080"),
            ("*.host", "*.host"),
            ("host.example", "host.example"),
            ("bücher.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_says_no_rule_or_two_is_none() {
        for wrong in [
            "",
            ":443",
            "a:0",
            "a:70000",
            "a:2-1",
            "a:1-",
            "a:+1",
            "a/sctp",
            "a:b",
            "a/icmp/udp",
            "*:1/icmp",
            "*.1.2.3.4",
            "*.*.com",
            "a.*.com",
            "127.1",
            "0x7f000001",
            "2130706433",
            "10.0.0.0/33",
            "[::1",
            "[::1]x",
            "[::1]64",
            "[::1]]",
            "[::1/64]/64",
            "[::1/64",
            "::1]/64",
            "10.0.0.0]/8",
            "[10.0.0.1]:80",
            "[10.0.0.0]/8",
            "[a.example]:80",
            "[*]:80",
            "[host]:80",
            "[*.example]",
            "[]",
            "[]:80",
            "::1%eth0",
            "host.",
            "host.:80",
            "\u{ff48}ost",
            "a..",
            "a.example:",
            "a.example:80:81",
            "a:00080000",
            "a/",
            "a/tcp/",
            "/tcp",
            "2001:db8::/129",
            "a b",
            "http://a",
            "user@a",
            "*.",
            "**",
            "10.1/16",
        ] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
        assert!("a".repeat(400).parse::<Rule>().is_err());
    }

    #[test]
    fn only_what_lies_among_somebodys_addresses_whole_is_meant_for_them() {
        let meant = |text: &str| text.parse::<Rule>().unwrap().is_meant_for_somebodys();
        for text in [
            "10.0.0.0/8",
            "10.1.2.3",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
            "fe80::/10",
            "169.254.169.254",
        ] {
            assert!(meant(text), "{text}");
        }
        for text in [
            "0.0.0.0/0",
            "8.0.0.0/6",
            "172.16.0.0/11",
            "192.0.0.0/8",
            "::/0",
            "1.1.1.1",
            "*",
            "a.example",
            "host",
        ] {
            assert!(!meant(text), "{text}");
        }
    }

    prop_compose! {
        fn any_target()(kind in 0..6, v4: [u8; 4], v6: [u16; 8], length in 0..=128_u8, label in "[a-z][a-z0-9]{0,8}") -> Target {
            let name: Name = format!("{label}.example").parse().unwrap();
            let net = |address: IpAddr, length: u8| Target::Addresses(IpNet::new(address, length).unwrap().trunc());
            match kind {
                0 => Target::Any,
                1 => Target::Name(name),
                2 => Target::Below(name),
                3 => net(v4.into(), length % 33),
                4 => net(v6.into(), length),
                _ => Target::Host,
            }
        }
    }

    prop_compose! {
        pub(crate) fn any_rule()(
            target in any_target(), ports: Option<(u16, u16)>,
            protocol in prop::option::of(prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp])),
        ) -> Rule {
            let ports = ports.map(|(a, b)| a.min(b).max(1)..=a.max(b).max(1));
            let ports = ports.filter(|_| protocol != Some(Protocol::Icmp));
            Rule { target, ports, protocol }
        }
    }

    /// What rules are made of.
    const PARTS: &[&str] = &[
        "*",
        "*.",
        "host",
        "HOST",
        "Host.",
        "a.example",
        "10.0.0.0",
        "127.1",
        "2001:db8::",
        "::1",
        "::ffff:10.0.0.1",
        "[",
        "]",
        "/",
        "8",
        "64",
        "/tcp",
        "/UDP",
        "/icmp",
        ":",
        "443",
        "1-65535",
        ".",
        "\u{ff48}ost",
        "\u{3002}",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn every_rule_is_read_as_it_is_shown(rule in any_rule()) {
            prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
        }

        #[test]
        fn what_is_nearly_a_rule_is_one_or_none(parts in prop::collection::vec(prop::sample::select(PARTS), 1..7)) {
            let text = parts.concat();
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule), "{}", text);
            }
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,40}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
            }
        }
    }
}
