//! Secrets that never enter the guest: it is given placeholders, which are replaced on the way to the domains that a
//! secret is for, and to no other.

use std::fmt;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::name::Name;

mod domain;
mod placeholder;

pub use domain::{Domain, DomainError};
pub(crate) use placeholder::reveal;

/// The longest name of a secret, and the longest value.
pub const MAX_NAME_BYTES: usize = 64;
/// The longest value of a secret. Most servers take headers of 8 KiB in all.
pub const MAX_VALUE_BYTES: usize = 4096;
/// Domains that one secret may be for.
pub const MAX_DOMAINS: usize = 16;
/// What every placeholder begins with, and what is random of it.
const PREFIX: &str = "bouvet-secret-";
const RANDOM_BYTES: usize = 16;

/// What must not be seen: shown by nothing, sent nowhere but where it is for, and overwritten when it is dropped.
///
/// ```
/// use bouvet_net::secret::Value;
///
/// let value = Value::from("hunter2".to_owned());
/// assert_eq!(format!("{value:?}"), "Value(hidden)");
/// ```
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Value(Zeroizing<String>);

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(hidden)")
    }
}

/// A secret and the domains that it is for. Whoever serialises it gets all but its value.
///
/// ```
/// use bouvet_net::secret::Secret;
///
/// let secret = Secret::new("API_KEY", "hunter2".to_owned().into(), vec!["api.example.com".parse()?])?;
/// // What the guest gets in its place, as the variable `API_KEY`.
/// assert!(secret.placeholder().starts_with("bouvet-secret-"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct Secret {
    name: String,
    #[serde(skip)]
    value: Value,
    domains: Vec<Domain>,
    placeholder: String,
}

/// Why something is no secret. None of these show the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It becomes a variable of the environment.
    #[error(
        "`{0}` is no name of a secret: expected up to {MAX_NAME_BYTES} letters, digits and `_`, no digit first"
    )]
    Name(String),
    /// Nothing to hide.
    #[error("the secret `{0}` is empty")]
    Empty(String),
    /// Too much.
    #[error("the secret `{name}` has {bytes} bytes, and may have {MAX_VALUE_BYTES}")]
    Long {
        /// The secret's.
        name: String,
        /// Those that it has.
        bytes: usize,
    },
    /// It goes into a header, which has one line, and loses space at its ends.
    #[error("the secret `{0}` has characters that no header can carry: line breaks, or spaces at an end")]
    Characters(String),
    /// For none, or for too many.
    #[error("the secret `{name}` is for {count} domains, and may be for 1 to {MAX_DOMAINS}")]
    Domains {
        /// The secret's.
        name: String,
        /// Those that it is for.
        count: usize,
    },
    /// The system has no random numbers.
    #[error("no random numbers for the placeholder of the secret `{0}`")]
    Random(String),
}

impl Secret {
    /// The secret `name` of `value`, for `domains`, with a placeholder that nobody else has.
    pub fn new(name: impl Into<String>, value: Value, domains: Vec<Domain>) -> Result<Self, SecretError> {
        let name = name.into();
        if !is_variable(&name) {
            return Err(SecretError::Name(name));
        }
        let text = value.0.as_str();
        if text.is_empty() {
            return Err(SecretError::Empty(name));
        }
        if text.len() > MAX_VALUE_BYTES {
            return Err(SecretError::Long { name, bytes: text.len() });
        }
        if text.chars().any(char::is_control) || text.trim_matches(' ').len() < text.len() {
            return Err(SecretError::Characters(name));
        }
        if !(1..=MAX_DOMAINS).contains(&domains.len()) {
            return Err(SecretError::Domains { name, count: domains.len() });
        }
        let mut random = [0; RANDOM_BYTES];
        if SystemRandom::new().fill(&mut random).is_err() {
            return Err(SecretError::Random(name));
        }
        let placeholder = format!("{PREFIX}{}", hex::encode(random));
        Ok(Self { name, value, domains, placeholder })
    }

    /// What it is called, as variables of the environment are.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The domains to which it goes.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// What the guest has in its place: `bouvet-secret-` and 32 random hexadecimal digits.
    pub fn placeholder(&self) -> &str {
        &self.placeholder
    }

    /// Whether it is for `name`.
    pub fn is_for(&self, name: &Name) -> bool {
        self.domains.iter().any(|domain| domain.covers(name))
    }

    fn value(&self) -> &[u8] {
        self.value.0.as_bytes()
    }
}

fn is_variable(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, value: &str, domains: usize) -> Result<Secret, SecretError> {
        let domains = (0..domains).map(|n| format!("n{n}.example.com").parse().expect("a domain"));
        Secret::new(name, value.to_owned().into(), domains.collect())
    }

    #[test]
    fn nothing_shows_a_value() {
        let secret = secret("API_KEY", "hunter2", 1).expect("a secret");
        assert!(!format!("{secret:?} {secret:#?}").contains("hunter2"));
        let json = serde_json::to_string(&secret).expect("serialised");
        assert!(!json.contains("hunter2"), "{json}");
        assert!(json.contains(secret.placeholder()) && json.contains("n0.example.com"), "{json}");
        for wrong in ["hunter2\n", " hunter2", &"hunter2".repeat(1000)] {
            let error = self::secret("API_KEY", wrong, 1).expect_err("no secret");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn placeholders_are_random_and_all_alike_in_form() {
        let [one, other] = [secret("A", "x", 1), secret("A", "x", 1)].map(|secret| secret.expect("a secret"));
        assert_ne!(one.placeholder(), other.placeholder());
        let digits = one.placeholder().strip_prefix(PREFIX).expect("the prefix");
        assert_eq!(digits.len(), 32);
        assert!(digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    }

    #[test]
    fn bounds_of_secrets() {
        let long = "n".repeat(MAX_NAME_BYTES);
        for name in ["A", "_x", "GITHUB_TOKEN", "a1", &long] {
            secret(name, "x", 1).expect(name);
        }
        for name in ["", "1A", "A-B", "A B", "Ä", "A=B", "A\0", &(long + "n")] {
            assert_eq!(secret(name, "x", 1).err(), Some(SecretError::Name(name.into())));
        }
        secret("A", &"v".repeat(MAX_VALUE_BYTES), MAX_DOMAINS).expect("just fits");
        let long = SecretError::Long { name: "A".into(), bytes: MAX_VALUE_BYTES + 1 };
        assert_eq!(secret("A", &"v".repeat(MAX_VALUE_BYTES + 1), 1).err(), Some(long));
        assert_eq!(secret("A", "", 1).err(), Some(SecretError::Empty("A".into())));
        for value in ["a\r\nHost: evil", "a\n", "a\0b", "a\tb", " a", "a ", "a\u{7f}", "a\u{85}b"] {
            assert_eq!(secret("A", value, 1).err(), Some(SecretError::Characters("A".into())), "{value:?}");
        }
        for count in [0, MAX_DOMAINS + 1] {
            assert_eq!(secret("A", "x", count).err(), Some(SecretError::Domains { name: "A".into(), count }));
        }
    }
}
