//! Guests with a real TLS client, servers with a real TLS server, and what is between them.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::NamedTempFile;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::*;

mod bodies;
mod certificates;
mod refusals;
mod secrets;

const NAME: &str = "api.example.com";
const VALUE: &str = "hunter2-and-more";
const BOTH: &[&[u8]] = &[HTTP_2, HTTP_1];

type Body = BoxBody<Bytes, hyper::Error>;

/// Whom servers on the internet have their certificates from.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: NamedTempFile,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Of one name each: a stranger is told by his name.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("Authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(issuer.pem().as_bytes()).expect("written");
        Self { issuer, file }
    }

    fn trust(&self) -> Trust {
        Trust::load(&[self.file.path().to_owned()]).expect("roots")
    }

    /// The configuration of a server with a certificate for `name` that is made as `change` says.
    fn server(&self, name: &str, change: fn(&mut CertificateParams), protocols: &[&[u8]]) -> ServerConfig {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

/// A server that tells what it saw.
struct Web {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request<()>>>>,
    /// What it could send of an endless body.
    sent_bytes: Arc<AtomicUsize>,
    /// Connections that have ended.
    ended: Arc<tokio::sync::Notify>,
    _tasks: JoinSet<()>,
}

impl Web {
    async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, sent_bytes) = (Arc::<Mutex<_>>::default(), Arc::<AtomicUsize>::default());
        let ended = Arc::<tokio::sync::Notify>::default();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut tasks = JoinSet::new();
        let (log, counter, end) = (Arc::clone(&seen), Arc::clone(&sent_bytes), Arc::clone(&ended));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, log, counter, end) =
                    (acceptor.clone(), Arc::clone(&log), Arc::clone(&counter), Arc::clone(&end));
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let service = service_fn(move |request| {
                            answer(request, Arc::clone(&log), Arc::clone(&counter))
                        });
                        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        builder.http2().max_header_list_size(256 * 1024);
                        builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await.ok();
                    }
                    end.notify_one();
                });
            }
        });
        Self { address, seen, sent_bytes, ended, _tasks: tasks }
    }

    fn seen(&self) -> Vec<Request<()>> {
        self.seen.lock().unwrap().drain(..).collect()
    }
}

async fn answer(
    mut request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Request<()>>>>,
    sent_bytes: Arc<AtomicUsize>,
) -> Result<Response<Body>, Infallible> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    seen.lock().unwrap().push(Request::from_parts(parts, ()));
    if path == "/stall" {
        // The body is neither read nor let go.
        let _body = body;
        std::future::pending::<()>().await;
        unreachable!();
    }
    let mut response = Response::new(match path.as_str() {
        "/echo" => body.boxed(),
        "/endless" => endless(sent_bytes),
        _ => Full::from("hello").map_err(|never| match never {}).boxed(),
    });
    match path.as_str() {
        "/upgrade" | "/upgrade-anyway" => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.expect("upgraded")));
                tokio::io::copy(&mut from, &mut to).await.ok();
                tokio::io::AsyncWriteExt::shutdown(&mut to).await.ok();
            });
        }
        "/close" => drop(response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"))),
        _ => {}
    }
    Ok(response)
}

fn endless(sent_bytes: Arc<AtomicUsize>) -> Body {
    let piece = Bytes::from(vec![b'x'; 16 * 1024]);
    let pieces = tokio_stream::iter(std::iter::repeat_with(move || {
        sent_bytes.fetch_add(piece.len(), Ordering::Relaxed);
        Ok(Frame::data(piece.clone()))
    }));
    BodyExt::boxed(StreamBody::new(pieces))
}

fn name() -> Name {
    NAME.parse().expect("a name")
}

fn secret(variable: &str, value: &str, domain: &str) -> Secret {
    Secret::new(variable, value.to_owned().into(), vec![domain.parse().expect("a domain")]).expect("a secret")
}

/// Two secrets: one for the server's name, one for another.
fn interceptor(ca: &Ca) -> Arc<Interceptor> {
    let secrets = vec![secret("KEY", VALUE, NAME), secret("OTHER", "other-value", "other.example.com")];
    Arc::new(Interceptor::new(secrets, ca.trust()).expect("an interceptor"))
}

/// A server with a good certificate, and what its clients' secrets go through.
async fn site(protocols: &[&[u8]]) -> (Web, Arc<Interceptor>) {
    let ca = Ca::new();
    let web = Web::start(ca.server(NAME, |_| {}, protocols)).await;
    (web, interceptor(&ca))
}

/// A client in a guest.
enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

/// A connection of a guest, and how the serving of it ends.
struct Guest {
    client: Client,
    served: JoinHandle<Result<(), InterceptError>>,
}

type Handshaken = (io::Result<client::TlsStream<DuplexStream>>, JoinHandle<Result<(), InterceptError>>);

/// Begins TLS for `name`, as a guest that trusts the sandbox's authority and nobody else.
async fn handshake(web: &Web, interceptor: &Arc<Interceptor>, name: &str, protocols: &[&[u8]]) -> Handshaken {
    let upstream = TcpStream::connect(web.address).await.expect("connected");
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serving = Arc::clone(interceptor);
    let served = tokio::spawn(async move { serving.serve(far, upstream, &self::name()).await });
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(interceptor.certificate().as_bytes()).expect("PEM");
    roots.add(certificate).expect("an authority");
    let provider = rustls::crypto::ring::default_provider().into();
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    (TlsConnector::from(Arc::new(config)).connect(name, near).await, served)
}

impl Guest {
    async fn connect(web: &Web, interceptor: &Arc<Interceptor>, protocols: &[&[u8]]) -> Self {
        let (stream, served) = handshake(web, interceptor, NAME, protocols).await;
        let stream = stream.expect("TLS");
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
        let stream = TokioIo::new(stream);
        let client = if is_http2 {
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (client, connection) = builder.handshake(stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            Client::Http2(client)
        } else {
            let builder = hyper::client::conn::http1::Builder::new();
            let (client, connection) = builder.handshake(stream).await.expect("HTTP/1.1");
            tokio::spawn(connection.with_upgrades());
            Client::Http1(client)
        };
        Self { client, served }
    }

    fn is_http2(&self) -> bool {
        matches!(self.client, Client::Http2(_))
    }

    async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match &mut self.client {
            Client::Http1(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
            Client::Http2(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
        }
    }

    /// A request for `path` of the server, as this connection's HTTP has it.
    fn request(&self, path: &str) -> hyper::http::request::Builder {
        match self.client {
            Client::Http1(_) => Request::builder().uri(path).header(HOST, NAME),
            Client::Http2(_) => {
                Request::builder().version(Version::HTTP_2).uri(format!("https://{NAME}{path}"))
            }
        }
    }

    async fn get(&mut self, path: &str, header: (&str, &str)) -> (StatusCode, String) {
        let request = self.request(path).header(header.0, header.1).body(empty()).expect("a request");
        text(self.send(request).await.expect("a response")).await
    }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::from(bytes.into()).map_err(|never| match never {}).boxed()
}

async fn text(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

fn header<'a>(request: &'a Request<()>, name: &str) -> Vec<&'a str> {
    request.headers().get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
}
