//! The network of a sandbox: what its description says of it, made, and joined to its guest.

pub(crate) mod attach;
mod control;
pub(crate) mod named;

pub use self::control::{NetworkControl, PolicyError};

use std::path::{Path, PathBuf};

use bouvet_net::dns::{ClientSettings, Resolver};
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

/// Docker's: on a network of several, a name without dots is a neighbour's before it is completed with a domain.
const SHARED_OPTION: &str = "ndots:0";

/// Settings of the sandbox's `resolv.conf` other than its servers: the host's present ones, where `plan` has none.
pub(crate) async fn client_settings(plan: &NetworkPlan) -> ClientSettings {
    client_settings_of(plan, Path::new(RESOLV_CONF)).await
}

async fn client_settings_of(plan: &NetworkPlan, file: &Path) -> ClientSettings {
    let of_host = ClientSettings::of_file(file).await;
    let mut settings = ClientSettings {
        search: plan.search.clone().unwrap_or(of_host.search),
        options: plan.dns_options.clone().unwrap_or(of_host.options),
    };
    if plan.shared.is_some() {
        settings.add_option(SHARED_OPTION);
    }
    settings
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxconfig::NetworkMode;

    #[tokio::test]
    async fn search_domains_and_options_of_the_host_arrive() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "search corp.example\nnameserver 10.0.0.1\noptions timeout:9\n").unwrap();
        let settings = async |config: BoxConfig| {
            let plan = config.plan().unwrap().network.unwrap();
            let ClientSettings { search, options } = client_settings_of(&plan, file.path()).await;
            (search.join(" "), options.join(" "))
        };
        let tsi = BoxConfig { network: NetworkMode::Tsi, ..BoxConfig::default() };
        let of = |search: &str, options: &str| (search.to_owned(), options.to_owned());
        assert_eq!(settings(tsi.clone()).await, of("corp.example", "timeout:9"));
        let own = BoxConfig { dns_search: vec![".".into()], ..tsi.clone() };
        assert_eq!(settings(own).await, of("", "timeout:9"));
        let own = BoxConfig { dns_option: vec!["ndots:3".into()], ..tsi.clone() };
        assert_eq!(settings(own.clone()).await, of("corp.example", "ndots:3"));
        let network = NetworkMode::Bridge { network: "shop".into() };
        let shared = BoxConfig { network: network.clone(), ..tsi };
        assert_eq!(settings(shared).await, of("corp.example", "timeout:9 ndots:0"));
        assert_eq!(settings(BoxConfig { network, ..own }).await, of("corp.example", "ndots:3"));
    }
}
