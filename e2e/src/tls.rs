//! TLS servers for tests, with an authority that nobody else trusts.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use crate::internet::Internet;

/// Requests that servers have had: their heads, and what of their bodies came with them.
pub type Requests = Arc<Mutex<Vec<String>>>;

/// An authority, whose certificate is in a file.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Other than those that it signs have: clients take one that is signed in its own name for its own authority.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("authority.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// The file with its certificate.
    pub fn path(&self) -> std::path::PathBuf {
        Path::join(self.dir.path(), "authority.pem")
    }

    /// A certificate of `names` and its key, in PEM.
    pub fn issue(&self, names: &[&str]) -> String {
        let (certificate, key) = self.sign(names);
        certificate.pem() + &key.serialize_pem()
    }

    fn sign(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Serves HTTPS on port 443 of every address there, to who asks for one of `names`, with `ok` for an answer.
    pub fn serve(&self, internet: &Internet, names: &[&str]) -> Requests {
        let (certificate, key) = self.sign(names);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config =
            config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let requests = Requests::default();
        let seen = requests.clone();
        internet.serve(443, move |stream| {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut request = String::new();
                // A head comes whole, and a short body soon after it.
                while !is_whole(&request) {
                    let mut part = vec![0; 64 * 1024];
                    match stream.read(&mut part).await? {
                        0 => return Ok(()),
                        length => request.push_str(&String::from_utf8_lossy(&part[..length])),
                    }
                }
                seen.lock().unwrap().push(request);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    .await?;
                stream.shutdown().await
            }
        });
        requests
    }
}

/// Whether a request has its body, of the length that it says.
fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length =
        length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value.trim());
    body.len() >= length.filter_map(|value| value.parse().ok()).next().unwrap_or(0)
}
