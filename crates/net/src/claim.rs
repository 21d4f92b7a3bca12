//! What a connection says that it is for, read from its first bytes. Pure; every byte is the guest's.

use rustls::server::Acceptor;

use crate::name::Name;

/// The first bytes of a connection that are read at most: a greeting of TLS with keys of any kind, or a line of HTTP.
pub const MAX_CLAIM_BYTES: usize = 64 * 1024;
/// A line of text that is longer is none of HTTP.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// The types of records of TLS that a connection can begin with: a greeting, and a warning, which servers may overlook
/// (RFC 8446, 5.1; RFC 5246, 7.2).
const TLS_HANDSHAKE: u8 = 22;
const TLS_ALERT: u8 = 21;
/// What stands after the type is a version, to be ignored (RFC 8446, 5.1): servers take what is no other protocol's.
const END_OF_TLS_VERSIONS: u8 = 0x10;
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

/// Whether a connection that begins so may be TLS.
pub(crate) fn may_be_tls(first: u8) -> bool {
    matches!(first, TLS_HANDSHAKE | TLS_ALERT)
}

/// Reads `bytes`, which begin a connection. Once it is not [`Claim::More`], more bytes change nothing.
///
/// In doubt it is what servers may take it for: a text that could go on to be a request is none only once its line has
/// ended, and a line that does not end is [`Claim::Broken`].
pub fn read(bytes: &[u8]) -> Claim {
    // What follows does not count, so that it does not matter how much came at once.
    let counts = &bytes[..bytes.len().min(MAX_CLAIM_BYTES)];
    let claim = match counts {
        [] | [TLS_HANDSHAKE | TLS_ALERT] => Claim::More,
        [TLS_HANDSHAKE, ..END_OF_TLS_VERSIONS, ..] => read_tls(counts),
        // The greeting comes after it, and would not be read.
        [TLS_ALERT, ..END_OF_TLS_VERSIONS, ..] => Claim::Broken,
        _ => read_http(counts),
    };
    match claim {
        Claim::More if bytes.len() > MAX_CLAIM_BYTES => Claim::Broken,
        claim => claim,
    }
}

/// Reads `bytes`, after which nothing comes. It is never [`Claim::More`].
pub fn read_whole(bytes: &[u8]) -> Claim {
    match read(bytes) {
        Claim::More if bytes.is_empty() => Claim::Nothing,
        Claim::More if bytes.first().is_some_and(|first| may_be_tls(*first)) => Claim::Broken,
        // The end of what is said is the end of its last line.
        Claim::More => match read_http(&[bytes, b"\n"].concat()) {
            Claim::More => Claim::Nothing,
            claim => claim,
        },
        claim => claim,
    }
}

fn read_tls(mut bytes: &[u8]) -> Claim {
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

/// What some servers take for white space, in a line and before one: ASCII's, its separators, and Latin-1's.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | 0x1c..=b' ' | 0x85 | 0xa0)
}

fn read_http(bytes: &[u8]) -> Claim {
    // Servers overlook empty lines before a request (RFC 9112, 2.2).
    match bytes.iter().position(|byte| !is_space(*byte)).unwrap_or(bytes.len()) {
        start if start > MAX_LINE_BYTES => Claim::Broken,
        start if start == bytes.len() => Claim::More,
        start => read_line(&bytes[start..]),
    }
}

/// Reads what may be the first line of a request.
fn read_line(bytes: &[u8]) -> Claim {
    let bytes = &bytes[..bytes.len().min(MAX_LINE_BYTES + 1)];
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let end = bytes.iter().position(is_end);
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let word = bytes.iter().position(|byte| is_space(*byte)).map(|end| &bytes[..end]);
    let is_known = |word: &[u8]| METHODS.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(word));
    if word.is_some_and(is_known) {
        return Claim::Http;
    }
    // Words that nobody has heard of are methods too (RFC 9110, 9.1), whatever comes after them.
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_');
    let may_be_method = word.is_some_and(|word| word.iter().all(is_letter));
    let is_text = |byte: &u8| is_space(*byte) || matches!(byte, b' '..);
    if !may_be_method && !line.iter().all(is_text) {
        return Claim::Nothing;
    }
    let version = line.split(|byte| is_space(*byte)).rfind(|word| !word.is_empty()).unwrap_or_default();
    match end {
        Some(_) if version.len() >= 5 && version[..5].eq_ignore_ascii_case(b"HTTP/") => Claim::Http,
        Some(_) => Claim::Nothing,
        None if line.len() <= MAX_LINE_BYTES => Claim::More,
        // Servers take lines that are longer, of methods.
        None if word.is_some_and(|word| word.iter().all(is_of_token)) => Claim::Broken,
        None => Claim::Nothing,
    }
}

/// Whether a method may have it (RFC 9110, 5.6.2).
fn is_of_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
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
        // As a server reads it that is told no more.
        for (text, whole) in [
            ("", Claim::Nothing),
            ("hello", Claim::Nothing),
            ("\r\n", Claim::Nothing),
            ("GET", Claim::Http),
            ("PROPFIND / HTTP/1.1", Claim::Http),
            ("\x16\x03", Claim::Broken),
        ] {
            assert_eq!(read(text.as_bytes()), Claim::More, "{text:?}");
            assert_eq!(read_whole(text.as_bytes()), whole, "{text:?}");
        }
        assert_eq!(read(&[b'a'; MAX_LINE_BYTES + 1]), Claim::Nothing);
        assert_eq!(read(&[b'\n'; MAX_LINE_BYTES + 1]), Claim::Broken);
    }

    /// A greeting for `version` of records with these names, of the types given, each without any check.
    fn greeting_of(version: u16, names: &[(u8, &[u8])]) -> Vec<u8> {
        let sized =
            |bytes: Vec<u8>| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
        let names =
            names.iter().flat_map(|(kind, name)| [vec![*kind], sized(name.to_vec())].concat()).collect();
        let extension = |kind: u16, body: Vec<u8>| [kind.to_be_bytes().to_vec(), sized(body)].concat();
        let algorithms = sized(vec![4, 3, 8, 4]);
        let extensions = [extension(0, sized(names)), extension(13, algorithms)].concat();
        let mut hello = vec![3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
        hello.extend(sized(extensions));
        let body = [&[1, 0][..], &sized(hello)].concat();
        [&[TLS_HANDSHAKE][..], &version.to_be_bytes(), &sized(body)].concat()
    }

    #[test]
    fn a_server_name_is_a_name_or_none() {
        let named = |name: &[u8]| read(&greeting_of(0x301, &[(0, name)]));
        let name = |text: &str| Claim::Tls(Some(text.parse().unwrap()));
        assert_eq!(named(b"example.com"), name("example.com"));
        assert_eq!(named(b"EXAMPLE.com"), name("example.com"));
        assert_eq!(named(b"example.com."), name("example.com"));
        assert_eq!(named(b"xn--bcher-kva.example"), name("xn--bcher-kva.example"));
        for odd in [
            &b""[..],
            b".",
            b"example.com:443",
            b"exa\0mple.com",
            b"a, b",
            b"*.example.com",
            "b\u{fc}cher.example".as_bytes(),
            b"127.0.0.1",
            b"127.1",
            b"0x7f.1",
            b"2130706433",
            b"::1",
            b"[::1]",
        ] {
            // What is no name is not taken for one, nor passed over.
            let claim = named(odd);
            assert!(matches!(claim, Claim::Tls(None) | Claim::Broken), "{}: {claim:?}", odd.escape_ascii());
        }
        let twice = read(&greeting_of(0x301, &[(0, b"example.com"), (0, b"example.org")]));
        assert_eq!(twice, Claim::Broken, "of two names either may be served");
    }

    #[test]
    fn no_greeting_passes_for_what_its_record_says() {
        let greet = |version| read(&greeting_of(version, &[(0, b"example.com")]));
        for version in 0x300..=0x304 {
            assert_eq!(greet(version), Claim::Tls(Some("example.com".parse().unwrap())), "{version:#x}");
        }
        // Servers that ignore it, as they may, would read on.
        for version in (0..0x1000).filter(|version| !(0x300..=0x304).contains(version)) {
            let claim = greet(version);
            assert!(matches!(claim, Claim::Tls(Some(_)) | Claim::Broken), "{version:#x}: {claim:?}");
        }
        assert_eq!(greet(0x1000), Claim::Nothing);
        for version in [0x301, 0x201] {
            let warning =
                [&[TLS_ALERT, 3, 1, 0, 2, 1, 90][..], &greeting_of(version, &[(0, b"example.com")])];
            assert_eq!(read(&warning.concat()), Claim::Broken, "some overlook a warning before it");
        }
    }

    #[test]
    fn what_follows_a_greeting_changes_nothing() {
        let mut bytes = greeting("example.com", None);
        let said = read(&bytes);
        assert!(matches!(said, Claim::Tls(Some(_))));
        for length in [MAX_CLAIM_BYTES, MAX_CLAIM_BYTES + 1, 3 * MAX_CLAIM_BYTES] {
            bytes.resize(length, 23);
            assert_eq!(read(&bytes), said, "{length}");
        }
    }

    #[test]
    fn a_greeting_in_the_smallest_pieces_ends_in_time() {
        // Each record has one byte of a greeting that would be longer than is read.
        let message = [&[1, 0, 0xff, 0xff][..], &[0; MAX_CLAIM_BYTES]].concat();
        let bytes: Vec<u8> = message.iter().flat_map(|byte| [TLS_HANDSHAKE, 3, 1, 0, 1, *byte]).collect();
        let begun = std::time::Instant::now();
        for length in [MAX_CLAIM_BYTES, MAX_CLAIM_BYTES + 1] {
            let claim = read(&bytes[..length]);
            assert!(matches!(claim, Claim::More | Claim::Broken), "{length} {claim:?}");
        }
        assert_eq!(read(&bytes[..=MAX_CLAIM_BYTES]), Claim::Broken);
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_request_is_known_to_whom_lenient_servers_know_it() {
        for text in [
            &b"FOO / HTTP/1.1\r\n"[..],
            b"FOO / HTTP/1.1 \r\n",
            b"FOO / http/1.1\t\n",
            b"FOO\x0b/\x0bHTTP/1.1\r\n",
            b"\x0bFOO / HTTP/1.1\r\n",
            b"  \x1c\xa0GET ",
            b"GET\x0c/",
            b"FOO /\x01 HTTP/1.1\r\n",
            b"FOO /\0 HTTP/1.1\r\n",
            b"M-SEARCH * HTTP/1.1\r\n",
            b"FOO / HTTP/1.1\rHost: a\r",
            b"F2O / HTTP/1.1\n",
        ] {
            assert_eq!(read(text), Claim::Http, "{}", text.escape_ascii());
        }
        for text in [
            &b"0032git-upload-pack /a\0host=b\0"[..],
            b"0\x1d\x02\x01\x01\x60",
            b"\x0bMSH|^~\\&|A|B|\rPID|\r",
            b"{\"log\": \"GET / HTTP/1.1\", \"code\": 200}\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"<34>1 2026-01-01 a b\n",
            b"AMQP\0\0\x09\x01",
        ] {
            assert_eq!(read(text), Claim::Nothing, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_line_is_no_way_round_by_its_length() {
        let line = |method: &str, bytes: usize| {
            let start = format!("{method} /");
            let path = "a".repeat(bytes - start.len() - " HTTP/1.1".len());
            format!("{start}{path} HTTP/1.1")
        };
        let of = |method: &str, bytes: usize| read(format!("{}\r\n", line(method, bytes)).as_bytes());
        assert_eq!(of("PROPFIND", MAX_LINE_BYTES), Claim::Http);
        for bytes in [MAX_LINE_BYTES + 1, MAX_LINE_BYTES * 2, MAX_CLAIM_BYTES] {
            assert_eq!(of("PROPFIND", bytes), Claim::Broken, "{bytes}");
            assert_eq!(of("GET", bytes), Claim::Http, "{bytes}");
        }
        let blank = |bytes: usize| read(&[&vec![b'\n'; bytes][..], b"GET / HTTP/1.1\r\n"].concat());
        assert_eq!((blank(MAX_LINE_BYTES), blank(MAX_LINE_BYTES + 1)), (Claim::Http, Claim::Broken));
    }

    /// What lines and greetings are made of.
    const PIECES: &[&[u8]] = &[
        b"GET",
        b"foo",
        b"F2",
        b" ",
        b"\t",
        b"\x0b",
        b"\r",
        b"\n",
        b"/",
        b"HTTP/1.1",
        b"HTTP/",
        b"\0",
        b"\x01",
        b"\xa0",
        b"{",
        &[22],
        &[21],
        &[3, 1],
        &[0, 2],
    ];

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
                prop_assert_ne!(read_whole(&all[..end]), Claim::More);
                prop_assert!(said == Claim::More || said == now, "{said:?} became {now:?}");
                said = now;
            }
        }

        #[test]
        fn in_pieces_it_says_the_same(
            start in prop::sample::select(PIECES), parts in prop::collection::vec(prop::sample::select(PIECES), 0..6), blank in 0..3_usize,
        ) {
            let blank = [0, MAX_LINE_BYTES - 1, MAX_LINE_BYTES][blank];
            let all = [&[start, &vec![b' '; blank][..]].concat()[..], &parts.concat()].concat();
            let mut said = Claim::More;
            for end in (0..=all.len()).filter(|end| *end < 64 || all.len() - end < 64 || end.abs_diff(MAX_LINE_BYTES) < 64) {
                let now = read(&all[..end]);
                prop_assert!(said == Claim::More || said == now, "{said:?} became {now:?} at {end}");
                said = now;
            }
        }
    }
}
