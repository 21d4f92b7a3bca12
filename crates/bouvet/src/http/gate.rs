//! Which requests may come in by HTTP.
//!
//! A web page can make its visitor's browser send requests to this machine. Two values give it away: `Origin` names
//! the page; the request's [`Authority`] is the host that the page called, which for a rebound DNS name is not ours.
//! Pages of this machine are let in, except those that sandboxes serve.

use axum::http::{HeaderMap, StatusCode, Uri, Version, header};

use super::authority::{self, Authority, Host, Malformed};
use crate::config::HttpConfig;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the request has more than one `Origin` header")]
    Origins,
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

impl Refused {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Origins => StatusCode::BAD_REQUEST,
            Self::Host(_) | Self::Origin(_) | Self::Sandbox(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// The rules.
#[derive(Debug)]
pub(super) struct Gate {
    /// Names, or names and ports, in lower case and without a dot at the name's end.
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Gate {
    pub(super) fn new(config: HttpConfig) -> Self {
        let undotted = |host: &String| match host.split_once(':') {
            Some((name, port)) => format!("{}:{port}", name.trim_end_matches('.')).to_ascii_lowercase(),
            None => host.trim_end_matches('.').to_ascii_lowercase(),
        };
        Self {
            hosts: config.allowed_hosts.iter().map(undotted).collect(),
            origins: config.allowed_origins.into_iter().map(|item| item.to_ascii_lowercase()).collect(),
        }
    }

    /// Judges a request by its version, target and headers. `has_led` states whether a port of this machine leads into
    /// a sandbox, or did.
    pub(super) fn check(
        &self,
        (version, target): (Version, &Uri),
        headers: &HeaderMap,
        has_led: impl Fn(u16) -> bool,
    ) -> Result<(), Refused> {
        let authority = authority::effective(version, target, headers)?;
        self.check_host(&authority)?;
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        if origins.next().is_some() {
            return Err(Refused::Origins);
        }
        let origin = String::from_utf8_lossy(origin.as_bytes()).to_ascii_lowercase();
        match local_port(&origin) {
            _ if self.origins.contains(&origin) => Ok(()),
            None => Err(Refused::Origin(origin)),
            Some(port) if has_led(port) => Err(Refused::Sandbox(origin)),
            Some(_) => Ok(()),
        }
    }

    /// Lets in names that nobody else can make point here: addresses, `localhost`, names without a dot, and those that
    /// the operator listed. A name with one dot, at its end, is a top-level domain of the public DNS.
    fn check_host(&self, authority: &Authority) -> Result<(), Refused> {
        let Host::Name { name, is_absolute } = &authority.host else { return Ok(()) };
        let with_port = authority.port.map(|port| format!("{name}:{port}"));
        let is_listed = self
            .hosts
            .iter()
            .any(|known| known == name || with_port.as_ref().is_some_and(|full| known == full));
        match is_listed || name == "localhost" || (!name.contains('.') && !is_absolute) {
            true => Ok(()),
            false => Err(Refused::Host(with_port.unwrap_or_else(|| name.clone()))),
        }
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

    fn check(host: &str, origin: Option<&'static str>) -> Result<(), Refused> {
        let gate = Gate::new(HttpConfig {
            address: ([127, 0, 0, 1], 0).into(),
            allowed_hosts: vec!["Sandbox.Example".into(), "ported.example.:444".into()],
            allowed_origins: vec!["https://app.example".into(), "http://[::1]:8000".into()],
            bodies_bytes: 0,
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
        gate.check((Version::HTTP_11, &Uri::from_static("/mcp")), &headers, |port| [80, 8000].contains(&port))
    }

    #[test]
    fn names_that_nobody_can_rebind_pass() {
        for host in [
            "localhost:8080",
            "LocalHost.",
            "127.0.0.1",
            "127.0.0.1.:1",
            "[::1]:8080",
            "203.0.113.7:8080",
            "bouvet-mcp:8080",
            "sandbox.example",
            "SANDBOX.example:443",
            "sandbox.example.",
            "ported.example:444",
        ] {
            assert_eq!(check(host, None), Ok(()), "{host}");
        }
    }

    #[test]
    fn foreign_names_are_refused() {
        for host in [
            "evil.example",
            "EVIL.example:8080",
            "evil.example.",
            "ai.",
            "localhost.evil.example:8080",
            "127.0.0.1.evil.example",
            "127.1",
            "ported.example",
            "ported.example:443",
        ] {
            assert!(matches!(check(host, None), Err(Refused::Host(_))), "{host}");
        }
        for host in ["", "a.b:c", "::1"] {
            assert!(matches!(check(host, None), Err(Refused::Malformed(_))), "{host}");
        }
    }

    #[test]
    fn two_origins_are_refused() {
        let gate = Gate::new(HttpConfig {
            address: ([127, 0, 0, 1], 0).into(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            bodies_bytes: 0,
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        for origin in ["http://localhost", "http://evil.example"] {
            headers.append(header::ORIGIN, HeaderValue::from_static(origin));
        }
        let checked = gate.check((Version::HTTP_11, &Uri::from_static("/mcp")), &headers, |_| false);
        assert_eq!(checked, Err(Refused::Origins));
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
