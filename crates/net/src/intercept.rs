//! TLS to servers that secrets are for, ended here: the guest speaks with us, we speak with the server, and requests get
//! their secrets in between.
//!
//! Nothing is sent to a server that does not prove its name to this host. What a guest sends counts only as HTTP for
//! that name: each request names it, or is refused.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::StartHandshake;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};

use crate::authority::Authority;
pub use crate::authority::AuthorityError;
use crate::name::Name;
use crate::secret::{Domain, Secret};

mod proxy;
mod request;
mod tasks;
#[cfg(test)]
mod tests;

pub(crate) use self::proxy::Proxy;
pub(crate) use self::request::Server;

/// Each part of shaking hands: the guest's first words, the server's proof, the guest's agreement.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(15);
/// Secrets of one sandbox.
pub const MAX_SECRETS: usize = 64;
const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// Whom this host believes when a server proves its name: the authorities of its trust store, and others.
///
/// ```no_run
/// use bouvet_net::intercept::Trust;
///
/// let trust = Trust::load(&["/etc/ssl/company.pem".into()])?;
/// # Ok::<(), bouvet_net::intercept::TrustError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Trust(Arc<ClientConfig>);

/// Why it is not known whom to believe.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file of certificates could not be read.
    #[error("could not read certificates of authorities from `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file has a certificate that none can be.
    #[error("`{path}` has no usable certificates of authorities")]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why, unless it has none at all.
        source: Option<rustls::Error>,
    },
    /// Nobody.
    #[error("this host trusts no authorities: it has no CA certificates (Debian: ca-certificates)")]
    Nobody,
}

impl Trust {
    /// The authorities of the host's trust store, and those in the PEM files `more`.
    pub fn load(more: &[PathBuf]) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        // Trust stores have certificates that nobody can use any more.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for path in more {
            let failed = |source| TrustError::File { path: path.clone(), source };
            let unusable = |source| TrustError::Certificate { path: path.clone(), source };
            let before = roots.len();
            for certificate in rustls::pki_types::CertificateDer::pem_file_iter(path).map_err(failed)? {
                roots.add(certificate.map_err(failed)?).map_err(|error| unusable(Some(error)))?;
            }
            if roots.len() == before {
                return Err(unusable(None));
            }
        }
        if roots.is_empty() {
            return Err(TrustError::Nobody);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        // Ring has what the protocols need.
        let config = config.map_err(|_| TrustError::Nobody)?;
        Ok(Self(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
    }
}

/// The secrets of one sandbox, and what it takes to put them into requests.
///
/// ```no_run
/// # use bouvet_net::{intercept::{Interceptor, Trust}, secret::Secret};
/// # async fn example(guest: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
/// let secret = Secret::new("API_KEY", "hunter2".to_owned().into(), vec!["api.example.com".parse()?])?;
/// let interceptor = Interceptor::new(vec![secret], Trust::load(&[])?)?;
///
/// let name = "api.example.com".parse()?;
/// assert!(interceptor.is_for(&name));
/// let upstream = tokio::net::TcpStream::connect("198.51.100.7:443").await?;
/// interceptor.serve(guest, upstream, &name).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Interceptor {
    secrets: Vec<Secret>,
    authority: Authority,
    trust: Trust,
}

/// Why secrets cannot be put into requests.
#[derive(Debug, thiserror::Error)]
pub enum InterceptorError {
    /// More than are kept.
    #[error("{0} secrets, and a sandbox may have {MAX_SECRETS}")]
    TooMany(usize),
    /// Two have the name of one variable.
    #[error("two secrets are called `{0}`")]
    Twice(String),
    /// No certificates for the guest.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Why a connection was not served to its end.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The guest did not begin TLS, or broke it off.
    #[error("the guest's side of TLS for `{name}` failed")]
    Guest {
        /// The server's.
        name: Name,
        /// Why.
        source: io::Error,
    },
    /// It began TLS for another name than it was let through for.
    #[error("the guest began TLS for another name than `{0}`")]
    Name(Name),
    /// The server did not prove that it is `name`, or broke off. The guest was told so by HTTP.
    #[error("the server's side of TLS for `{name}` failed")]
    Server {
        /// The server's.
        name: Name,
        /// Why.
        source: io::Error,
    },
    /// One of them did not get on with it.
    #[error("no handshake with {whom} of `{name}` within {HANDSHAKE_DEADLINE:?}")]
    Deadline {
        /// The server's.
        name: Name,
        /// The guest or the server.
        whom: &'static str,
    },
    /// There is no certificate to show to the guest.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// HTTP was broken off, or was none.
    #[error("HTTP with `{name}` failed")]
    Http {
        /// The server's.
        name: Name,
        /// Why.
        source: hyper::Error,
    },
    /// What HTTP was upgraded to was broken off.
    #[error("what HTTP with `{name}` was upgraded to failed")]
    Upgraded {
        /// The server's.
        name: Name,
        /// Why.
        source: io::Error,
    },
}

impl Interceptor {
    /// One for `secrets`, that sends them to whom `trust` believes.
    pub fn new(secrets: Vec<Secret>, trust: Trust) -> Result<Self, InterceptorError> {
        if secrets.len() > MAX_SECRETS {
            return Err(InterceptorError::TooMany(secrets.len()));
        }
        let mut names: Vec<_> = secrets.iter().map(Secret::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(InterceptorError::Twice(twice[0].to_owned()));
        }
        let domains: Vec<Domain> = secrets.iter().flat_map(Secret::domains).cloned().collect();
        Ok(Self { authority: Authority::new(&domains)?, secrets, trust })
    }

    /// Its secrets, each with what the guest gets in its place.
    pub fn secrets(&self) -> &[Secret] {
        &self.secrets
    }

    /// The certificate that the guest has to trust, as PEM.
    pub fn certificate(&self) -> String {
        self.authority.certificate()
    }

    /// Whether a secret is for `name`: connections to it are to be served here.
    pub fn is_for(&self, name: &Name) -> bool {
        self.secrets.iter().any(|secret| secret.is_for(name))
    }

    /// Serves a connection of the guest that begins with TLS for `name`, over a connection to a server that has that
    /// name as far as DNS knows. Ends when either ends; dropping it closes both.
    ///
    /// A server that cannot prove its name is answered for by us: 502, and why. So are requests for other names: 421.
    pub async fn serve<G>(&self, guest: G, upstream: TcpStream, name: &Name) -> Result<(), InterceptError>
    where
        G: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |source| InterceptError::Guest { name: name.clone(), source };
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), guest);
        let start = in_time(name, "the guest", acceptor).await?.map_err(failed)?;
        let hello = start.client_hello();
        let claimed = hello.server_name().and_then(|name| name.parse::<Name>().ok());
        if claimed.as_ref() != Some(name) {
            return Err(InterceptError::Name(name.clone()));
        }
        let offered: Option<Vec<Vec<u8>>> = hello.alpn().map(|offered| {
            offered.filter(|protocol| [HTTP_2, HTTP_1].contains(protocol)).map(<[u8]>::to_vec).collect()
        });
        let leaf = self.authority.leaf(name)?;
        let port =
            upstream.peer_addr().map_err(|source| InterceptError::Server { name: name.clone(), source })?;
        let server = match self.connect(upstream, name, offered.as_deref()).await {
            Ok(server) => server,
            Err(error) => {
                let protocol = offered.map(|offered| {
                    if offered.iter().any(|protocol| protocol == HTTP_1) { HTTP_1 } else { HTTP_2 }
                });
                let guest = accept(start, leaf, protocol, name).await?;
                proxy::apologise(guest, &error).await;
                return Err(error);
            }
        };
        // Both sides speak the same: nothing has to be translated.
        let protocol = server.get_ref().1.alpn_protocol().unwrap_or(HTTP_1).to_vec();
        let guest = accept(start, leaf, offered.map(|_| protocol.as_slice()), name).await?;
        let bound = self.secrets.iter().filter(|secret| secret.is_for(name)).cloned().collect();
        let proxy = Proxy::new(Server::Named(name.clone(), port.port()), bound);
        let served = match protocol == HTTP_2 {
            true => proxy.serve_http2(guest, server).await,
            false => proxy.serve_http1(guest, server).await,
        };
        served.map_err(|error| error.with(name))
    }

    async fn connect(
        &self,
        upstream: TcpStream,
        name: &Name,
        offered: Option<&[Vec<u8>]>,
    ) -> Result<client::TlsStream<TcpStream>, InterceptError> {
        let failed = |source| InterceptError::Server { name: name.clone(), source };
        let server =
            ServerName::try_from(name.to_string()).map_err(|error| failed(io::Error::other(error)))?;
        let offered = offered.map_or_else(|| vec![HTTP_1.to_vec()], <[_]>::to_vec);
        let connector = TlsConnector::from(Arc::clone(&self.trust.0));
        let connect = connector.with_alpn(offered).connect(server, upstream);
        in_time(name, "the server", connect).await?.map_err(failed)
    }
}

/// Goes on with the guest's handshake, for the one `protocol` if it offered any.
async fn accept<G>(
    start: StartHandshake<G>,
    leaf: Arc<CertifiedKey>,
    protocol: Option<&[u8]>,
    name: &Name,
) -> Result<server::TlsStream<G>, InterceptError>
where
    G: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |source| InterceptError::Guest { name: name.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| failed(io::Error::other(error)))?;
    let leaf = Arc::new(SingleCertAndKey::from(leaf));
    let mut config = config.with_no_client_auth().with_cert_resolver(leaf);
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    in_time(name, "the guest", start.into_stream(Arc::new(config))).await?.map_err(failed)
}

async fn in_time<T>(
    name: &Name,
    whom: &'static str,
    handshake: impl Future<Output = T>,
) -> Result<T, InterceptError> {
    let late = |_| InterceptError::Deadline { name: name.clone(), whom };
    timeout(HANDSHAKE_DEADLINE, handshake).await.map_err(late)
}
