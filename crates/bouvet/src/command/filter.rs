//! Conditions of `--filter` that several commands share. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::outcome::Failed;
use super::usage;

/// A label that must be there, with this value where one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    name: String,
    value: Option<String>,
}

impl Label {
    /// Reads `NAME` or `NAME=VALUE`.
    pub(super) fn parse(text: &str) -> Self {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        Self { name: name.to_owned(), value: value.map(str::to_owned) }
    }

    /// Whether `labels` contain it.
    pub(super) fn is_in(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.name);
        found.is_some() && self.value.as_ref().is_none_or(|value| found == Some(value))
    }
}

/// A condition of `prune`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PruneFilter {
    /// At least this old.
    Until(Duration),
    /// The label, and whether it must be there or must not.
    Label(Label, bool),
}

impl PruneFilter {
    /// Reads all that was typed after `--filter`.
    pub(super) fn all(texts: &[String]) -> Result<Vec<Self>, Failed> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    /// Reads one; `until` is an age or a time.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        let allowed = "`until=24h`, `label=NAME[=VALUE]` and `label!=NAME[=VALUE]` are allowed";
        let wrong = || usage::wrong("--filter", text, allowed);
        let (field, value) = text.split_once('=').ok_or_else(wrong)?;
        match field {
            "until" => {
                let time = usage::time("--filter", value).map_err(|_| wrong())?;
                Ok(Self::Until(SystemTime::now().duration_since(time).unwrap_or_default()))
            }
            "label" => Ok(Self::Label(Label::parse(value), true)),
            "label!" => Ok(Self::Label(Label::parse(value), false)),
            _ => Err(wrong()),
        }
    }

    /// Whether something with these labels, `created` at this time (RFC 3339), fits. Without a known time nothing is old.
    pub(super) fn takes(&self, created: &str, labels: &BTreeMap<String, String>, now: SystemTime) -> bool {
        match self {
            Self::Until(age) => humantime::parse_rfc3339(created)
                .is_ok_and(|made| now.duration_since(made).is_ok_and(|old| old >= *age)),
            Self::Label(label, wanted) => label.is_in(labels) == *wanted,
        }
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any characters but `/`, and `?` for one.
pub(super) fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Where the last star is, and how much of the text it stands for.
    let (mut at, mut seen, mut star) = (0, 0, None::<(usize, usize)>);
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(c) if *c == text[seen] || (*c == '?' && text[seen] != '/') => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((place, until)) if text[until] != '/' => {
                    star = Some((place, until + 1));
                    at = place + 1;
                    seen = until + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn prune_filters_take_ages_and_labels() {
        let labels = [("a".to_owned(), "1".to_owned())].into();
        let takes =
            |text: &str, now| PruneFilter::parse(text).unwrap().takes("1970-01-01T00:00:00Z", &labels, now);
        let now = UNIX_EPOCH + Duration::from_secs(3600);
        for (text, expected) in [
            ("label=a", true),
            ("label=a=1", true),
            ("label=a=2", false),
            ("label!=a", false),
            ("label!=a=2", true),
            ("label!=b", true),
        ] {
            assert_eq!(takes(text, now), expected, "{text}");
        }
        let age = PruneFilter::Until(Duration::from_secs(3600));
        assert!(age.takes("1970-01-01T00:00:00Z", &labels, now), "at the bound");
        assert!(!age.takes("1970-01-01T00:00:01Z", &labels, now), "one second younger");
        assert!(!age.takes("", &labels, now), "of unknown age");
        assert!(
            takes("until=1h", SystemTime::now()) && takes("until=2001-01-01T00:00:00Z", SystemTime::now())
        );
        for wrong in ["", "until", "until=soon", "name=x"] {
            assert!(PruneFilter::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns_stop_at_slashes() {
        for (pattern, text, expected) in [
            ("alpine", "alpine", true),
            ("alpine*", "alpine:3", true),
            ("*pine", "alpine", true),
            ("a*e*", "alpine", true),
            ("a?pine", "alpine", true),
            ("*", "a/b", false),
            ("a/*", "a/b", true),
            ("?", "/", false),
            ("alpine", "alpine:3", false),
            ("", "", true),
            ("**", "", true),
        ] {
            assert_eq!(is_like(pattern, text), expected, "{pattern} {text}");
        }
    }
}
