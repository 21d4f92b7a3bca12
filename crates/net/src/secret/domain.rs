//! Whom a secret is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::Name;
use crate::rule::{Rule, Target};

/// A name, or all names below one: as a rule says it, without ports.
///
/// ```
/// use bouvet_net::secret::Domain;
///
/// let domain: Domain = "*.example.com".parse()?;
/// assert!(domain.covers(&"api.example.com".parse().unwrap()));
/// assert!(!domain.covers(&"example.com".parse().unwrap()));
/// assert!("*".parse::<Domain>().is_err());
/// # Ok::<(), bouvet_net::secret::DomainError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domain {
    /// One host.
    Name(Name),
    /// All hosts below a name, at any depth.
    Below(Name),
}

/// A text that is no domain that a secret can be for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no domain: expected a name like `api.example.com`, or `*.example.com` for those below one")]
pub struct DomainError(pub String);

impl Domain {
    /// Whether it is about `name`.
    pub fn covers(&self, name: &Name) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Below(own) => name.is_below(own),
        }
    }

    /// The name at or below which it lies.
    pub(crate) fn name(&self) -> &Name {
        match self {
            Self::Name(name) | Self::Below(name) => name,
        }
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let rule = text.parse().ok().filter(|rule: &Rule| rule.ports.is_none() && rule.protocol.is_none());
        match rule.map(|rule| rule.target) {
            Some(Target::Name(name)) => Ok(Self::Name(name)),
            // All names of a country or a kind are nobody's to whom secrets go.
            Some(Target::Below(name)) if name.as_str().contains('.') => Ok(Self::Below(name)),
            _ => Err(DomainError(text.chars().take(300).collect::<String>().escape_debug().to_string())),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl Serialize for Domain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_names_or_all_below_one() {
        for (text, shown) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.com.", "api.example.com"),
            ("*.example.com", "*.example.com"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
        ] {
            assert_eq!(text.parse::<Domain>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "*",
            "*.com",
            "a.*.com",
            "host",
            "10.0.0.1",
            "10.0.0.0/8",
            "a.example:443",
            "a.example/tcp",
            "a b",
        ] {
            assert!(wrong.parse::<Domain>().is_err(), "{wrong}");
        }
    }
}
