//! The effective authority of a request: the host and port that its client meant (RFC 9110, section 7.1). Pure.
//!
//! | request | authority |
//! |---|---|
//! | HTTP/1, target with a host (absolute form) | the target's; `Host` is ignored (RFC 9112, section 3.2.2) |
//! | HTTP/1, other | `Host` |
//! | HTTP/2 | `:authority`, which `Host` may repeat but not contradict (RFC 9113, section 8.3.1); else `Host` |
//!
//! No authority, two, or one that cannot be read is an error.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, Uri, Version, header};

/// The host and port that a client meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

/// A host, by name or by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    Name {
        /// In lower case, without the dot at its end.
        name: String,
        /// Whether the name ended with a dot: no search domain is added to it.
        is_absolute: bool,
    },
}

/// Why a request has no authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the request names no host: add a `Host` header")]
    Missing,
    #[error("the request has more than one `Host` header")]
    Repeated,
    #[error("`{}` is not a host, or a host and a port", .0.escape_debug())]
    Invalid(String),
    #[error("the `Host` header differs from `:authority`")]
    Different,
}

/// The authority of a request with this version, target and headers.
pub(super) fn effective(version: Version, target: &Uri, headers: &HeaderMap) -> Result<Authority, Malformed> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|value| parse(&String::from_utf8_lossy(value.as_bytes()))).transpose()?;
    if hosts.next().is_some() {
        return Err(Malformed::Repeated);
    }
    let target = target.authority().map(|authority| parse(authority.as_str())).transpose()?;
    match (target, host) {
        (Some(target), Some(host)) if version >= Version::HTTP_2 && target != host => {
            Err(Malformed::Different)
        }
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(Malformed::Missing),
    }
}

/// Reads `HOST` or `HOST:PORT`.
fn parse(text: &str) -> Result<Authority, Malformed> {
    let invalid = || Malformed::Invalid(text.chars().take(MAX_SHOWN_CHARS).collect());
    if text.is_empty() {
        return Err(Malformed::Missing);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(invalid)?;
            let address: Ipv6Addr = address.parse().map_err(|_| invalid())?;
            (Host::Address(address.into()), port)
        }
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (parse_name(name).ok_or_else(invalid)?, port)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        // RFC 3986, section 3.2.3: a colon without a port is the default port.
        Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| invalid())?)
        }
        _ => return Err(invalid()),
    };
    Ok(Authority { host, port })
}

/// As much of a text that is not a host as helps its sender to recognise it.
const MAX_SHOWN_CHARS: usize = 64;

fn parse_name(text: &str) -> Option<Host> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() || name.ends_with('.') || !name.bytes().all(is_sound) {
        return None;
    }
    Some(match name.parse() {
        Ok(address) => Host::Address(IpAddr::V4(address)),
        Err(_) => Host::Name { name: name.to_ascii_lowercase(), is_absolute: name.len() < text.len() },
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(version: Version, target: &str, hosts: &[&str]) -> Result<String, Malformed> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        let authority = effective(version, &target.parse().unwrap(), &headers)?;
        let port = authority.port.map(|port| format!(":{port}")).unwrap_or_default();
        Ok(match authority.host {
            Host::Address(address) => format!("address {address}{port}"),
            Host::Name { name, is_absolute } => format!("{name}{}{port}", if is_absolute { "." } else { "" }),
        })
    }

    #[test]
    fn authority_follows_version_and_form() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let invalid = |text: &str| Err(Malformed::Invalid(text.into()));
        for (version, target, hosts, expected) in [
            (one, "/mcp", &["a.example"][..], Ok("a.example")),
            (Version::HTTP_10, "/mcp", &["a.example"], Ok("a.example")),
            (one, "/mcp", &[], Err(Malformed::Missing)),
            (one, "/mcp", &[""], Err(Malformed::Missing)),
            (one, "/mcp", &["a", "a"], Err(Malformed::Repeated)),
            (one, "http://evil.example/mcp", &["localhost"], Ok("evil.example")),
            (one, "http://localhost/mcp", &["evil.example"], Ok("localhost")),
            (one, "http://localhost/mcp", &[], Ok("localhost")),
            (one, "http://localhost/mcp", &["a", "b"], Err(Malformed::Repeated)),
            (one, "http://user@localhost/mcp", &["localhost"], invalid("user@localhost")),
            (two, "http://evil.example/mcp", &[], Ok("evil.example")),
            (two, "http://a.example:80/mcp", &["A.example:80"], Ok("a.example:80")),
            (two, "http://evil.example/mcp", &["localhost"], Err(Malformed::Different)),
            (two, "http://localhost/mcp", &["evil.example"], Err(Malformed::Different)),
            (two, "http://localhost:1/mcp", &["localhost:2"], Err(Malformed::Different)),
            (two, "/mcp", &["a.example"], Ok("a.example")),
            (two, "/mcp", &[], Err(Malformed::Missing)),
            (two, "/mcp", &["a", "b"], Err(Malformed::Repeated)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(of(version, target, hosts), expected, "{version:?} {target} {hosts:?}");
        }
    }

    #[test]
    fn hosts_and_ports_are_read() {
        for (text, expected) in [
            ("LOCALHOST:8080", "localhost:8080"),
            ("localhost:", "localhost"),
            ("localhost:0", "localhost:0"),
            ("localhost:00080", "localhost:80"),
            ("localhost:65535", "localhost:65535"),
            ("localhost.", "localhost."),
            ("A.Example.:1", "a.example.:1"),
            ("127.0.0.1:9", "address 127.0.0.1:9"),
            ("127.0.0.1.", "address 127.0.0.1"),
            ("[::1]", "address ::1"),
            ("[::1]:8080", "address ::1:8080"),
            ("[0:0:0:0:0:0:0:1]:", "address ::1"),
            ("bouvet_mcp-1", "bouvet_mcp-1"),
        ] {
            assert_eq!(of(Version::HTTP_11, "/", &[text]), Ok(expected.to_owned()), "{text}");
        }
        for text in [
            "localhost:65536",
            "localhost:-1",
            "localhost:http",
            "localhost:80:80",
            "localhost:8 0",
            " localhost",
            "::1",
            "[::1",
            "[::1]80",
            "[localhost]",
            "[fe80::1%25lo]",
            "[127.0.0.1]",
            ".",
            "localhost..",
            ":80",
            "a@localhost",
            "evil%2eexample",
            "a,b",
            "http://localhost",
            "localhost/mcp",
            "ü.example",
        ] {
            let read = of(Version::HTTP_11, "/", &[text]);
            assert!(matches!(read, Err(Malformed::Invalid(_))), "{text}: {read:?}");
        }
    }
}
