//! What one sandbox may reach. Pure.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::address::Class;
use crate::flow::Protocol;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::resolvers;
use crate::rule::{Rule, Target};

/// Rules of one list.
pub const MAX_RULES: usize = 512;

/// The ports of protocols that are closed unless a rule says them.
const HTTPS: u16 = 443;
const HTTP: u16 = 80;

/// What one sandbox may reach: see `docs/NETWORK.md`. Without rules, the public internet.
///
/// ```
/// use bouvet_net::Policy;
///
/// let policy: Policy = serde_json::from_str(r#"{"allow": ["*.pypi.org:443"], "deny": ["evil.pypi.org"]}"#)?;
/// assert!(policy.resolve(&"files.pypi.org".parse().unwrap()).is_ok());
/// assert!(policy.resolve(&"evil.pypi.org".parse().unwrap()).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// What may be reached. Empty: all that is public.
    pub allow: Vec<Rule>,
    /// What may not, whatever is allowed.
    pub deny: Vec<Rule>,
}

/// What is known of a destination beside its address.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// It is an address of the host's own.
    pub is_host: bool,
    /// Names that were resolved to it, and still are.
    pub names: &'a [Name],
}

/// On what ground something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// For its address.
    ByAddress,
    /// For one of these names, which the connection has to say.
    ByName(Vec<Name>),
}

impl Policy {
    /// Whether packets to `destination` may pass, or begin a connection whose [`claim`](Self::claim) is still to be judged.
    pub fn open(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
        surroundings: Surroundings<'_>,
    ) -> Result<Grant, Refusal> {
        let (address, port) = (destination.ip(), destination.port());
        let about = |rule: &&Rule| rule.is_about(protocol, port);
        let by_address = |rule: &Rule| rule.is_about_address(address);
        self.approach(protocol, destination, surroundings.is_host)?;
        let closed = Closed::of(protocol, destination);
        let opens =
            |rule: &&Rule| about(rule) && closed.iter().all(|closed| closed.is_opened_by(rule, address));
        let refused = closed.first().map_or(Refusal::NotAllowed, Closed::refusal);
        if self.deny.iter().filter(about).any(by_address) {
            return Err(Refusal::Denied);
        }
        let denied = |name: &Name| self.deny.iter().filter(about).any(|rule| rule.is_about_name(name));
        let names = surroundings.names;
        let is_free = self.allow.is_empty() && closed.is_empty();
        if is_free || self.allow.iter().filter(opens).any(by_address) {
            // With all its names denied it was meant to be; what is asked for by another is judged by its claim.
            return match !names.is_empty() && names.iter().all(denied) {
                true => Err(Refusal::Denied),
                false => Ok(Grant::ByAddress),
            };
        }
        let allowed = |name: &&Name| {
            !denied(name) && self.allow.iter().filter(opens).any(|rule| rule.is_about_name(name))
        };
        let names: Vec<_> = names.iter().filter(allowed).cloned().collect();
        if names.is_empty() { Err(refused) } else { Ok(Grant::ByName(names)) }
    }

    /// Whether such a destination can be reached at all.
    fn approach(&self, protocol: Protocol, destination: SocketAddr, is_host: bool) -> Result<(), Refusal> {
        let (address, port) = (destination.ip(), destination.port());
        let allowing = || self.allow.iter().filter(|rule| rule.is_about(protocol, port));
        let exactly = || allowing().any(|rule| rule.is_exactly(address));
        let meant = || allowing().any(|rule| rule.is_meant_for_somebodys() && rule.is_about_address(address));
        match Class::of(address) {
            Class::Loopback => Err(Refusal::Loopback),
            Class::Special => Err(Refusal::Special),
            Class::Metadata if !exactly() => Err(Refusal::Metadata),
            Class::Private if !meant() => Err(Refusal::Private),
            Class::LinkLocal if !meant() => Err(Refusal::LinkLocal),
            _ if is_host && !exactly() => Err(Refusal::Host),
            _ => Ok(()),
        }
    }

    /// Whether a connection that was opened by `grant` may go on, now that it has said that it is for `claimed`: TLS in
    /// its server name, HTTP in each request's host. What says nothing of the kind passes, but where it has to.
    pub fn claim(&self, grant: &Grant, destination: SocketAddr, claimed: Claimed<'_>) -> Result<(), Refusal> {
        let port = destination.port();
        let about = |rule: &&Rule| rule.is_about(Protocol::Tcp, port);
        if let Claimed::Tls(Some(name)) | Claimed::Http(Some(name)) = claimed {
            // Opened by its address, a resolver may be called what it is.
            let exactly = |rule: &Rule| rule.is_exactly(destination.ip());
            match self.resolve_at(name, about) {
                Err(Refusal::Dns) if self.allow.iter().filter(about).any(exactly) => {}
                judged => judged?,
            }
        }
        let Grant::ByName(names) = grant else { return Ok(()) };
        match claimed {
            Claimed::Tls(Some(name)) | Claimed::Http(Some(name)) if names.contains(name) => Ok(()),
            Claimed::Tls(Some(_)) | Claimed::Http(Some(_)) => Err(Refusal::NameMismatch),
            Claimed::Tls(None) | Claimed::Http(None) => Err(Refusal::Nameless),
            Claimed::Nothing if matches!(port, HTTPS | HTTP) => Err(Refusal::Nameless),
            Claimed::Nothing => Ok(()),
        }
    }

    /// Whether each request of plain HTTP is to be judged, and not only how a connection begins.
    pub fn judges_requests(&self, grant: &Grant) -> bool {
        let is_name = |rule: &Rule| matches!(rule.target, Target::Name(_) | Target::Below(_));
        matches!(grant, Grant::ByName(_)) || self.deny.iter().any(is_name)
    }

    /// Whether `name` may be asked for.
    pub fn resolve(&self, name: &Name) -> Result<(), Refusal> {
        // Denied for one port, it may still be asked for, for another.
        self.resolve_at(name, |rule| rule.is_about_all())?;
        let any = |rule: &Rule| rule.target == Target::Any;
        // Where nothing public can be reached, questions would reach it.
        let is_public_denied = self.deny.iter().any(|rule| any(rule) && rule.is_about_all());
        let is_public_allowed = self.allow.is_empty() || self.allow.iter().any(any);
        let is_said = || self.allow.iter().any(|rule| rule.is_about_name(name));
        match is_public_allowed && !is_public_denied || is_said() {
            true => Ok(()),
            false => Err(Refusal::NotAllowed),
        }
    }

    /// Whether `name` is not denied by one of the rules that are `about` what is wanted of it, nor a closed resolver's.
    fn resolve_at(&self, name: &Name, about: impl Fn(&&Rule) -> bool) -> Result<(), Refusal> {
        let denies = |rule: &Rule| rule.is_about_name(name);
        if self.deny.iter().filter(&about).any(denies) {
            return Err(Refusal::Denied);
        }
        let exactly = |rule: &Rule| matches!(&rule.target, Target::Name(own) if own == name);
        match resolvers::is_name(name) && !self.allow.iter().any(exactly) {
            true => Err(Refusal::Dns),
            false => Ok(()),
        }
    }

    /// Whether an address may be told to who asks for a name.
    pub fn admits_answer(&self, address: IpAddr, is_host: bool) -> bool {
        let meant = |rule: &Rule| rule.is_meant_for_somebodys() && rule.is_about_address(address);
        let exactly = |rule: &Rule| rule.is_exactly(address);
        let class = Class::of(address);
        let admitted = match class {
            Class::Public => !is_host,
            Class::Private | Class::LinkLocal => self.allow.iter().any(meant),
            Class::Metadata | Class::Loopback | Class::Special => false,
        };
        admitted || (class != Class::Loopback && class != Class::Special && self.allow.iter().any(exactly))
    }

    /// Whether the host's own loopback may be reached at `port`.
    pub fn host(&self, protocol: Protocol, port: u16) -> Result<(), Refusal> {
        let about = |rule: &Rule| rule.target == Target::Host && rule.is_about(protocol, port);
        if self.deny.iter().any(about) {
            return Err(Refusal::Denied);
        }
        match self.allow.iter().any(about) {
            true => Ok(()),
            false => Err(Refusal::Host),
        }
    }

    /// Whether any rule opens a part of the host's loopback.
    pub fn opens_host(&self) -> bool {
        self.allow.iter().any(|rule| rule.target == Target::Host)
    }
}

/// What is closed unless a rule says it: protocols by which the policy could be passed unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    Quic,
    Dns,
    /// A resolver that answers over HTTPS.
    Resolver,
}

impl Closed {
    fn of(protocol: Protocol, destination: SocketAddr) -> Vec<Self> {
        let by_port = match (protocol, destination.port()) {
            (Protocol::Udp, HTTPS | HTTP) => Some(Self::Quic),
            // DNS, over TLS and QUIC, multicast DNS and LLMNR.
            (Protocol::Tcp | Protocol::Udp, 53 | 853 | 5353 | 5355) => Some(Self::Dns),
            _ => None,
        };
        let resolver = protocol != Protocol::Icmp && resolvers::is_address(destination.ip());
        by_port.into_iter().chain(resolver.then_some(Self::Resolver)).collect()
    }

    fn is_opened_by(self, rule: &Rule, address: IpAddr) -> bool {
        match self {
            Self::Quic => rule.ports.is_some() && rule.protocol == Some(Protocol::Udp),
            Self::Dns => rule.ports.is_some(),
            Self::Resolver => {
                rule.is_exactly(address)
                    || matches!(&rule.target, Target::Name(name) if resolvers::is_name(name))
            }
        }
    }

    fn refusal(&self) -> Refusal {
        match self {
            Self::Quic => Refusal::Quic,
            Self::Dns | Self::Resolver => Refusal::Dns,
        }
    }
}

/// What a connection says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed<'a> {
    /// The server name of a TLS connection, if it says one.
    Tls(Option<&'a Name>),
    /// The host of an HTTP request, if it says one that is a name.
    Http(Option<&'a Name>),
    /// It is neither.
    Nothing,
}

#[cfg(test)]
mod tests;
