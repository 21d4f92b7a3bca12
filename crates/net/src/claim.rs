//! What a connection says that it is for, read from its first bytes. Pure; every byte is the guest's.

use rustls::server::Acceptor;

use crate::name::Name;

/// The first bytes of a connection that are read at most: a greeting of TLS with keys of any kind, or a line of HTTP.
pub const MAX_CLAIM_BYTES: usize = 64 * 1024;
/// A line of text that is longer is none of HTTP.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// The type of a record of TLS that a greeting is in (RFC 8446, 5.1).
pub(crate) const TLS_HANDSHAKE: u8 = 22;
/// Methods that are HTTP's in whatever line they stand, with or without a version.
const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "PRI"];

/// What the first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Not enough yet.
    More,
    /// TLS, for this server if it says one that is a name.
    Tls(Option<Name>),
    /// HTTP, whose every request says for whom it is.
    Http,
    /// It begins as one of them, and is none that can be read.
    Broken,
    /// Neither.
    Nothing,
}

/// Reads `bytes`, which begin a connection. Once it is not [`Claim::More`], more bytes change nothing.
pub fn read(bytes: &[u8]) -> Claim {
    match bytes.first() {
        None => Claim::More,
        Some(&TLS_HANDSHAKE) => read_tls(bytes),
        Some(_) => read_http(bytes),
    }
}

fn read_tls(mut bytes: &[u8]) -> Claim {
    if bytes.len() > MAX_CLAIM_BYTES {
        return Claim::Broken;
    }
    match bytes.get(1) {
        None => return Claim::More,
        Some(3) => {}
        Some(_) => return Claim::Nothing,
    }
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        // It reads from memory, which never fails, and takes some of it, or is full.
        if !matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Claim::Broken;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(greeting)) => {
                let name = greeting.client_hello().server_name().and_then(|name| name.parse().ok());
                return Claim::Tls(name);
            }
            Err(_) => return Claim::Broken,
        }
    }
    Claim::More
}

fn read_http(bytes: &[u8]) -> Claim {
    // Servers overlook empty lines before a request (RFC 9112, 2.2).
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(start) = start else {
        return if bytes.len() > MAX_LINE_BYTES { Claim::Broken } else { Claim::More };
    };
    let rest = &bytes[start..];
    let (line, is_whole) = match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&rest[..end], true),
        None => (rest, false),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    let method_end = line.iter().position(|byte| matches!(byte, b' ' | b'\t'));
    let is_method = |method: &[u8]| METHODS.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(method));
    match method_end {
        Some(end) if is_method(&line[..end]) => return Claim::Http,
        _ if !line.iter().all(is_text) => return Claim::Nothing,
        _ => {}
    }
    let version = line.rsplit(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
    match is_whole {
        true if version.len() >= 5 && version[..5].eq_ignore_ascii_case(b"HTTP/") => Claim::Http,
        true => Claim::Nothing,
        false if rest.len() > MAX_LINE_BYTES => Claim::Nothing,
        false => Claim::More,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// The greeting that a client sends to `server`.
    fn greeting(server: &str, split: Option<usize>) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.max_fragment_size = split;
        let server = ServerName::try_from(server.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), server).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn a_greeting_says_its_server_also_in_pieces() {
        let name = |text: &str| Some(text.parse().unwrap());
        for split in [None, Some(32), Some(64)] {
            let bytes = greeting("Example.com", split);
            assert_eq!(read(&bytes), Claim::Tls(name("example.com")), "{split:?}");
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Claim::More, "{split:?} {end}");
            }
        }
        assert_eq!(read(&greeting("93.184.215.14", None)), Claim::Tls(None));
        let mut broken = greeting("example.com", None);
        broken[5] = 2;
        assert_eq!(read(&broken), Claim::Broken);
        assert_eq!(read(&[22, 3, 1, 0, 0]), Claim::Broken, "no record is empty");
    }

    #[test]
    fn http_is_known_however_it_is_written() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "get ",
            "\r\n\n\r\nGET /",
            "CONNECT evil.example:443 HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "PROPFIND / HTTP/1.1\r\n",
            "x y http/1.0\n",
            "GET\t/ ",
            "GET http://a/ HTTP/1.1\n",
        ] {
            assert_eq!(read(text.as_bytes()), Claim::Http, "{text:?}");
        }
        for text in [
            "SSH-2.0-OpenSSH_9.2 Debian\r\n",
            "USER me\r\n",
            "EHLO a\n",
            "\0\0\0\x08",
            "G\0T / HTTP/1.1\r\n",
            "\n\n",
        ] {
            let expected = if text == "\n\n" { Claim::More } else { Claim::Nothing };
            assert_eq!(read(text.as_bytes()), expected, "{text:?}");
        }
        for text in ["", "G", "GE", "GET", "SSH-2.0-Open", "PROPFIND / HTT"] {
            assert_eq!(read(text.as_bytes()), Claim::More, "{text:?}");
        }
        assert_eq!(read(&[b'a'; MAX_LINE_BYTES + 1]), Claim::Nothing);
        assert_eq!(read(&[b'\n'; MAX_LINE_BYTES + 1]), Claim::Broken);
    }

    proptest! {
        #[test]
        fn what_was_said_is_not_unsaid(bytes in prop::collection::vec(any::<u8>(), 0..200), http: bool, tls: bool) {
            let mut all = match (http, tls) {
                (true, _) => b"GET ".to_vec(),
                (_, true) => vec![22, 3, 1],
                _ => Vec::new(),
            };
            all.extend(bytes);
            let mut said = Claim::More;
            for end in 0..=all.len() {
                let now = read(&all[..end]);
                prop_assert!(said == Claim::More || said == now, "{said:?} became {now:?}");
                said = now;
            }
        }
    }
}
