//! Who may come in by HTTP.
//!
//! A web page can make its visitor's browser send requests to this machine. Two headers give it away:
//! `Origin` names the page; `Host` names what the page called us, which for a rebound DNS name is a domain
//! that is not ours. Pages of this machine are let in, but for those that sandboxes serve.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

use crate::config::HttpConfig;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "the host `{0}` is not one of this server's names: its operator can add it to BOUVET_ALLOWED_HOSTS"
    )]
    Host(String),
    #[error("pages of `{0}` may not use this server: its operator can add it to BOUVET_ALLOWED_ORIGINS")]
    Origin(String),
    #[error(
        "pages of `{0}` are, or were, a sandbox's: they may use this server if its operator adds it to \
         BOUVET_ALLOWED_ORIGINS"
    )]
    Sandbox(String),
}

/// The rules.
#[derive(Debug)]
pub(super) struct Gate {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Gate {
    pub(super) fn new(config: HttpConfig) -> Self {
        let lower = |list: Vec<String>| list.into_iter().map(|item| item.to_ascii_lowercase()).collect();
        Self { hosts: lower(config.allowed_hosts), origins: lower(config.allowed_origins) }
    }

    /// `has_led` says whether a port of this machine leads into a sandbox, or did.
    pub(super) fn check(&self, headers: &HeaderMap, has_led: impl Fn(u16) -> bool) -> Result<(), Refused> {
        let text = |name| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase())
        };
        let host = text(header::HOST);
        if let Some(host) = &host
            && !self.knows(host)
        {
            return Err(Refused::Host(host.clone()));
        }
        match text(header::ORIGIN) {
            Some(origin) if self.origins.contains(&origin) => Ok(()),
            Some(origin) => match local_port(&origin) {
                None => Err(Refused::Origin(origin)),
                Some(port) if has_led(port) => Err(Refused::Sandbox(origin)),
                Some(_) => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Names that nobody else can make point here: addresses, names without a dot, and those that we were
    /// told.
    fn knows(&self, host: &str) -> bool {
        let name = host_name(host);
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || (!name.is_empty() && !name.contains('.'))
            || self.hosts.iter().any(|known| known == name || known == host)
    }
}

/// The port of a page of this machine. Schemes that have none of their own have 0, which leads nowhere.
fn local_port(origin: &str) -> Option<u16> {
    let (scheme, host) = origin.split_once("://")?;
    let name = host_name(host);
    if !["localhost", "127.0.0.1", "[::1]"].contains(&name) {
        return None;
    }
    match host[name.len()..].strip_prefix(':') {
        Some(port) => port.parse().ok(),
        None if scheme == "http" => Some(80),
        None if scheme == "https" => Some(443),
        None => Some(0),
    }
}

/// A host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(host: &'static str, origin: Option<&'static str>) -> Result<(), Refused> {
        let gate = Gate::new(HttpConfig {
            address: ([127, 0, 0, 1], 0).into(),
            allowed_hosts: vec!["Sandbox.Example".into()],
            allowed_origins: vec!["https://app.example".into(), "http://[::1]:8000".into()],
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
        gate.check(&headers, |port| [80, 8000].contains(&port))
    }

    #[test]
    fn names_that_nobody_can_rebind_pass() {
        for host in [
            "localhost:8080",
            "127.0.0.1",
            "[::1]:8080",
            "203.0.113.7:8080",
            "bouvet-mcp:8080",
            "sandbox.example",
            "SANDBOX.example:443",
        ] {
            assert_eq!(check(host, None), Ok(()), "{host}");
        }
    }

    #[test]
    fn foreign_names_are_refused() {
        for host in ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "", "a.b:c"] {
            assert!(matches!(check(host, None), Err(Refused::Host(_))), "{host}");
        }
    }

    #[test]
    fn only_local_and_named_pages_pass() {
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:9", "https://app.example"]
        {
            assert_eq!(check("localhost", Some(origin)), Ok(()), "{origin}");
        }
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost.evil.example",
            "https://app.example:444",
            "http://localhost:65536",
        ] {
            assert!(matches!(check("localhost", Some(origin)), Err(Refused::Origin(_))), "{origin}");
        }
    }

    #[test]
    fn pages_of_sandboxes_are_no_pages_of_this_machine() {
        for origin in
            ["http://localhost:8000", "https://127.0.0.1:8000", "http://[::1]", "http://LOCALHOST:08000"]
        {
            assert!(matches!(check("localhost", Some(origin)), Err(Refused::Sandbox(_))), "{origin}");
        }
        assert_eq!(check("localhost", Some("http://[::1]:8000")), Ok(()), "its operator says so");
    }
}
