//! The network of a sandbox: what its description says of it, made, and joined to its guest.

pub(crate) mod attach;
mod control;
pub(crate) mod named;

pub use self::control::{NetworkControl, PolicyError};

use std::path::PathBuf;

use bouvet_net::dns::Resolver;
use bouvet_net::intercept::{Interceptor, InterceptorError, Trust, TrustError};
use bouvet_net::{Name, Network, NetworkOptions, Sockets};

pub use self::named::NamedNetworkError;
use self::named::Networks;
use crate::boxconfig::network::NetworkPlan;
use crate::boxconfig::{BoxConfig, InvalidConfig, SecretConfig};
use crate::sandbox::SandboxId;

/// Whom the host asks for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a sandbox could not have a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It is not known whom to believe, when a server is to get a secret.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Its secrets cannot be kept.
    #[error(transparent)]
    Secrets(#[from] InterceptorError),
    /// One of them is none.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// It cannot be on the named network that it is to be on.
    #[error(transparent)]
    Named(#[from] NamedNetworkError),
}

/// Makes what `plan` says, on one of `networks` if it is to be. Servers that get secrets are to prove their names to the
/// host's authorities, or to one of those in the files `authorities`. It has its `sockets` with all that have the same.
pub(crate) fn make(
    plan: &NetworkPlan,
    authorities: &[PathBuf],
    networks: &Networks,
    sockets: &Sockets,
) -> Result<Network, NetworkError> {
    let resolver = match plan.name_servers.is_empty() {
        true => Resolver::of_file(RESOLV_CONF),
        false => Resolver::of_servers(plan.name_servers.clone()),
    };
    let secrets: Vec<_> = plan.secrets.iter().map(SecretConfig::make).collect::<Result<_, _>>()?;
    let interceptor = match secrets.is_empty() {
        true => None,
        false => Some(Interceptor::new(secrets, Trust::load(authorities)?)?),
    };
    let member = plan.shared.as_ref().map(|name| networks.join(name)).transpose()?;
    Ok(Network::new(NetworkOptions {
        member,
        policy: plan.policy.clone(),
        bound: plan.bound.clone(),
        limits: plan.limits,
        sockets: sockets.clone(),
        resolver,
        interceptor,
    }))
}

/// Where most programs find the certificates that they trust, once the guest was told of the sandbox's authority.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Variables by which programs are told so that bring certificates of their own: OpenSSL's, curl's, Python's, pip's,
/// Node.js's, git's, Cargo's and the AWS tools'.
const TRUSTING: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
];

/// What programs are told of `network` by variables: what stands for secrets, and whom to trust then.
pub(crate) fn variables(network: &Network) -> Vec<(String, String)> {
    let placeholders = network.placeholders();
    let trusting = TRUSTING.iter().filter(|_| !placeholders.is_empty());
    trusting.map(|name| ((*name).to_owned(), BUNDLE.to_owned())).chain(placeholders.iter().cloned()).collect()
}

/// What others on its network may call the sandbox `id`: its name, its whole id, and the part of it that people see.
pub(crate) fn names(config: &BoxConfig, id: SandboxId) -> Vec<Name> {
    // What is no name of a host is left out.
    [config.name.clone(), id.to_string(), id.short()].iter().filter_map(|text| text.parse().ok()).collect()
}
