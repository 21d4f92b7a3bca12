//! Which name servers are asked: those of the sandbox's description, else the host's, else a public one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::AsyncReadExt as _;

/// The port of DNS (RFC 1035, 4.2).
pub(crate) const DNS_PORT: u16 = 53;
/// Asked where neither a description nor the host names one: Google's.
const LAST_RESORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), DNS_PORT);
/// Name servers that are used of those that are named; resolv.conf(5) has three.
const MAX_SERVERS: usize = 3;
/// What of a `resolv.conf` is read.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// One name server as people write it: `9.9.9.9`, `9.9.9.9:5353`, `2620:fe::fe`, `[2620:fe::fe]:5353`.
///
/// ```
/// use bouvet_net::dns::Upstream;
///
/// let upstream: Upstream = "[2620:fe::fe]:5353".parse()?;
/// assert_eq!(upstream.to_string(), "[2620:fe::fe]:5353");
/// assert_eq!("9.9.9.9".parse::<Upstream>()?.to_string(), "9.9.9.9");
/// assert!("dns.example.com".parse::<Upstream>().is_err());
/// # Ok::<(), bouvet_net::dns::UpstreamError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Upstream(SocketAddr);

/// Why a text is no name server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Neither an address nor an address and a port.
    #[error("`{0}` is no name server: expected `IP`, `IP:PORT` or `[IPV6]:PORT`")]
    NoAddress(String),
    /// No packet can go there.
    #[error("`{0}` is no name server: nobody can be reached at that address")]
    Unreachable(String),
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = match bare.parse::<IpAddr>() {
            // Brackets are IPv6's.
            Ok(ip) if bare.len() == text.len() || ip.is_ipv6() => SocketAddr::new(ip, DNS_PORT),
            _ => text.parse().map_err(|_| UpstreamError::NoAddress(text.to_owned()))?,
        };
        let ip = address.ip();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return Err(UpstreamError::Unreachable(text.to_owned()));
        }
        Ok(Self(address))
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.port() {
            DNS_PORT => self.0.ip().fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl From<Upstream> for SocketAddr {
    fn from(upstream: Upstream) -> Self {
        upstream.0
    }
}

/// Where the name servers come from.
#[derive(Debug, Clone)]
pub(super) enum Servers {
    /// A description names them.
    Named(Vec<SocketAddr>),
    /// This file of the host does. It is read for each question: a host that moves to another network has other ones.
    File(PathBuf),
}

impl Servers {
    /// Those to ask now, in order; never none.
    pub(super) async fn now(&self) -> Vec<SocketAddr> {
        match self {
            Self::Named(servers) => servers.iter().copied().take(MAX_SERVERS).collect(),
            Self::File(path) => of_file(&read(path).await),
        }
    }
}

/// A file that cannot be read is one that names nobody, as for the C library.
pub(super) async fn read(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    match tokio::fs::File::open(path).await {
        Ok(file) => match file.take(MAX_FILE_BYTES).read_to_end(&mut text).await {
            Ok(_) => text,
            Err(_) => Vec::new(),
        },
        Err(_) => Vec::new(),
    }
}

/// The name servers of a `resolv.conf`. Lines that nobody understands are skipped, as the C library does.
fn of_file(text: &[u8]) -> Vec<SocketAddr> {
    let (config, _) = resolv_conf::Config::parse_with_errors(text);
    let servers = config.nameservers.iter().filter_map(|server| match server {
        // An address with a scope is good on one interface only, which we could not tell the kernel.
        resolv_conf::ScopedIp::V6(_, Some(_)) => None,
        server => Upstream::from_str(&server.to_string()).ok().map(SocketAddr::from),
    });
    let servers: Vec<_> = servers.take(MAX_SERVERS).collect();
    if servers.is_empty() { vec![LAST_RESORT] } else { servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_addresses() {
        for (text, address) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]:5353", "[2620:fe::fe]:5353"),
            ("127.0.0.53", "127.0.0.53:53"),
        ] {
            let upstream: Upstream = text.parse().expect(text);
            assert_eq!(SocketAddr::from(upstream).to_string(), address);
            assert_eq!(upstream.to_string().parse(), Ok(upstream));
        }
        for text in
            ["", "dns.google", "9.9.9", "[9.9.9.9]", "9.9.9.9:", "9.9.9.9:65536", "9.9.9.9 ", "2620:fe::fe]"]
        {
            assert_eq!(text.parse::<Upstream>(), Err(UpstreamError::NoAddress(text.into())), "{text}");
        }
        for text in ["0.0.0.0", "::", "9.9.9.9:0", "224.0.0.251:5353", "ff02::fb"] {
            assert_eq!(text.parse::<Upstream>(), Err(UpstreamError::Unreachable(text.into())), "{text}");
        }
    }

    #[test]
    fn a_hosts_file_names_servers_or_a_public_one_is_asked() {
        let of = |text: &str| of_file(text.as_bytes()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            of(
                "# made by hand\nsearch example.com\nnameserver 10.0.0.1\nnameserver fd00::1\noptions no-such\n"
            ),
            ["10.0.0.1:53", "[fd00::1]:53"]
        );
        assert_eq!(of("nameserver fe80::1%eth0\nnameserver 10.0.0.1\n"), ["10.0.0.1:53"]);
        assert_eq!(
            of("nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n").len(),
            3
        );
        for nobody in ["", "nameserver\n", "nameserver example.com\n", "nameserver 0.0.0.0\n", "\u{0}\u{1}"] {
            assert_eq!(of(nobody), ["8.8.8.8:53"], "{nobody:?}");
        }
        assert_eq!(of_file(&[0xff, 0xfe, b'\n']), [LAST_RESORT]);
    }

    #[tokio::test]
    async fn a_file_is_read_anew_for_each_question() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        let servers = Servers::File(path.clone());
        assert_eq!(servers.now().await, [LAST_RESORT]);
        std::fs::write(&path, "nameserver 10.0.0.1\n").expect("written");
        assert_eq!(servers.now().await, ["10.0.0.1:53".parse().expect("an address")]);
    }
}
