//! Which addresses are this host's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Any port: nothing is sent there.
const PORT: u16 = 9;

/// Whether `address` is one of an interface of this host. The kernel is asked, so that no list can be out of date: who
/// speaks with himself does so from the same address.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(address, PORT))?;
        socket.local_addr()
    });
    // Where no way leads to is not here. And from a loopback address nothing leaves.
    local.is_ok_and(|local| local.ip() == address || local.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_address_is_one_of_an_interface() {
        for own in ["127.0.0.1", "127.1.2.3"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["93.184.215.14", "10.99.99.99", "2606:4700::1111", "2001:db8::1"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }
}
