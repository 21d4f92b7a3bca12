//! Where secrets go, and where they do not.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

#[tokio::test]
async fn secrets_reach_their_server_in_headers_and_nowhere_else() {
    for protocols in [&[][..], &[HTTP_1], BOTH] {
        let (web, interceptor) = site(BOTH).await;
        let [key, other] = [0, 1].map(|n| interceptor.secrets()[n].placeholder().to_owned());
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        assert_eq!(guest.is_http2(), protocols.contains(&HTTP_2));
        let basic = format!("Basic {}", STANDARD.encode(format!("user:{key}")));
        let path = format!("/echo?key={key}");
        let request = guest.request(&path).method("POST");
        let request = request.header("authorization", format!("Bearer {key}")).header("x-other", &other);
        let request = request.header("x-twice", format!("{key} {other}")).header("x-basic", basic);
        let request = request.body(whole(format!("body {key}"))).expect("a request");
        let response = guest.send(request).await.expect("a response");
        assert_eq!(text(response).await, (StatusCode::OK, format!("body {key}")));
        let [seen] = &web.seen()[..] else { panic!("one request") };
        assert_eq!(header(seen, "authorization"), [format!("Bearer {VALUE}")]);
        assert_eq!(header(seen, "x-other"), [other.as_str()]);
        assert_eq!(header(seen, "x-twice"), [format!("{VALUE} {other}")]);
        assert_eq!(header(seen, "x-basic"), [format!("Basic {}", STANDARD.encode(format!("user:{VALUE}")))]);
        assert_eq!(seen.uri().path_and_query().expect("a path").as_str(), path);
        let (version, host) = match protocols.contains(&HTTP_2) {
            true => (Version::HTTP_2, seen.uri().authority().map(ToString::to_string)),
            false => (Version::HTTP_11, header(seen, "host").first().map(ToString::to_string)),
        };
        assert_eq!((seen.version(), host.as_deref()), (version, Some(NAME)));
    }
}

#[tokio::test]
async fn both_sides_speak_the_same_http() {
    for (guests, servers, http2) in [
        (&[][..], &[][..], false),
        (BOTH, &[], false),
        (BOTH, &[HTTP_1], false),
        (&[HTTP_1], BOTH, false),
        (&[], BOTH, false),
        (BOTH, BOTH, true),
        (&[HTTP_2], &[HTTP_2], true),
        (&[b"h3", HTTP_2], &[HTTP_2], true),
    ] {
        let (web, interceptor) = site(servers).await;
        let mut guest = Guest::connect(&web, &interceptor, guests).await;
        assert_eq!(guest.is_http2(), http2, "{guests:?} {servers:?}");
        assert_eq!(guest.get("/", ("a", "b")).await, (StatusCode::OK, "hello".into()));
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let (web, interceptor) = site(BOTH).await;
    for protocols in [&[HTTP_1][..], BOTH] {
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        for n in 0..20 {
            let key = interceptor.secrets()[0].placeholder();
            assert_eq!(guest.get(&format!("/{n}"), ("x-key", key)).await, (StatusCode::OK, "hello".into()));
        }
        let seen = web.seen();
        assert_eq!(seen.len(), 20);
        assert!(seen.iter().all(|seen| header(seen, "x-key") == [VALUE]));
        drop(guest.client);
        // A guest that goes without a goodbye may be an error, but is an end.
        drop(guest.served.await.expect("served"));
    }
}

#[tokio::test]
async fn a_secret_below_a_name_is_for_what_is_there() {
    let ca = Ca::new();
    let secrets = vec![secret("KEY", VALUE, "*.example.com"), secret("EXACT", "x", "example.org")];
    let interceptor = Interceptor::new(secrets, ca.trust()).expect("an interceptor");
    for (name, expected) in [
        ("api.example.com", true),
        ("a.b.example.com", true),
        ("example.com", false),
        ("api.example.com.evil.example", false),
        ("notexample.com", false),
        ("example.org", true),
        ("www.example.org", false),
    ] {
        assert_eq!(interceptor.is_for(&name.parse().expect("a name")), expected, "{name}");
    }
}

#[test]
fn a_sandbox_has_so_many_secrets_and_no_more() {
    let trust = Ca::new().trust();
    let many = |count: usize| (0..count).map(|n| secret(&format!("S{n}"), "x", NAME)).collect::<Vec<_>>();
    Interceptor::new(many(MAX_SECRETS), trust.clone()).expect("an interceptor");
    let error = Interceptor::new(many(MAX_SECRETS + 1), trust.clone()).expect_err("too many");
    assert!(matches!(error, InterceptorError::TooMany(65)));
    let twice = vec![secret("A", "x", NAME), secret("B", "x", NAME), secret("A", "y", "example.org")];
    let error = Interceptor::new(twice, trust).expect_err("twice");
    assert!(matches!(error, InterceptorError::Twice(name) if name == "A"));
}

/// What is logged, at every level and by every library.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    let _default = tracing::subscriber::set_default(subscriber.with_writer(move || writer.clone()).finish());
    for protocols in [&[HTTP_1][..], BOTH] {
        let (web, interceptor) = site(BOTH).await;
        let key = interceptor.secrets()[0].placeholder();
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        let basic = format!("Basic {}", STANDARD.encode(format!("user:{key}")));
        for value in [key, &basic] {
            assert_eq!(guest.get("/", ("authorization", value)).await.0, StatusCode::OK);
        }
        assert_eq!(header(&web.seen()[0], "authorization"), [VALUE]);
    }
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("h2::"), "HTTP/2 logs what it does");
    let encoded = STANDARD.encode(format!("user:{VALUE}"));
    for secret in [VALUE, &encoded] {
        assert!(
            !logged.contains(secret),
            "{}",
            logged.lines().find(|line| line.contains(secret)).unwrap_or("")
        );
    }
}
