//! `hostname` and `extra_hosts`: the name of a sandbox, and others that it knows.

use std::net::IpAddr;

use bouvet_net::{Addresses, Name};
use bouvet_wire::v1;

use super::{BoxConfig, InvalidConfig, NetworkMode};

/// `HOST_NAME_MAX` of Linux.
const MAX_HOSTNAME_BYTES: usize = 64;
/// Docker's word for the address at which a sandbox finds its host.
const HOST_GATEWAY: &str = "host-gateway";

/// A line of the sandbox's `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostLine {
    name: Name,
    /// `None`: the gateway's.
    address: Option<IpAddr>,
}

impl HostLine {
    /// Parses `NAME:ADDRESS` or `NAME=ADDRESS`.
    fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let read = || {
            let at = text.find(['=', ':'])?;
            let (name, address) = (&text[..at], &text[at + 1..]);
            let address = match address {
                HOST_GATEWAY => None,
                text => {
                    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
                    Some(bare.parse().ok()?)
                }
            };
            Some(Self { name: name.parse().ok()?, address })
        };
        let allowed = "`NAME:ADDRESS` and `NAME:host-gateway` are allowed";
        read().ok_or_else(|| InvalidConfig::text("extra_hosts", text, allowed))
    }

    /// Those of `config`.
    pub(super) fn parse_all(config: &BoxConfig) -> Result<Vec<Self>, InvalidConfig> {
        let lines: Vec<_> =
            config.extra_hosts.iter().map(|text| Self::parse(text)).collect::<Result<_, _>>()?;
        let alone = matches!(config.network, NetworkMode::None);
        match lines.iter().zip(&config.extra_hosts).find(|(line, _)| alone && line.address.is_none()) {
            Some((_, text)) => {
                Err(InvalidConfig::text("extra_hosts", text, "without a network, addresses are allowed"))
            }
            None => Ok(lines),
        }
    }

    /// The line, for a sandbox with these `addresses` if it is on a network.
    pub(crate) fn entry(&self, addresses: Option<&Addresses>) -> Option<v1::HostEntry> {
        let address = self.address.or_else(|| Some(addresses?.gateway_ipv4.into()))?;
        Some(v1::HostEntry { address: address.to_string(), name: self.name.to_string() })
    }
}

/// Whether a sandbox may call itself so: one name or several with dots between them.
pub(super) fn check_hostname(hostname: &str) -> Result<(), InvalidConfig> {
    let label = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.is_empty()
            && !label.starts_with('-')
    };
    if hostname.len() <= MAX_HOSTNAME_BYTES && hostname.split('.').all(label) {
        return Ok(());
    }
    let allowed = format!(
        "up to {MAX_HOSTNAME_BYTES} letters, digits, `-`, `_`, with single dots between, are allowed"
    );
    Err(InvalidConfig::text("hostname", hostname, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(lines: &[&str], network: NetworkMode) -> Result<Vec<(String, String)>, InvalidConfig> {
        let extra_hosts = lines.iter().map(|line| (*line).to_owned()).collect();
        let lines = HostLine::parse_all(&BoxConfig { extra_hosts, network, ..BoxConfig::default() })?;
        let addresses = Addresses::default();
        let entries = lines.iter().filter_map(|line| line.entry(Some(&addresses)));
        Ok(entries.map(|entry| (entry.name, entry.address)).collect())
    }

    #[test]
    fn hosts_are_read_as_docker_reads_them() {
        let lines = ["db:192.0.2.7", "Web=192.0.2.8", "six:fd00::1", "seven:[fd00::2]", "host:host-gateway"];
        let expected = [
            ("db", "192.0.2.7"),
            ("web", "192.0.2.8"),
            ("six", "fd00::1"),
            ("seven", "fd00::2"),
            ("host", "10.0.2.2"),
        ];
        let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned()));
        assert_eq!(entries(&lines, NetworkMode::Tsi).unwrap(), expected);
        assert_eq!(entries(&lines[..1], NetworkMode::None).unwrap(), expected[..1]);
        for wrong in
            ["", "db", "db:", ":192.0.2.7", "db:elsewhere", "a b:192.0.2.7", "db:192.0.2.7\n", "1:192.0.2.7"]
        {
            assert_eq!(entries(&[wrong], NetworkMode::Tsi).unwrap_err().field, "extra_hosts", "{wrong:?}");
        }
        let error = entries(&["host:host-gateway"], NetworkMode::None).unwrap_err();
        assert_eq!(error.allowed, "without a network, addresses are allowed");
    }

    #[test]
    fn hostname_has_the_kernels_limit() {
        for right in ["web", "web-1.example.com", "WEB_2", "0", &"x".repeat(MAX_HOSTNAME_BYTES)] {
            assert_eq!(check_hostname(right), Ok(()), "{right}");
        }
        for wrong in ["", "-web", "web.", "a..b", "a b", "a/b", "\u{fc}", &"x".repeat(MAX_HOSTNAME_BYTES + 1)]
        {
            assert_eq!(check_hostname(wrong).unwrap_err().field, "hostname", "{wrong}");
        }
    }
}
