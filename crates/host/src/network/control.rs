//! What can be asked and changed of a sandbox's network while it is there.

use std::net::IpAddr;
use std::path::PathBuf;

use bouvet_net::{Counts, Network, Policy, Refused};

use crate::boxconfig::InvalidConfig;
use crate::boxconfig::network::rules;
use crate::boxes::{self, KeepError};

/// The network of one sandbox, for those who watch over it: what it may reach, and what it did.
///
/// ```no_run
/// # fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let Some(network) = sandbox.network() else { return Ok(()) };
/// network.set_policy(&["*.pypi.org:443".into()], &[])?;
/// for refused in network.refusals() {
///     println!("{:?} {:?}: {}", refused.flow, refused.name, refused.refusal);
/// }
/// println!("{} bytes sent", network.counts().sent_bytes);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct NetworkControl {
    network: Network,
    /// Where what is changed is kept, if the sandbox is.
    kept: Option<PathBuf>,
}

/// Why a sandbox's policy was not changed.
///
/// ```no_run
/// use bouvet_host::PolicyError;
///
/// # fn example(network: &bouvet_host::NetworkControl) -> Result<(), Box<dyn std::error::Error>> {
/// match network.set_policy(&["10.0.0.0/33".into()], &[]) {
///     Err(PolicyError::Invalid(error)) => println!("{}: {}", error.value, error.allowed),
///     changed => changed?,
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A rule is none.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// It could not be written, so that it would not have outlived the host.
    #[error(transparent)]
    Keep(#[from] KeepError),
}

impl NetworkControl {
    pub(crate) fn new(network: Network, kept: Option<PathBuf>) -> Self {
        Self { network, kept }
    }

    /// Sets the names by which others on its network find the sandbox.
    pub(crate) fn set_names(&self, names: Vec<bouvet_net::Name>) {
        self.network.set_names(names);
    }

    /// The sandbox's own addresses, of IPv4 and IPv6: of its interface, while it is up.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let addresses = self.network.addresses();
        [addresses.ipv4.0.into(), addresses.ipv6.0.into()]
    }

    /// What the sandbox may reach now, by its own rules: those of `allow`, and those of `deny`.
    pub fn policy(&self) -> Policy {
        self.network.policy()
    }

    /// What it may reach from now on. What it reaches already, and may not any more, is broken off. A persistent sandbox
    /// keeps it.
    pub fn set_policy(&self, allow: &[String], deny: &[String]) -> Result<(), PolicyError> {
        let policy = Policy { allow: rules("allow", allow)?, deny: rules("deny", deny)? };
        if let Some(dir) = &self.kept {
            boxes::keep_policy(dir, &policy)?;
        }
        self.network.set_policy(policy);
        Ok(())
    }

    /// How much there was of what.
    pub fn counts(&self) -> Counts {
        self.network.counts()
    }

    /// What was refused last, the oldest first.
    pub fn refusals(&self) -> Vec<Refused> {
        self.network.refusals()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use bouvet_net::dns::Resolver;
    use bouvet_net::{Limits, NetworkOptions, Sockets};

    use super::*;

    fn control(dir: &std::path::Path) -> NetworkControl {
        let network = Network::new(NetworkOptions {
            member: None,
            policy: Policy::default(),
            bound: None,
            limits: Limits::default(),
            sockets: Sockets::new(1),
            resolver: Resolver::of_servers(Vec::new()),
            interceptor: None,
        });
        NetworkControl::new(network, Some(dir.to_owned()))
    }

    /// Nothing may be in force that would not outlive the host.
    #[test]
    fn a_policy_that_cannot_be_kept_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(dir.path());
        control.set_policy(&["a.example".into()], &[]).unwrap();
        let (policy, kept) = (control.policy(), fs::read(dir.path().join("policy.json")).unwrap());
        boxes::tests::fill(dir.path(), "policy.json");
        match control.set_policy(&["b.example".into()], &[]) {
            Err(PolicyError::Keep(error)) => assert_eq!(error.source.kind(), ErrorKind::StorageFull),
            changed => panic!("{changed:?}"),
        }
        assert_eq!((control.policy(), fs::read(dir.path().join("policy.json")).unwrap()), (policy, kept));
        control.set_policy(&["b.example".into()], &[]).unwrap();
        assert_ne!(control.policy().allow, []);
    }
}
