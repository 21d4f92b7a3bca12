//! Which addresses are this host's own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::io::Errno;

/// Any port: nothing is sent there.
const PORT: u16 = 9;
/// What the kernel says of an address that it would not send to from itself: there is no way to it, or none of its family.
/// All that is its own has one, in the table `local`.
const ELSEWHERE: [Errno; 4] =
    [Errno::ADDRNOTAVAIL, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::AFNOSUPPORT];

/// Whether `address` is one of an interface of this host. The kernel is asked, so that no list can be out of date: who
/// speaks with himself does so from the same address. Where it cannot be asked, every address may be.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(address, PORT))?;
        socket.local_addr()
    });
    is_at(address, local)
}

/// Whether `address` is one from which `local` says that it is spoken to.
fn is_at(address: IpAddr, local: io::Result<SocketAddr>) -> bool {
    match local {
        // From a loopback address nothing leaves.
        Ok(local) => local.ip() == address || local.ip().is_loopback(),
        Err(error) => !Errno::from_io_error(&error).is_some_and(|errno| ELSEWHERE.contains(&errno)),
    }
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

    #[test]
    fn an_address_that_cannot_be_asked_for_may_be_an_own_one() {
        let (address, here) = (IpAddr::from([93, 184, 215, 14]), SocketAddr::from(([192, 168, 1, 2], 4321)));
        assert!(!is_at(address, Ok(here)));
        assert!(is_at(here.ip(), Ok(here)));
        for errno in ELSEWHERE {
            assert!(!is_at(address, Err(errno.into())), "{errno}");
        }
        // No descriptor, no memory, no port, or a rule of the host's.
        for errno in
            [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRINUSE, Errno::ACCESS]
        {
            assert!(is_at(address, Err(errno.into())), "{errno}");
        }
        assert!(is_at(address, Err(io::ErrorKind::Other.into())));
    }
}
