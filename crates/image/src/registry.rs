//! Pulling from a registry: three kinds of requests of the OCI distribution specification, within limits.
//!
//! A client of our own on top of `reqwest`, since those there are read documents of any size into memory, send
//! credentials to any realm that a registry names, and follow redirects from TLS to plain text.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use crate::credentials::{self, Credential};
use crate::digest::{Digest, shortened};
use crate::limits::MAX_DOCUMENT_BYTES;
use crate::manifest::{self, Descriptor};
use crate::reference::Remote;

mod auth;
mod download;
mod error;
mod names;
#[cfg(test)]
mod tests;

use auth::Authorizer;
use download::Download;
pub use error::RegistryError;

const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// A document from its request to its end, retries included; and a blob.
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(120);
const BLOB_DEADLINE: Duration = Duration::from_secs(2 * 3600);
/// Attempts one after the other in which a registry sends nothing: it does not, and whoever waits is to know.
const MAX_SILENT_ATTEMPTS: u32 = 2;
/// Attempts one after the other that bring nothing, and attempts in all for one blob.
const MAX_ATTEMPTS: u32 = 5;
const MAX_RESUMES: u32 = 50;
/// The wait after the first attempt; it doubles each time. And what a registry may ask for.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;

/// Which registries are spoken with, and how.
///
/// ```
/// use bouvet_image::{ImagesOptions, RegistryOptions};
///
/// let registry = RegistryOptions {
///     docker_config: Some("/root/.docker/config.json".into()),
///     root_certificates: vec!["/etc/ssl/registry.pem".into()],
///     ..RegistryOptions::default()
/// };
/// let options = ImagesOptions { registry, ..ImagesOptions::default() };
/// assert!(options.registry.insecure_registries.is_empty());
/// ```
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Docker's `config.json`, for credentials.
    pub docker_config: Option<PathBuf>,
    /// Where credential helpers are looked for before `PATH`.
    pub credential_helper_dirs: Vec<PathBuf>,
    /// Registries (`host` or `host:port`) that may be spoken with in plain text, beside those on this machine.
    pub insecure_registries: Vec<String>,
    /// PEM files with certificates of authorities that are trusted beside the system's.
    pub root_certificates: Vec<PathBuf>,
    /// How long a registry may send nothing. It is given two such attempts.
    pub stall_deadline: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            docker_config: None,
            credential_helper_dirs: Vec::new(),
            insecure_registries: Vec::new(),
            root_certificates: Vec::new(),
            stall_deadline: Duration::from_secs(30),
        }
    }
}

/// Speaks with registries.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    options: RegistryOptions,
}

impl Client {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        // Whoever else in this process chose another one chose it for us too.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut roots = Vec::new();
        for path in &options.root_certificates {
            let failed = |source| RegistryError::Certificates { path: path.clone(), source };
            let text = std::fs::read(path).map_err(failed)?;
            let certificates = reqwest::Certificate::from_pem_bundle(&text);
            roots.extend(certificates.map_err(|error| failed(io::Error::other(error)))?);
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("bouvet/", env!("CARGO_PKG_VERSION")))
            // The environment is not ours to read.
            .no_proxy()
            .dns_resolver(std::sync::Arc::new(names::System))
            .connect_timeout(CONNECT_DEADLINE)
            .read_timeout(options.stall_deadline)
            .redirect(reqwest::redirect::Policy::custom(redirect))
            .tls_certs_merge(roots)
            .build()
            .map_err(RegistryError::Client)?;
        Ok(Self { http, options })
    }

    /// Finds credentials for the registry of `remote`, and how it is spoken with.
    pub(crate) async fn session(&self, remote: &Remote) -> Result<Session<'_>, RegistryError> {
        let registry = &remote.registry;
        let options = &self.options;
        let credential =
            credentials::find(options.docker_config.as_deref(), &options.credential_helper_dirs, registry)
                .await;
        let credential =
            credential.map_err(|source| RegistryError::Credentials { registry: registry.clone(), source })?;
        self.session_as(remote, credential).await
    }

    async fn session_as(
        &self,
        remote: &Remote,
        credential: Credential,
    ) -> Result<Session<'_>, RegistryError> {
        let base = if self.may_be_plain(&remote.registry) {
            patiently(&remote.registry, || self.probe(remote)).await?
        } else {
            format!("https://{}/v2", remote.host())
        };
        Ok(Session {
            http: &self.http,
            remote: remote.clone(),
            base,
            authorizer: Authorizer::new(credential),
        })
    }

    pub(crate) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// Whether the registry of `remote` accepts a credential.
    pub(crate) async fn check(&self, remote: &Remote, credential: Credential) -> Result<(), RegistryError> {
        let session = self.session_as(remote, credential).await?;
        let url = format!("{}/", session.base);
        let registry = &remote.registry;
        let attempt = || async { session.request(&url, "*/*", 0, "").await.map(drop) };
        within(DOCUMENT_DEADLINE, registry, patiently(registry, attempt)).await
    }

    /// Plain text shows what is pulled to all on the way, so the way has to end on this machine.
    fn may_be_plain(&self, registry: &str) -> bool {
        let (host, _) =
            registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((registry, ""));
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let listed = |listed: &String| listed == registry || listed == host;
        host == "localhost"
            || address.is_ok_and(|address| address.is_loopback())
            || self.options.insecure_registries.iter().any(listed)
    }

    /// Whether a registry that may speak plain text does: it does if it does not speak TLS.
    async fn probe(&self, remote: &Remote) -> Result<String, RegistryError> {
        let secure = format!("https://{}/v2", remote.host());
        // Both together wait no longer than one request.
        let deadline = self.options.stall_deadline / 2;
        let error = match self.http.get(format!("{secure}/")).timeout(deadline).send().await {
            Ok(_) => return Ok(secure),
            Err(error) => error,
        };
        let plain = format!("http://{}/v2", remote.host());
        match self.http.get(format!("{plain}/")).timeout(deadline).send().await {
            // A server of TLS answers plain text with an error.
            Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => Ok(plain),
            _ => Err(RegistryError::connection(&remote.registry, error)),
        }
    }
}

/// Follows a registry to where it keeps its blobs, but never from TLS to plain text.
fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let began_plain = attempt.previous().first().is_some_and(|url| url.scheme() == "http");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error(format!("more than {MAX_REDIRECTS} redirects"))
    } else if attempt.url().scheme() == "https" || began_plain {
        attempt.follow()
    } else {
        attempt.error("a redirect to plain text")
    }
}

/// A registry while one image is pulled from it.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    http: &'a reqwest::Client,
    remote: Remote,
    /// The address of the interface, without a slash at the end.
    base: String,
    authorizer: Authorizer,
}

impl Session<'_> {
    /// The manifest or index called `wanted`: a tag, or a digest that it then has.
    pub(crate) async fn manifest(&self, wanted: &str) -> Result<Vec<u8>, RegistryError> {
        let bytes = self.document(&format!("manifests/{wanted}"), manifest::ACCEPTED).await?;
        match wanted.parse() {
            Ok(digest) => self.verified(bytes, digest),
            Err(_) => Ok(bytes),
        }
    }

    /// A blob that is small enough for memory.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let bytes = self.document(&format!("blobs/{digest}"), "*/*").await?;
        self.verified(bytes, digest.clone())
    }

    fn verified(&self, bytes: Vec<u8>, expected: Digest) -> Result<Vec<u8>, RegistryError> {
        let found = Digest::of(&bytes);
        if found == expected {
            return Ok(bytes);
        }
        Err(RegistryError::Digest { registry: self.registry(), expected, found: found.to_string() })
    }

    fn registry(&self) -> String {
        self.remote.registry.clone()
    }

    async fn document(&self, path: &str, accept: &str) -> Result<Vec<u8>, RegistryError> {
        let attempt = || async {
            let response = self.get(path, accept, 0).await?;
            read_bounded(response, &self.remote.registry).await
        };
        let registry = &self.remote.registry;
        within(DOCUMENT_DEADLINE, registry, patiently(registry, attempt)).await
    }

    /// Downloads a blob into `into`, an empty file, and verifies it. After a broken connection it goes on where that
    /// ended. `progress` is told how many bytes there are.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        into: std::fs::File,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let mut download = Download::new(self, blob, into, progress);
        within(BLOB_DEADLINE, &self.remote.registry, download.run()).await
    }

    /// One request, which is made again if credentials are asked for.
    async fn get(&self, path: &str, accept: &str, from: u64) -> Result<Response, RegistryError> {
        let url = format!("{}/{}/{path}", self.base, self.remote.repository);
        self.request(&url, accept, from, path).await
    }

    async fn request(
        &self,
        url: &str,
        accept: &str,
        from: u64,
        path: &str,
    ) -> Result<Response, RegistryError> {
        let send = |authorization: Option<HeaderValue>| {
            let mut request = self.http.get(url).header(ACCEPT, accept);
            if let Some(value) = authorization {
                request = request.header(AUTHORIZATION, value);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            async { request.send().await.map_err(|error| self.broken(error)) }
        };
        let mut response = send(self.authorizer.current()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.authorizer.answer(self, response.headers()).await?;
            response = send(authorization).await?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(path, response).await)
    }

    fn broken(&self, error: reqwest::Error) -> RegistryError {
        RegistryError::connection(&self.remote.registry, error)
    }

    async fn refusal(&self, path: &str, response: Response) -> RegistryError {
        let (status, headers) = (response.status(), response.headers().clone());
        let registry = self.registry();
        let what = format!("{}/{path}", self.remote.repository);
        let message = match read_bounded(response, &registry).await {
            Ok(body) => message(&body),
            Err(_) => String::new(),
        };
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied { registry, what, message }
            }
            _ => {
                let retry_after = retry_after(status, &headers);
                RegistryError::Status { registry, status: status.as_u16(), message, retry_after }
            }
        }
    }
}

/// Makes attempts until one succeeds, fails for good, or enough have failed.
async fn patiently<T, F: Future<Output = Result<T, RegistryError>>>(
    registry: &str,
    attempt: impl Fn() -> F,
) -> Result<T, RegistryError> {
    let mut failed = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failed += 1;
        let Some(wait) = error.transient().filter(|_| failed < error.max_attempts()) else {
            return Err(error);
        };
        tracing::debug!(%registry, %error, "asking again");
        tokio::time::sleep(wait.max(FIRST_BACKOFF * 2_u32.pow(failed - 1))).await;
    }
}

async fn within<T>(
    deadline: Duration,
    registry: &str,
    work: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let late = |_| RegistryError::Deadline { registry: registry.to_owned(), deadline };
    tokio::time::timeout(deadline, work).await.map_err(late)?
}

async fn read_bounded(mut response: Response, registry: &str) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    let broken = |error: reqwest::Error| RegistryError::connection(registry, error);
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if (body.len() + chunk.len()) as u64 > MAX_DOCUMENT_BYTES {
            return Err(RegistryError::TooLarge {
                registry: registry.to_owned(),
                max_bytes: MAX_DOCUMENT_BYTES,
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What the specification lets a registry say about an error. Other bodies are left out: they may come from whatever
/// the name led to.
fn message(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["errors"][0];
    let words = [&error["code"], &error["message"]].map(|word| word.as_str().unwrap_or_default());
    let message = words.join(" ");
    if message.trim().is_empty() { "it does not say why".to_owned() } else { shortened(message.trim()) }
}

fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let busy = matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504);
    let asked =
        headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    busy.then(|| asked.unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// Adds to the query of an address.
fn with_query(mut url: Url, pairs: &[(&str, &str)]) -> Url {
    url.query_pairs_mut().extend_pairs(pairs);
    url
}
