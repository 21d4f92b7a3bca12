//! `port_map`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use bouvet_wire::limits::MAX_PORTS;

use super::InvalidConfig;

const FIELD: &str = "port_map";

/// What a port carries.
///
/// ```
/// use bouvet_host::{PortProtocol, PortSpec};
///
/// let dns: PortSpec = "5353:53/udp".parse().unwrap();
/// assert_eq!((dns.protocol, dns.protocol.name()), (PortProtocol::Udp, "udp"));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PortProtocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl PortProtocol {
    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl FromStr for PortProtocol {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(InvalidConfig::text("protocol", text, "`tcp` and `udp` are allowed")),
        }
    }
}

/// A port of the host that is to lead into a sandbox.
///
/// ```
/// use bouvet_host::{PortProtocol, PortSpec};
///
/// let port: PortSpec = "8080:80".parse().unwrap();
/// assert_eq!((port.host, port.guest), ("127.0.0.1:8080".parse().unwrap(), 80));
/// assert_eq!("80".parse(), Ok(PortSpec { host: "127.0.0.1:0".parse().unwrap(), ..port }), "any that is free");
/// assert_eq!("[::1]:53:53/udp".parse::<PortSpec>().unwrap().to_string(), "[::1]:53:53/udp");
/// assert!("::1:53:53".parse::<PortSpec>().is_err(), "which of these is the address?");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortSpec {
    /// Where the host listens; port 0 is any that is free.
    pub host: SocketAddr,
    /// Where a program of the sandbox listens, on any address of its own or on its loopback.
    pub guest: u16,
    /// What they carry.
    pub protocol: PortProtocol,
}

impl FromStr for PortSpec {
    type Err = InvalidConfig;

    /// Parses `[[address:]host_port:]guest_port[/tcp|/udp]`. Without an address, the host listens for itself alone.
    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let allowed = "`host_port:guest_port`, `address:host_port:guest_port` and `guest_port`, with or without `/tcp` or \
                       `/udp`, are allowed; an IPv6 address stands in brackets, and host port 0, or none, means any";
        Self::read(text).ok_or_else(|| InvalidConfig::text(FIELD, text, allowed))
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol.name())
    }
}

impl PortSpec {
    fn read(text: &str) -> Option<Self> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, PortProtocol::Tcp),
            Some((ports, protocol)) => (ports, protocol.parse().ok()?),
        };
        let (host, guest) = ports.rsplit_once(':').unwrap_or(("0", ports));
        let guest = number(guest).filter(|port| *port != 0)?;
        let (address, port) = match host.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
            Some((address, port)) => (read_address(address)?, port),
        };
        Some(Self { host: SocketAddr::new(address, number(port)?), guest, protocol })
    }

    /// Reads a list of them that one sandbox can have.
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, InvalidConfig> {
        super::at_most(FIELD, texts.len(), MAX_PORTS, "ports")?;
        let ports: Vec<Self> = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        for (index, port) in ports.iter().enumerate() {
            let same = |other: &Self| other.host == port.host && other.protocol == port.protocol;
            if port.host.port() != 0 && ports[..index].iter().any(same) {
                return Err(InvalidConfig::text(FIELD, &texts[index], "each port of the host once is"));
            }
        }
        Ok(ports)
    }
}

/// Digits alone: `parse` would take a sign.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn read_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_are_read_in_every_form() {
        use PortProtocol::{Tcp, Udp};
        for (text, host, guest, protocol) in [
            ("8080:80", "127.0.0.1:8080", 80, Tcp),
            ("0:80/tcp", "127.0.0.1:0", 80, Tcp),
            ("80", "127.0.0.1:0", 80, Tcp),
            ("53/udp", "127.0.0.1:0", 53, Udp),
            ("0.0.0.0:53:53/udp", "0.0.0.0:53", 53, Udp),
            ("192.0.2.7:0:65535", "192.0.2.7:0", 65_535, Tcp),
            ("[::1]:8080:80", "[::1]:8080", 80, Tcp),
            ("[::]:65535:1/udp", "[::]:65535", 1, Udp),
        ] {
            let expected = PortSpec { host: host.parse().unwrap(), guest, protocol };
            assert_eq!(text.parse::<PortSpec>().unwrap(), expected, "{text}");
        }
        for wrong in [
            "",
            ":80",
            "80:",
            "80:0",
            "0",
            "70000:80",
            "80:70000",
            "80:80/sctp",
            "80:80/",
            "80:80/tcp/tcp",
            "host:80:80",
            "1:2:3:4",
            "-1:80",
            "+8080:80",
            "8080:+80",
            "8080: 80",
            "[127.0.0.1]:80:80",
            "::1:8080:80",
            "[::1:8080:80",
            "[::1]:80",
            "127.0.0.1::80",
            "eighty",
        ] {
            let error = wrong.parse::<PortSpec>().unwrap_err();
            assert_eq!(
                (error.field, error.allowed.contains("host_port:guest_port")),
                (FIELD, true),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_sandbox_has_so_many_ports_and_each_of_the_host_s_once() {
        let all = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            PortSpec::parse_all(&texts)
        };
        assert!(all(&["80:80", "80:80/udp", "[::1]:80:80", "0:80", "0:80"]).is_ok());
        assert!(all(&["80:80", "127.0.0.1:80:81"]).unwrap_err().allowed.contains("once"));
        assert_eq!(all(&["80"; MAX_PORTS]).unwrap().len(), MAX_PORTS);
        let error = all(&["80"; MAX_PORTS + 1]).unwrap_err();
        assert_eq!(error.to_string(), "`port_map` is 65 ports long; 64 ports are allowed");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(host: SocketAddr, guest in 1..=u16::MAX, udp: bool) {
            // What else an address of IPv6 has, a port cannot say.
            let host = SocketAddr::new(host.ip(), host.port());
            let protocol = if udp { PortProtocol::Udp } else { PortProtocol::Tcp };
            let port = PortSpec { host, guest, protocol };
            prop_assert_eq!(port.to_string().parse::<PortSpec>(), Ok(port));
        }

        #[test]
        fn whatever_was_typed_is_read_or_refused(text in "[0-9:./\\[\\]tcpud-]{0,24}") {
            if let Ok(port) = text.parse::<PortSpec>() {
                prop_assert!(port.guest != 0);
                prop_assert_eq!(port.to_string().parse::<PortSpec>(), Ok(port));
            }
        }
    }
}
