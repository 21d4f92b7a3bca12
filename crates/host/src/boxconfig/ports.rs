//! `port_map`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::InvalidConfig;

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// A port of the host that leads into the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    /// Where the host listens; port 0 is any that is free.
    pub(crate) host: SocketAddr,
    pub(crate) guest: u16,
    pub(crate) protocol: Protocol,
}

impl Port {
    /// Parses `[address:]host_port:guest_port[/tcp|/udp]`. Without an address, the host listens for itself alone.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let allowed = "`host_port:guest_port` and `address:host_port:guest_port`, with or without `/tcp` or `/udp`, are \
                       allowed; an IPv6 address stands in brackets, and host port 0 means any";
        Self::read(text).ok_or_else(|| InvalidConfig::text("port_map", text, allowed))
    }

    fn read(text: &str) -> Option<Self> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return None,
        };
        let (host, guest) = ports.rsplit_once(':')?;
        let guest = guest.parse().ok().filter(|port| *port != 0)?;
        let (address, port) = match host.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
            Some((address, port)) => {
                let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
                (bare.unwrap_or(address).parse().ok()?, port)
            }
        };
        Some(Self { host: SocketAddr::new(address, port.parse().ok()?), guest, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_every_form() {
        for (text, host, guest, protocol) in [
            ("8080:80", "127.0.0.1:8080", 80, Protocol::Tcp),
            ("0:80/tcp", "127.0.0.1:0", 80, Protocol::Tcp),
            ("0.0.0.0:53:53/udp", "0.0.0.0:53", 53, Protocol::Udp),
            ("[::1]:8080:80", "[::1]:8080", 80, Protocol::Tcp),
        ] {
            let expected = Port { host: host.parse().unwrap(), guest, protocol };
            assert_eq!(Port::parse(text).unwrap(), expected, "{text}");
        }
        for wrong in
            ["", "80", ":80", "80:", "80:0", "70000:80", "80:80/sctp", "host:80:80", "1:2:3:4", "-1:80"]
        {
            assert!(Port::parse(wrong).is_err(), "{wrong}");
        }
    }
}
