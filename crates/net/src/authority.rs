//! The authority of one sandbox: proves to its guest, and to nobody else, that we are the servers to which its secrets
//! go. Its key never leaves this process's memory.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::name::Name;
use crate::secret::Domain;

/// How long a guest may trust it: longer than sandboxes live, and not for long.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far the clock of a guest may be behind ours.
const LATE: Duration = Duration::from_secs(24 * 3600);
/// Certificates that are kept. A guest that asks for more names gets new ones.
const MAX_LEAVES: usize = 128;

/// Makes certificates for names below the domains that it is limited to.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    leaves: Mutex<HashMap<Name, Arc<CertifiedKey>>>,
}

/// Why there is no authority, or no certificate from it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key or a certificate could not be made.
    #[error("could not make a certificate for `{subject}`")]
    Certificate {
        /// Whose.
        subject: String,
        /// What the library says.
        source: rcgen::Error,
    },
    /// TLS cannot work with it.
    #[error("could not use the certificate for `{subject}`")]
    Unusable {
        /// Whose.
        subject: String,
        /// What the library says.
        source: rustls::Error,
    },
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one for `domains`, with a new key, for the next 30 days.
    pub(crate) fn new(domains: &[Domain]) -> Result<Self, AuthorityError> {
        let subject = "Bouvet, for one sandbox";
        let failed = |source| AuthorityError::Certificate { subject: subject.into(), source };
        let mut params = of_now(subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let permitted = domains.iter().map(|domain| GeneralSubtree::DnsName(domain.name().to_string()));
        // Addresses are names of a kind of their own, which limits of domains don't limit (RFC 5280, 4.2.1.10).
        let addresses = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let every = |address: IpAddr| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, 0));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: permitted.collect(),
            excluded_subtrees: addresses.map(every).into(),
        });
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        Ok(Self { issuer, leaves: Mutex::default() })
    }

    /// Its certificate as PEM, for the guest to trust.
    pub(crate) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// What proves that we are `name`. The caller knows that a secret is for it.
    pub(crate) fn leaf(&self, name: &Name) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(name) {
            return Ok(Arc::clone(leaf));
        }
        if leaves.len() == MAX_LEAVES {
            leaves.clear();
        }
        let leaf = Arc::new(self.certify(name)?);
        leaves.insert(name.clone(), Arc::clone(&leaf));
        Ok(leaf)
    }

    fn certify(&self, name: &Name) -> Result<CertifiedKey, AuthorityError> {
        let failed = |source| AuthorityError::Certificate { subject: name.to_string(), source };
        let mut params = of_now(name.as_str());
        let subject = name.as_str().try_into().map_err(failed)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(subject)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone(), self.issuer.der().clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let unusable = |source| AuthorityError::Unusable { subject: name.to_string(), source };
        CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(unusable)
    }
}

fn of_now(subject: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Common names have 64 characters at most (RFC 5280, A.1), names of DNS more: names are in the extension.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Bouvet");
    if subject.len() <= 64 {
        params.distinguished_name.push(DnType::CommonName, subject);
    }
    let now = SystemTime::now();
    params.not_before = (now - LATE).into();
    params.not_after = (now + LIFE).into();
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    /// Whether somebody who trusts `authority` believes that it speaks for `name` at a time.
    fn is_believed(authority: &Authority, name: &str, at: UnixTime) -> Result<(), rustls::Error> {
        let leaf = authority.certify(&name.parse().expect("a name")).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(leaf.cert[1].clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("one");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&leaf.cert[0], &[], &name, &[], at).map(drop)
    }

    fn authority(domains: &[&str]) -> Authority {
        let domains: Vec<_> = domains.iter().map(|domain| domain.parse().expect("a domain")).collect();
        Authority::new(&domains).expect("an authority")
    }

    #[test]
    fn it_is_believed_for_its_domains_and_no_others() {
        let authority = authority(&["api.example.com", "*.example.org"]);
        let long = format!("{}.{}.example.org", "a".repeat(63), "b".repeat(63));
        for name in ["api.example.com", "www.example.org", "a.b.example.org", &long] {
            is_believed(&authority, name, UnixTime::now()).expect(name);
        }
        for name in ["example.com", "evil.com", "www.example.com", "notexample.org", "com"] {
            is_believed(&authority, name, UnixTime::now()).expect_err(name);
        }
    }

    #[test]
    fn it_is_believed_for_no_address() {
        let authority = authority(&["api.example.com"]);
        for address in ["93.184.215.14", "2606:4700::1111"] {
            let key = KeyPair::generate().expect("a key");
            let mut params = of_now(address);
            params.subject_alt_names = vec![rcgen::SanType::IpAddress(address.parse().expect("an address"))];
            let leaf = params.signed_by(&key, &authority.issuer).expect("a certificate").der().clone();
            let mut roots = RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).expect("an authority");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            let name = ServerName::try_from(address).expect("an address");
            let believed =
                verifier.build().expect("one").verify_server_cert(&leaf, &[], &name, &[], UnixTime::now());
            let error = believed.expect_err(address).to_string();
            assert!(error.contains("NameConstraintViolation"), "{error}");
        }
    }

    #[test]
    fn it_is_believed_for_a_month() {
        let authority = authority(&["api.example.com"]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let day = Duration::from_secs(24 * 3600);
        for (at, expected) in
            [(now - 2 * day, false), (now - day / 2, true), (now + 29 * day, true), (now + 31 * day, false)]
        {
            let believed = is_believed(&authority, "api.example.com", UnixTime::since_unix_epoch(at));
            assert_eq!(believed.is_ok(), expected, "{at:?}");
        }
    }

    #[test]
    fn certificates_are_kept_up_to_a_limit() {
        let authority = authority(&["*.example.com"]);
        let leaf = |n: usize| {
            authority.leaf(&format!("n{n}.example.com").parse().expect("a name")).expect("a certificate")
        };
        let first = leaf(0);
        assert!(Arc::ptr_eq(&first, &leaf(0)));
        for n in 1..=MAX_LEAVES {
            leaf(n);
            assert!(authority.leaves.lock().unwrap().len() <= MAX_LEAVES);
        }
        assert!(!Arc::ptr_eq(&first, &leaf(0)));
    }
}
