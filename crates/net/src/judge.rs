//! Who decides: the sandbox's own policy, and the bound that whoever runs the host has set to it.

use std::net::{IpAddr, SocketAddr};

use crate::flow::Protocol;
use crate::name::Name;
use crate::policy::{Claimed, Grant, Policy, Surroundings};
use crate::refusal::Refusal;

/// All of these policies must agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Judge {
    pub(crate) own: Policy,
    pub(crate) bound: Option<Policy>,
}

/// On what ground each of them allows something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permit {
    grants: Vec<Grant>,
    /// The names that its address had then. They are what it is for, also once their answers have ended.
    pub(crate) names: Vec<Name>,
}

impl Judge {
    fn all(&self) -> impl Iterator<Item = &Policy> {
        std::iter::once(&self.own).chain(&self.bound)
    }

    pub(crate) fn open(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
        surroundings: Surroundings<'_>,
    ) -> Result<Permit, Refusal> {
        let grants = self.all().map(|policy| policy.open(protocol, destination, surroundings));
        Ok(Permit { grants: grants.collect::<Result<_, _>>()?, names: surroundings.names.to_vec() })
    }

    pub(crate) fn claim(
        &self,
        Permit { grants, .. }: &Permit,
        destination: SocketAddr,
        claimed: Claimed<'_>,
    ) -> Result<(), Refusal> {
        self.all().zip(grants).try_for_each(|(policy, grant)| policy.claim(grant, destination, claimed))
    }

    pub(crate) fn judges_requests(&self, Permit { grants, .. }: &Permit) -> bool {
        self.all().zip(grants).any(|(policy, grant)| policy.judges_requests(grant))
    }

    pub(crate) fn resolve(&self, name: &Name) -> Result<(), Refusal> {
        self.all().try_for_each(|policy| policy.resolve(name))
    }

    pub(crate) fn admits_answer(&self, address: IpAddr, is_host: bool) -> bool {
        self.all().all(|policy| policy.admits_answer(address, is_host))
    }

    pub(crate) fn host(&self, protocol: Protocol, port: u16) -> Result<(), Refusal> {
        self.all().try_for_each(|policy| policy.host(protocol, port))
    }

    pub(crate) fn opens_host(&self) -> bool {
        self.all().all(Policy::opens_host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str]) -> Policy {
        Policy { allow: allow.iter().map(|text| text.parse().unwrap()).collect(), deny: Vec::new() }
    }

    #[test]
    fn both_must_agree() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let names: [Name; 1] = ["a.example".parse().unwrap()];
        let here = Surroundings { is_host: false, names: &names };
        let judge = Judge { own: policy(&["a.example", "10.0.0.0/8"]), bound: Some(policy(&["*"])) };
        assert!(judge.open(Protocol::Tcp, at("93.184.215.14:443"), here).is_ok());
        assert_eq!(judge.open(Protocol::Tcp, at("10.0.0.1:443"), here), Err(Refusal::Private));
        assert_eq!(
            judge.open(Protocol::Tcp, at("93.184.215.14:443"), Surroundings::default()),
            Err(Refusal::NotAllowed)
        );
        let judge = Judge { own: Policy::default(), bound: Some(policy(&["a.example"])) };
        let permit = judge.open(Protocol::Tcp, at("93.184.215.14:443"), here).unwrap();
        let other: Name = "b.example".parse().unwrap();
        let claimed = Claimed::Tls(Some(&other));
        assert_eq!(judge.claim(&permit, at("93.184.215.14:443"), claimed), Err(Refusal::NameMismatch));
        assert!(judge.judges_requests(&permit));
        assert_eq!(judge.resolve(&other), Err(Refusal::NotAllowed));
    }
}
