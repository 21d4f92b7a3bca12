//! Names of hosts.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// Without the last dot (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// A name of a host: lower case, in ASCII, without the last dot. Cheap to copy.
///
/// What a program may take for an address (`127.1`, `0x7f000001`, `2130706433`) is none.
///
/// ```
/// use bouvet_net::Name;
///
/// let name: Name = "Bücher.example.".parse().unwrap();
/// assert_eq!(name.as_str(), "xn--bcher-kva.example");
/// assert!("127.1".parse::<Name>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(#[serde(serialize_with = "as_text")] Arc<str>);

fn as_text<S: serde::Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

/// A text that names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no name of a host")]
pub struct NameError;

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it lies below `other`, at any depth.
    ///
    /// ```
    /// # use bouvet_net::Name;
    /// let [name, other] = ["a.b.example.com", "example.com"].map(|text| text.parse::<Name>().unwrap());
    /// assert!(name.is_below(&other) && !other.is_below(&other));
    /// ```
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_suffix(&*other.0).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let ascii = match text.is_ascii() {
            true => text.to_ascii_lowercase(),
            false => idna::domain_to_ascii(text).map_err(|_| NameError)?,
        };
        // Services have underscores before their names.
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let label = |label: &str| (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.bytes().all(plain);
        let sound = ascii.len() <= MAX_NAME_BYTES && ascii.split('.').all(label);
        match sound && !is_like_an_address(&ascii) {
            true => Ok(Self(ascii.into())),
            false => Err(NameError),
        }
    }
}

/// Whether inet_aton(3) would take it for an address, in any of its forms, or somebody who reads as it does: its last
/// part is a number.
fn is_like_an_address(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let digits = |text: &str, radix: u32| !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    let hex = last.strip_prefix("0x").is_some_and(|rest| rest.is_empty() || digits(rest, 16));
    hex || digits(last, 10) || name.parse::<Ipv4Addr>().is_ok()
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        for (text, name) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com.", "example.com"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
            ("1.example", "1.example"),
            ("0x.example", "0x.example"),
        ] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), name, "{text}");
        }
        let [latin, cyrillic] =
            ["paypal.example", "p\u{430}ypal.example"].map(|text| text.parse::<Name>().unwrap());
        assert_ne!(latin, cyrillic);
    }

    #[test]
    fn what_may_be_an_address_is_no_name() {
        for text in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "0x7f.0x1",
            "example.1",
            "a.0x",
            "0300.0250.0.1",
            "::1",
            "[::1]",
            "1.2.3.4.",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_have_limits() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert!(longest.parse::<Name>().is_ok());
        assert!(format!("{longest}a").parse::<Name>().is_err());
        for text in ["", ".", "a..b", ".a", "a b", "a/b", "a:80", "*.a", &format!("{label}a.b")] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn below_is_below_by_whole_labels() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert!(name("a.example.com").is_below(&name("example.com")));
        assert!(!name("aexample.com").is_below(&name("example.com")));
        assert!(!name("com").is_below(&name("example.com")));
    }
}
