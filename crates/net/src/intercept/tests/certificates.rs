//! Who proves what to whom.

use super::*;
use std::time::SystemTime;

/// What a guest learns of a server whose proof is not believed.
async fn refused(config: ServerConfig, interceptor: &Arc<Interceptor>, protocols: &[&[u8]]) -> String {
    let web = Web::start(config).await;
    let mut guest = Guest::connect(&web, interceptor, protocols).await;
    let key = interceptor.secrets()[0].placeholder().to_owned();
    let (status, text) = guest.get("/", ("x-key", &key)).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(!text.contains(VALUE) && text.contains(NAME), "{text}");
    drop(guest.client);
    let error = guest.served.await.expect("served").expect_err("no proof");
    assert!(matches!(error, InterceptError::Server { .. }), "{error:?}");
    assert_eq!(web.seen().len(), 0, "nothing was sent");
    text
}

#[tokio::test]
async fn nothing_goes_to_a_server_that_cannot_prove_its_name() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let interceptor = interceptor(&ca);
    let past: fn(&mut CertificateParams) = |params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    };
    for protocols in [&[][..], &[HTTP_1], BOTH, &[HTTP_2]] {
        let unknown = refused(stranger.server(NAME, |_| {}, BOTH), &interceptor, protocols).await;
        assert!(unknown.contains("UnknownIssuer"), "{unknown}");
        let other = refused(ca.server("other.example.com", |_| {}, BOTH), &interceptor, protocols).await;
        assert!(other.contains("not valid for name"), "{other}");
        let expired = refused(ca.server(NAME, past, BOTH), &interceptor, protocols).await;
        assert!(expired.contains("expired"), "{expired}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_is_answered_for() {
    let ca = Ca::new();
    let interceptor = interceptor(&ca);
    // It speaks HTTP/2 only, and the guest does not.
    let text = refused(ca.server(NAME, |_| {}, &[HTTP_2]), &interceptor, &[HTTP_1]).await;
    assert!(text.contains("NoApplicationProtocol"), "{text}");
}

#[test]
fn files_of_authorities_are_read_whole_or_refused() {
    let missing = Trust::load(&["/nonexistent/ca.pem".into()]);
    assert!(matches!(missing, Err(TrustError::File { .. })), "{missing:?}");
    for wrong in ["", "no PEM\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(wrong.as_bytes()).expect("written");
        let read = Trust::load(&[file.path().to_owned()]);
        assert!(matches!(read, Err(TrustError::Certificate { .. })), "{read:?}");
    }
}
