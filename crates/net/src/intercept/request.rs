//! What of a request is checked and changed before it goes on. Pure.

use hyper::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, StatusCode, Uri, Version};

use crate::name::Name;

/// Headers of one connection, which are not for whoever is behind it (RFC 9110, 7.6.1).
const OF_THE_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];
const WEBSOCKET: &str = "websocket";

/// Whom requests of one connection may be for.
pub(crate) enum Server {
    /// Him whose name its TLS says.
    Named(Name, u16),
    /// Whom this lets through, over plain HTTP.
    Judged(Box<dyn Fn(&Name) -> bool + Send + Sync>, u16),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name, port) => write!(f, "Named({name}:{port})"),
            Self::Judged(_, port) => write!(f, "Judged(_:{port})"),
        }
    }
}

impl Server {
    fn has_scheme(&self, scheme: &str) -> bool {
        match self {
            Self::Named(..) => matches!(scheme, "https" | "wss"),
            Self::Judged(..) => matches!(scheme, "http" | "ws"),
        }
    }

    /// The name in `authority`, if it is a server's of this connection.
    fn name(&self, authority: &Authority) -> Result<Name, Refused> {
        let (Self::Named(_, port) | Self::Judged(_, port)) = self;
        // The port, as some parsers find it, must be what all others see.
        let (host, written) = authority.as_str().rsplit_once(':').unwrap_or((authority.as_str(), ""));
        let has_port = authority.as_str().contains(':');
        let same_port = !has_port || written.parse() == Ok(*port);
        let name = host.parse::<Name>().map_err(|_| Refused::Misdirected)?;
        let fits = match self {
            Self::Named(own, _) => *own == name,
            Self::Judged(judge, _) => judge(&name),
        };
        if fits && same_port { Ok(name) } else { Err(Refused::Misdirected) }
    }
}

/// Why a request goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its methods would have the server be a proxy, or show what it got.
    Method,
    /// It is for another name than the connection.
    Misdirected,
    /// It is for no name, or for several.
    Nameless,
    /// Its headers are too large, with the secrets in them.
    Oversized,
}

impl Refused {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Nameless => StatusCode::BAD_REQUEST,
            Self::Oversized => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Method => "CONNECT and TRACE are not passed on",
            Self::Misdirected => "the request is for a name that this connection is not for",
            Self::Nameless => "the request needs one Host, by which it is allowed",
            Self::Oversized => "the request's headers are too large",
        }
    }
}

/// The name that a request is for, if its connection leads there and it is for no other.
pub(super) fn check(parts: &Parts, server: &Server) -> Result<Name, Refused> {
    // TRACE is answered with the request as it arrived, secrets and all (RFC 9110, 9.3.8).
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Refused::Method);
    }
    if parts.uri.scheme_str().is_some_and(|scheme| !server.has_scheme(scheme)) {
        return Err(Refused::Misdirected);
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refused::Nameless);
    }
    let host = match host {
        Some(host) => {
            let host = host.to_str().ok().and_then(|host| host.parse().ok()).ok_or(Refused::Nameless)?;
            Some(server.name(&host)?)
        }
        None => None,
    };
    let target = parts.uri.authority().map(|authority| server.name(authority)).transpose()?;
    match (host, target) {
        (Some(host), Some(target)) if host != target => Err(Refused::Misdirected),
        (host, target) => host.or(target).ok_or(Refused::Nameless),
    }
}

/// Whether it asks for a WebSocket (RFC 6455, 4.1), which is the only thing that connections are upgraded to: within
/// others there could be requests again.
pub(super) fn is_websocket(parts: &Parts) -> bool {
    let mut wanted = tokens(&parts.headers, &UPGRADE);
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && tokens(&parts.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && wanted.next().is_some_and(|first| first.eq_ignore_ascii_case(WEBSOCKET))
        && wanted.next().is_none()
}

/// Makes a request that was checked one of our own connection to the server.
pub(super) fn readdress(parts: &mut Parts, name: &Name) {
    let websocket = is_websocket(parts);
    clear(&mut parts.headers);
    // We answer it ourselves, by reading on.
    parts.headers.remove(EXPECT);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if parts.version == Version::HTTP_2 {
        // There the name is part of the target.
        if parts.uri.authority().is_none() {
            let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(name.as_str());
            let whole = Uri::builder().scheme("https").authority(host).path_and_query(path).build();
            parts.uri = whole.unwrap_or_default();
        }
        parts.headers.remove(HOST);
        return;
    }
    if !parts.headers.contains_key(HOST)
        && let Some(host) = parts.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok())
    {
        parts.headers.insert(HOST, host);
    }
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    if websocket {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    }
}

/// Takes away what is of one connection only.
pub(super) fn clear(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .filter(|name| name != HOST)
        .collect();
    // gRPC insists (RFC 9110, 10.1.4).
    let trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    for name in OF_THE_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The words of all headers called `name`.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn checked(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<(), Refused> {
        let server = Server::Named("api.example.com".parse().expect("a name"), 443);
        check(&parts(method, target, headers), &server).map(drop)
    }

    #[test]
    fn a_request_is_for_the_connections_name_or_refused() {
        for host in ["api.example.com", "API.example.com", "api.example.com:443", "api.example.com."] {
            assert_eq!(checked("GET", "/", &[("host", host)]), Ok(()), "{host}");
            assert_eq!(checked("GET", &format!("https://{host}/x"), &[]), Ok(()), "{host}");
        }
        for host in [
            "example.com",
            "evil.com",
            "api.example.com.evil.com",
            "api.example.com:80",
            "api.example.com:",
            "api.example.com:443:443",
            "user@api.example.com",
            "api.example.com:443@evil.com",
            "198.51.100.7",
        ] {
            let refused = checked("GET", "/", &[("host", host)]);
            assert!(matches!(refused, Err(Refused::Misdirected | Refused::Nameless)), "{host}: {refused:?}");
            let both = checked("GET", "https://api.example.com/", &[("host", host)]);
            assert!(both.is_err(), "{host}");
        }
        assert_eq!(
            checked("GET", "https://evil.com/", &[("host", "api.example.com")]),
            Err(Refused::Misdirected)
        );
        assert_eq!(
            checked("GET", "http://api.example.com/", &[("host", "api.example.com")]),
            Err(Refused::Misdirected)
        );
        assert_eq!(checked("GET", "/", &[]), Err(Refused::Nameless));
        let twice = [("host", "api.example.com"), ("host", "api.example.com")];
        assert_eq!(checked("GET", "/", &twice), Err(Refused::Nameless));
    }

    #[test]
    fn over_plain_http_each_request_is_judged() {
        let judge = |name: &Name| name.as_str().ends_with(".example.com");
        let server = Server::Judged(Box::new(judge), 80);
        let checked = |target: &str, host: &str| check(&parts("GET", target, &[("host", host)]), &server);
        assert!(checked("/", "a.example.com").is_ok());
        assert!(checked("http://a.example.com/", "a.example.com:80").is_ok());
        assert_eq!(checked("http://b.example.com/", "a.example.com"), Err(Refused::Misdirected));
        assert_eq!(checked("/", "evil.example"), Err(Refused::Misdirected));
        assert_eq!(checked("https://a.example.com/", "a.example.com"), Err(Refused::Misdirected));
    }

    #[test]
    fn methods_that_show_or_tunnel_are_refused() {
        assert_eq!(checked("TRACE", "/", &[("host", "api.example.com")]), Err(Refused::Method));
        assert_eq!(checked("CONNECT", "api.example.com:443", &[]), Err(Refused::Method));
        assert_eq!(checked("OPTIONS", "*", &[("host", "api.example.com")]), Ok(()));
    }

    #[test]
    fn what_is_of_the_connection_stays_there() {
        let headers = [
            ("host", "api.example.com"),
            ("connection", "keep-alive, X-Secret-Path, host"),
            ("keep-alive", "timeout=5"),
            ("x-secret-path", "1"),
            ("upgrade", "h2c"),
            ("te", "trailers, deflate"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ];
        let mut parts = parts("GET", "https://api.example.com/a?b", &headers);
        readdress(&mut parts, &"api.example.com".parse().expect("a name"));
        let mut left: Vec<_> =
            parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        left.sort_unstable();
        assert_eq!(left, [("accept", &b"*/*"[..]), ("host", b"api.example.com"), ("te", b"trailers")]);
        assert_eq!((parts.uri.to_string().as_str(), parts.version), ("/a?b", Version::HTTP_11));
    }

    #[test]
    fn only_websockets_are_upgraded_to() {
        let asked = |upgrade: &str| {
            let headers = [("host", "api.example.com"), ("connection", "Upgrade"), ("upgrade", upgrade)];
            let mut parts = parts("GET", "/", &headers);
            readdress(&mut parts, &"api.example.com".parse().expect("a name"));
            parts.headers.get(UPGRADE).map(|value| value.to_str().expect("text").to_owned())
        };
        assert_eq!(asked("WebSocket"), Some("websocket".into()));
        for other in ["h2c", "websocket, h2c", "TLS/1.0", ""] {
            assert_eq!(asked(other), None, "{other}");
        }
    }
}
