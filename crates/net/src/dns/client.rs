//! Settings of resolv.conf(5) other than its servers, by which a sandbox's programs complete and look up names.

use std::path::Path;

use super::servers;
use crate::name::Name;

/// Domains that are used of those that a host's file has. The C library has had no limit since 2017; musl has 256 bytes.
const MAX_SEARCH_DOMAINS: usize = 32;
/// Options that are used of those that a host's file has.
const MAX_OPTIONS: usize = 32;
/// The length of an option: `attempts:5` is a long one.
const MAX_OPTION_BYTES: usize = 64;

/// Search domains and options for a sandbox's `resolv.conf`.
///
/// ```
/// use bouvet_net::dns::ClientSettings;
///
/// let settings = ClientSettings::of_text(b"search corp.example\nnameserver 10.0.0.1\noptions ndots:2 timeout:3\n");
/// assert_eq!(settings.search, ["corp.example"]);
/// assert_eq!(settings.options, ["ndots:2", "timeout:3"]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// Domains that names are completed with, in this order.
    pub search: Vec<String>,
    /// Options, as `ndots:2`.
    pub options: Vec<String>,
}

impl ClientSettings {
    /// Those of the file `path`, a `resolv.conf`. A file that cannot be read has none, as for the C library.
    pub async fn of_file(path: impl AsRef<Path>) -> Self {
        Self::of_text(&servers::read(path.as_ref()).await)
    }

    /// Those of the text of a `resolv.conf`. Words that no C library would understand are skipped.
    pub fn of_text(text: &[u8]) -> Self {
        let mut settings = Self::default();
        for line in String::from_utf8_lossy(text).lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                // The last of both counts.
                Some("search") => {
                    settings.search = words.filter_map(search_domain).take(MAX_SEARCH_DOMAINS).collect();
                }
                Some("domain") => settings.search = words.filter_map(search_domain).take(1).collect(),
                Some("options") => {
                    let room = MAX_OPTIONS - settings.options.len();
                    let options = words.filter(|word| is_option(word)).take(room);
                    settings.options.extend(options.map(str::to_owned));
                }
                _ => {}
            }
        }
        settings
    }

    /// Adds `option`, as `ndots:0`, unless there is one of that name.
    pub fn add_option(&mut self, option: &str) {
        let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
        if !self.options.iter().any(|present| name(present) == name(option)) {
            self.options.push(option.to_owned());
        }
    }
}

/// A domain as it is written for programs. The root, which systemd-resolved writes for none, is not one.
pub fn search_domain(text: &str) -> Option<String> {
    text.parse::<Name>().ok().map(|name| name.as_str().to_owned())
}

/// Whether `text` has the form of an option: `rotate`, `ndots:2`.
pub fn is_option(text: &str) -> bool {
    let word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= MAX_OPTION_BYTES
        && match text.split_once(':') {
            Some((name, value)) => word(name) && word(value),
            None => word(text),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Vec<String>, Vec<String>) {
        let ClientSettings { search, options } = ClientSettings::of_text(text.as_bytes());
        (search, options)
    }

    #[test]
    fn last_search_or_domain_line_counts() {
        assert_eq!(of("search a.example b.example\n").0, ["a.example", "b.example"]);
        assert_eq!(of("search a.example\ndomain C.example. d.example\n").0, ["c.example"]);
        assert_eq!(of("domain a.example\nsearch b.example\n").0, ["b.example"]);
        assert!(of("search a.example\nsearch .\n").0.is_empty(), "systemd-resolved's word for none");
        assert!(of("#search a.example\n;domain a.example\n search_\n").0.is_empty());
        assert_eq!(of("search bad/name a.example\n").0, ["a.example"]);
    }

    #[test]
    fn options_of_all_lines_are_kept_within_limits() {
        assert_eq!(of("options ndots:2 rotate\noptions timeout:3\n").1, ["ndots:2", "rotate", "timeout:3"]);
        assert!(of("options a:b:c : x: \u{fc} $(id)\n").1.is_empty());
        let many = |count: usize| "options ".to_owned() + &"rotate ".repeat(count);
        assert_eq!(of(&many(MAX_OPTIONS + 1)).1.len(), MAX_OPTIONS);
        let domains = "search ".to_owned() + &"a.example ".repeat(MAX_SEARCH_DOMAINS + 1);
        assert_eq!(of(&domains).0.len(), MAX_SEARCH_DOMAINS);
        assert!(is_option(&"x".repeat(MAX_OPTION_BYTES)) && !is_option(&"x".repeat(MAX_OPTION_BYTES + 1)));
    }

    #[test]
    fn option_of_the_host_is_not_added_twice() {
        let mut settings = ClientSettings::of_text(b"options ndots:2");
        settings.add_option("ndots:0");
        settings.add_option("rotate");
        assert_eq!(settings.options, ["ndots:2", "rotate"]);
    }

    #[tokio::test]
    async fn missing_file_has_no_settings() {
        assert_eq!(ClientSettings::of_file("/nowhere/resolv.conf").await, ClientSettings::default());
    }
}
