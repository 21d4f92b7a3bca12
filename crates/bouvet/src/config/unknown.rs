//! Variables that are set and not known: misspelled, most likely.

use super::VARIABLES;

/// Published variables of parts that do not exist yet; setting them is not a mistake.
const LATER: &[&str] = &["BOUVET_ROOTFS_URL"];
/// Similarity (Jaro-Winkler, 0 to 1) from which a name is suggested.
const SIMILAR: f64 = 0.85;

/// A variable that is set, looks like ours and is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// As it is set.
    pub name: String,
    /// The variable that was meant, most likely.
    pub similar: Option<&'static str>,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the variable {} is not known", self.name)?;
        match self.similar {
            Some(similar) => write!(f, "; did you mean {similar}?"),
            None => Ok(()),
        }
    }
}

/// Those among the names `set` that look like ours and are not known.
pub fn unknown_variables(set: impl Iterator<Item = String>) -> Vec<Unknown> {
    let mut unknown: Vec<_> = set.filter(|name| is_unknown(name)).collect();
    unknown.sort_unstable();
    unknown.into_iter().map(|name| Unknown { similar: similar(&name), name }).collect()
}

fn is_unknown(name: &str) -> bool {
    let known = || VARIABLES.iter().map(|variable| variable.name).chain(LATER.iter().copied());
    // `bouvet_http_port` and `BOUVETHTTP_PORT` are mistakes too.
    name.to_ascii_uppercase().starts_with("BOUVET") && known().all(|known| known != name)
}

fn similar(name: &str) -> Option<&'static str> {
    let own = |name: &str| name.trim_start_matches("BOUVET").trim_start_matches('_').to_owned();
    let typed = own(&name.to_ascii_uppercase());
    let rate = |known: &str| strsim::jaro_winkler(&typed, &own(known));
    let rated = VARIABLES.iter().map(|variable| (rate(variable.name), variable.name));
    let best = rated.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(rate, _)| *rate >= SIMILAR).map(|(_, name)| name)
}
