//! Requests and connections that go no further.

use super::*;

#[tokio::test]
async fn a_request_for_another_name_is_misdirected() {
    let (web, interceptor) = site(BOTH).await;
    let key = interceptor.secrets()[0].placeholder();
    for (target, host) in [
        ("/", "evil.example"),
        ("/", "other.example.com"),
        ("/", "api.example.com.evil.example"),
        ("/", "api.example.com:1"),
        ("https://evil.example/", NAME),
        ("https://evil.example/", "evil.example"),
        ("http://api.example.com/", NAME),
    ] {
        let mut guest = Guest::connect(&web, &interceptor, &[HTTP_1]).await;
        let request = Request::builder().uri(target).header(HOST, host).header("x-key", key);
        let response = guest.send(request.body(empty()).expect("a request")).await.expect("a response");
        assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST, "{target} {host}");
    }
    let mut guest = Guest::connect(&web, &interceptor, BOTH).await;
    for target in ["https://evil.example/", "https://api.example.com:1/", "http://api.example.com/"] {
        let request = Request::builder().version(Version::HTTP_2).uri(target).header("x-key", key);
        let response = guest.send(request.body(empty()).expect("a request")).await.expect("a response");
        assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST, "{target}");
    }
    let request = guest.request("/").header(HOST, "evil.example").body(empty()).expect("a request");
    assert_eq!(guest.send(request).await.expect("a response").status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(web.seen().len(), 0);
    // The connection itself is as good as before.
    assert_eq!(guest.get("/", ("a", "b")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let (web, interceptor) = site(BOTH).await;
    for hosts in [&[][..], &[NAME, NAME], &[NAME, "evil.example"]] {
        let mut guest = Guest::connect(&web, &interceptor, &[HTTP_1]).await;
        let request =
            hosts.iter().fold(Request::builder().uri("/"), |request, host| request.header(HOST, *host));
        let response = guest.send(request.body(empty()).expect("a request")).await.expect("a response");
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{hosts:?}");
    }
    assert_eq!(web.seen().len(), 0);
}

#[tokio::test]
async fn a_server_is_no_proxy_and_shows_nothing() {
    let (web, interceptor) = site(BOTH).await;
    for protocols in [&[HTTP_1][..], BOTH] {
        for (method, path) in
            [("TRACE", "/"), ("CONNECT", "api.example.com:443"), ("CONNECT", "evil.example:443")]
        {
            let mut guest = Guest::connect(&web, &interceptor, protocols).await;
            let mut request = guest.request("/").method(method).body(empty()).expect("a request");
            if method == "CONNECT" {
                *request.uri_mut() = path.parse().expect("a target");
            }
            let response = guest.send(request).await;
            let status = response.map(|response| response.status());
            assert!(matches!(status, Ok(StatusCode::METHOD_NOT_ALLOWED)), "{method} {path}: {status:?}");
        }
    }
    assert_eq!(web.seen().len(), 0);
}

#[tokio::test]
async fn headers_have_a_size_also_with_secrets_in_them() {
    let (web, interceptor) = site(BOTH).await;
    for protocols in [&[HTTP_1][..], BOTH] {
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        let fits = "x".repeat(60 * 1024);
        assert_eq!(guest.get("/", ("x-large", &fits)).await.0, StatusCode::OK);
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        let large = "x".repeat(70 * 1024);
        let request = guest.request("/").header("x-large", large).body(empty()).expect("a request");
        let status = guest.send(request).await.map(|response| response.status());
        // HTTP/2 may break off such a request, or its connection, instead.
        assert!(matches!(status, Err(_) | Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)), "{status:?}");
    }
    assert_eq!(web.seen().len(), 2);
    let ca = Ca::new();
    let web = Web::start(ca.server(NAME, |_| {}, BOTH)).await;
    let secrets = vec![secret("KEY", &"v".repeat(4096), NAME)];
    let interceptor = Arc::new(Interceptor::new(secrets, ca.trust()).expect("an interceptor"));
    let key = interceptor.secrets()[0].placeholder().to_owned();
    for protocols in [&[HTTP_1][..], BOTH] {
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        assert_eq!(guest.get("/", ("x-large", &key.repeat(15))).await.0, StatusCode::OK);
        let status = guest.get("/", ("x-large", &key.repeat(16))).await.0;
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert_eq!(web.seen().len(), 2);
}

#[tokio::test]
async fn only_a_websocket_is_upgraded_to() {
    let (web, interceptor) = site(BOTH).await;
    let mut guest = Guest::connect(&web, &interceptor, &[HTTP_1]).await;
    for (upgrade, connection) in
        [("h2c", "upgrade, http2-settings"), ("websocket, h2c", "upgrade"), ("websocket", "close")]
    {
        let request = guest.request("/").header(CONNECTION, connection).header(UPGRADE, upgrade);
        let request = request.header("http2-settings", "AAMAAABkAAQAAP__").body(empty()).expect("a request");
        let response = guest.send(request).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        let [seen] = &web.seen()[..] else { panic!("one request") };
        assert_eq!((header(seen, "upgrade"), header(seen, "connection")), (vec![], vec![]), "{upgrade}");
        if connection == "close" {
            break;
        }
        text(response).await;
    }
    // A server that switches without being asked to is not believed.
    let mut guest = Guest::connect(&web, &interceptor, &[HTTP_1]).await;
    let status = guest.get("/upgrade-anyway", ("a", "b")).await.0;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn tls_for_another_name_or_for_none_is_broken_off() {
    let (web, interceptor) = site(BOTH).await;
    for name in ["other.example.com", "evil.example", "127.0.0.1"] {
        let (stream, served) = handshake(&web, &interceptor, name, BOTH).await;
        assert!(stream.is_err(), "{name}");
        let error = served.await.expect("served").expect_err("broken off");
        assert!(matches!(error, InterceptError::Name(_)), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_guest_that_speaks_no_http_is_broken_off() {
    let (web, interceptor) = site(BOTH).await;
    let (stream, served) = handshake(&web, &interceptor, NAME, &[b"smtp"]).await;
    assert!(stream.is_err());
    assert!(matches!(served.await.expect("served"), Err(InterceptError::Guest { .. })));
    assert_eq!(web.seen().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_nothing_is_not_waited_for() {
    let (web, interceptor) = site(BOTH).await;
    let upstream = TcpStream::connect(web.address).await.expect("connected");
    let (_near, far) = tokio::io::duplex(1024);
    let error = interceptor.serve(far, upstream, &name()).await.expect_err("no handshake");
    assert!(matches!(error, InterceptError::Deadline { whom: "the guest", .. }), "{error:?}");
}
