//! The client against a registry that is scripted: what it is asked, and whatever it answers.

use std::io::Read as _;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

type Answer = dyn Fn(&str, usize) -> Vec<u8> + Send + Sync;

/// A registry on a port of its own: each connection is one request, which `answer` gets with its number.
struct Scripted {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    async fn new(answer: impl Fn(&str, usize) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::stalling(answer, |_| false).await
    }

    /// Leaves the connections open whose requests `stalls` picks: what was answered may be a part, or nothing.
    async fn stalling(
        answer: impl Fn(&str, usize) -> Vec<u8> + Send + Sync + 'static,
        stalls: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        tokio::spawn(serve(listener, Arc::clone(&asked), Arc::new(answer), Arc::new(stalls)));
        Self { address, asked }
    }

    fn remote(&self) -> Remote {
        let reference: crate::Reference = format!("{}/a/b:v1", self.address).parse().unwrap();
        match reference.source() {
            crate::reference::Source::Registry(remote) => remote.clone(),
            _ => panic!("it is in a registry"),
        }
    }

    /// The first lines of the requests, but for those by which the protocol is found out.
    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let lines = asked.iter().map(|request| request.lines().next().unwrap_or_default().to_owned());
        lines.filter(|line| line != "GET /v2/ HTTP/1.1").collect()
    }
}

async fn serve(
    listener: TcpListener,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<Answer>,
    stalls: Arc<dyn Fn(&str) -> bool + Send + Sync>,
) {
    let mut open = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                // No text: somebody tries TLS.
                Ok(0x16) | Err(_) => break,
                Ok(byte) => request.push(byte),
            }
        }
        if request.is_empty() {
            continue;
        }
        let request = String::from_utf8(request).unwrap();
        let number = asked.lock().unwrap().iter().filter(|asked| !asked.starts_with("GET /v2/ ")).count();
        asked.lock().unwrap().push(request.clone());
        let response = if request.starts_with("GET /v2/ ") {
            respond("200 OK", &[], b"")
        } else {
            answer(&request, number)
        };
        stream.write_all(&response).await.ok();
        if stalls(&request) {
            open.push(stream);
        }
    }
}

fn respond(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn client() -> Client {
    Client::new(RegistryOptions::default()).unwrap()
}

async fn manifest(registry: &Scripted) -> Result<Vec<u8>, RegistryError> {
    let client = client();
    let session = client.session(&registry.remote()).await?;
    session.manifest("v1").await
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    let text = format!(r#"{{"digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len());
    serde_json::from_str(&text).unwrap()
}

async fn download(registry: &Scripted, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let client = client();
    let session = client.session(&registry.remote()).await?;
    let file = tempfile::NamedTempFile::new().unwrap();
    session.blob(blob, file.reopen().unwrap(), &|_| ()).await?;
    let mut bytes = Vec::new();
    file.reopen().unwrap().read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

#[tokio::test]
async fn busy_registries_are_asked_again() {
    let registry = Scripted::new(|_, number| match number {
        0 => respond("503 Service Unavailable", &[], b""),
        1 => respond("429 Too Many Requests", &["retry-after: 0"], b""),
        2 => Vec::new(),
        _ => respond("200 OK", &[], b"{}"),
    })
    .await;
    assert_eq!(manifest(&registry).await.unwrap(), b"{}");
    assert_eq!(registry.asked(), ["GET /v2/a/b/manifests/v1 HTTP/1.1"; 4]);
}

#[tokio::test]
async fn registries_that_stay_busy_are_given_up() {
    let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    let registry = Scripted::new(|_, _| respond("429 Too Many Requests", &[], body)).await;
    let error = manifest(&registry).await.unwrap_err();
    assert!(error.to_string().ends_with("answered 429: TOOMANYREQUESTS slow down"), "{error}");
    assert_eq!(registry.asked().len(), MAX_ATTEMPTS as usize);
}

#[tokio::test]
async fn what_will_not_change_is_asked_once() {
    let answers = [
        ("404 Not Found", "does not have `a/b/manifests/v1`"),
        ("403 Forbidden", "does not let us read"),
        ("418 I'm a teapot", "answered 418: it does not say why"),
    ];
    for (status, words) in answers {
        let registry = Scripted::new(move |_, _| respond(status, &[], b"<secret page>")).await;
        let error = manifest(&registry).await.unwrap_err();
        assert!(error.to_string().contains(words) && !error.to_string().contains("secret"), "{error}");
        assert_eq!(registry.asked().len(), 1);
    }
}

#[tokio::test]
async fn documents_are_limited_at_the_limit() {
    let limit = usize::try_from(MAX_DOCUMENT_BYTES).unwrap();
    for (len, fits) in [(limit, true), (limit + 1, false)] {
        let registry = Scripted::new(move |_, _| respond("200 OK", &[], &vec![b' '; len])).await;
        match manifest(&registry).await {
            Ok(body) => assert!(fits && body.len() == limit),
            Err(error) => assert!(!fits && matches!(error, RegistryError::TooLarge { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_document_that_has_another_digest_is_refused() {
    let registry = Scripted::new(|_, _| respond("200 OK", &[], b"{}")).await;
    let client = client();
    let session = client.session(&registry.remote()).await.unwrap();
    assert!(session.manifest(&Digest::of(b"{}").to_string()).await.is_ok());
    let error = session.manifest(&Digest::of(b"other").to_string()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }));
}

/// What a broken connection leaves of a response.
fn cut(response: &[u8], missing: usize) -> Vec<u8> {
    response[..response.len() - missing].to_vec()
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_ended() {
    let blob: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let sent = blob.clone();
    let registry = Scripted::new(move |request, number| {
        let from = request
            .lines()
            .find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = from.unwrap_or(0);
        let range = format!("content-range: bytes {from}-{}/{}", sent.len() - 1, sent.len());
        match number {
            0 => cut(&respond("200 OK", &[], &sent), 500_000),
            1 => cut(&respond("206 Partial Content", &[&range], &sent[from..]), 100_000),
            _ => respond("206 Partial Content", &[&range], &sent[from..]),
        }
    })
    .await;
    assert!(download(&registry, &descriptor(&blob)).await.unwrap() == blob);
    assert_eq!(registry.asked().len(), 3);
}

#[tokio::test]
async fn a_registry_without_parts_is_read_from_the_start() {
    let blob = vec![7; 300_000];
    let sent = blob.clone();
    let registry = Scripted::new(move |_, number| {
        let whole = respond("200 OK", &[], &sent);
        if number == 0 { cut(&whole, 100_000) } else { whole }
    })
    .await;
    assert!(download(&registry, &descriptor(&blob)).await.unwrap() == blob);
}

#[tokio::test]
async fn blobs_that_are_not_what_was_asked_for_are_refused() {
    let wanted = b"what was asked for";
    for sent in [&b"what came instead!"[..], b"short", b"what was asked for, and more"] {
        let registry = Scripted::new(move |_, _| respond("200 OK", &[], sent)).await;
        let error = download(&registry, &descriptor(wanted)).await.unwrap_err();
        assert!(
            matches!(&error, RegistryError::Digest { expected, .. } if *expected == Digest::of(wanted)),
            "{error}"
        );
        assert_eq!(registry.asked().len(), 1);
    }
}

/// Something that accepts connections, which it keeps, and never answers.
async fn silent() -> (Remote, Arc<Mutex<Vec<tokio::net::TcpStream>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference: crate::Reference = format!("{}/a", listener.local_addr().unwrap()).parse().unwrap();
    let crate::reference::Source::Registry(remote) = reference.source() else { panic!("a registry") };
    let open: Arc<Mutex<Vec<_>>> = Arc::default();
    let kept = Arc::clone(&open);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            kept.lock().unwrap().push(stream);
        }
    });
    (remote.clone(), open)
}

fn impatient() -> Client {
    let options = RegistryOptions { stall_deadline: Duration::from_secs(1), ..RegistryOptions::default() };
    Client::new(options).unwrap()
}

#[tokio::test]
async fn silent_registry_is_given_up_after_two_attempts() {
    let (remote, open) = silent().await;
    let started = std::time::Instant::now();
    let error = impatient().session(&remote).await.unwrap_err();
    assert!(matches!(error, RegistryError::Silent { .. }), "{error}");
    // TLS and plain text, twice.
    assert_eq!(open.lock().unwrap().len(), 4);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn documents_and_tokens_that_never_come_are_given_up() {
    for path in ["/v2/a/b/manifests/v1", "/token"] {
        let is_silent = move |request: &str| request.starts_with(&format!("GET {path}"));
        let answer = move |request: &str, _| {
            let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
            let realm = format!("www-authenticate: Bearer realm=\"http://{host}/token\"");
            if is_silent(request) { Vec::new() } else { respond("401 Unauthorized", &[&realm], b"") }
        };
        let registry = Scripted::stalling(answer, is_silent).await;
        let client = impatient();
        let session = client.session(&registry.remote()).await.unwrap();
        let error = session.manifest("v1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Silent { .. }), "{path}: {error}");
        let asked = registry.asked().iter().filter(|line| line.contains(path)).count();
        assert_eq!(asked, 2, "{path}");
    }
}

#[tokio::test]
async fn blob_without_progress_is_given_up() {
    let blob = vec![7; 100_000];
    let sent = respond("200 OK", &[], &blob);
    // The first attempt brings a part, and each later one the same part: only the first is progress.
    let registry = Scripted::stalling(move |_, _| sent[..50_000].to_vec(), |_| true).await;
    let client = impatient();
    let session = client.session(&registry.remote()).await.unwrap();
    let into = tempfile::tempfile().unwrap();
    let error = session.blob(&descriptor(&blob), into, &|_| ()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Silent { .. }), "{error}");
}

#[tokio::test]
async fn tokens_are_had_where_the_registry_says() {
    let registry = Scripted::new(|request, _| {
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        if request.starts_with("GET /token?service=s&scope=repository%3Aa%2Fb%3Apull ") {
            return respond("200 OK", &[], br#"{"token":"t0ken"}"#);
        }
        if request.contains("authorization: Bearer t0ken") {
            return respond("200 OK", &[], b"{}");
        }
        let challenge = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"");
        respond("401 Unauthorized", &[&challenge], b"")
    })
    .await;
    assert_eq!(manifest(&registry).await.unwrap(), b"{}");
    assert_eq!(registry.asked().len(), 3);
}

#[tokio::test]
async fn refresh_tokens_are_exchanged_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Scripted::new(|request, _| {
        if request.starts_with("POST /token ") {
            return respond("200 OK", &[], br#"{"access_token":"t0ken"}"#);
        }
        if request.contains("authorization: Bearer t0ken") {
            return respond("200 OK", &[], b"{}");
        }
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        let challenge = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"");
        respond("401 Unauthorized", &[&challenge], b"")
    })
    .await;
    let config = dir.path().join("config.json");
    let auths = format!(r#"{{"auths":{{"{}":{{"identitytoken":"hunter2"}}}}}}"#, registry.address);
    std::fs::write(&config, auths).unwrap();
    let options = RegistryOptions { docker_config: Some(config), ..RegistryOptions::default() };
    let client = Client::new(options).unwrap();
    let session = client.session(&registry.remote()).await.unwrap();
    assert_eq!(session.manifest("v1").await.unwrap(), b"{}");
    let shown = format!("{session:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("t0ken"), "{shown}");
}

#[tokio::test]
async fn credentials_are_not_taken_to_just_any_realm() {
    for challenge in ["Bearer realm=\"not an address\"", "Negotiate", "Bearer service=\"s\""] {
        let header = format!("www-authenticate: {challenge}");
        let registry = Scripted::new(move |_, _| respond("401 Unauthorized", &[&header], b"")).await;
        let error = manifest(&registry).await.unwrap_err();
        assert!(matches!(error, RegistryError::Challenge { .. }), "{error}");
    }
    // A registry that is spoken with over TLS cannot send us to plain text.
    let client = client();
    let session = Session {
        http: &client.http,
        remote: Scripted::new(|_, _| Vec::new()).await.remote(),
        base: "https://registry.example/v2".to_owned(),
        authorizer: Authorizer::new(credentials::Credential::Anonymous),
    };
    let mut headers = HeaderMap::new();
    let challenge = HeaderValue::from_static("Bearer realm=\"http://127.0.0.1:1/token\"");
    headers.insert(reqwest::header::WWW_AUTHENTICATE, challenge);
    let error = session.authorizer.answer(&session, &headers).await.unwrap_err();
    assert!(matches!(error, RegistryError::Challenge { .. }), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_a_few_times() {
    let registry = Scripted::new(|request, number| {
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        let elsewhere = format!("location: http://{host}/elsewhere/{number}");
        if number < 3 {
            respond("307 Temporary Redirect", &[&elsewhere], b"")
        } else {
            respond("200 OK", &[], b"{}")
        }
    })
    .await;
    assert_eq!(manifest(&registry).await.unwrap(), b"{}");
    let registry =
        Scripted::new(|_, _| respond("307 Temporary Redirect", &["location: /v2/round"], b"")).await;
    assert!(matches!(manifest(&registry).await, Err(RegistryError::Connection { .. })));
    assert_eq!(registry.asked().len(), MAX_REDIRECTS + 1, "and not tried again");
}

#[test]
fn plain_text_is_for_this_machine_and_what_is_listed() {
    let options = RegistryOptions {
        insecure_registries: vec!["lan.example".to_owned(), "10.0.0.1:5000".to_owned()],
        ..RegistryOptions::default()
    };
    let client = Client::new(options).unwrap();
    for plain in [
        "localhost",
        "localhost:5000",
        "127.0.0.1:5000",
        "127.9.9.9",
        "[::1]:5000",
        "lan.example:80",
        "10.0.0.1:5000",
    ] {
        assert!(client.may_be_plain(plain), "{plain}");
    }
    for other in [
        "docker.io",
        "10.0.0.1",
        "10.0.0.1:5001",
        "127.0.0.1.evil.example",
        "localhost.example:5000",
        "[::2]:5000",
        "128.0.0.1",
    ] {
        assert!(!client.may_be_plain(other), "{other}");
    }
}

#[test]
fn certificates_that_are_none_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for path in [file.path().to_owned(), PathBuf::from("/nonexistent.pem")] {
        let options = RegistryOptions { root_certificates: vec![path], ..RegistryOptions::default() };
        assert!(matches!(
            Client::new(options),
            Err(RegistryError::Certificates { .. } | RegistryError::Client(_))
        ));
    }
}

#[tokio::test]
async fn unknown_names_are_reported_once_in_words() {
    let reference: crate::Reference = "registry.invalid/a:v1".parse().unwrap();
    let crate::reference::Source::Registry(remote) = reference.source() else {
        panic!("it is in a registry")
    };
    let client = client();
    let session = client.session(remote).await.unwrap();
    let error = session.manifest("v1").await.unwrap_err();
    assert!(matches!(&error, RegistryError::NoName(name) if name == "registry.invalid"), "{error:?}");
    assert_eq!(error.to_string(), "no such name: registry.invalid (DNS). Is this machine connected?");
    assert!(std::error::Error::source(&error).is_none());
}
