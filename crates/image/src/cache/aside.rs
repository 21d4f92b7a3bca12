//! What was found damaged: moved out of the way, with the reason.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::record;

/// Things that are kept; beyond that the oldest go. They take as much disk as they did.
const MAX_KEPT: usize = 4;
const RECORD: &str = ".json";

/// A directory of damaged things. Beside a thing called `name` is `name.json`, with the reason.
#[derive(Debug, Clone)]
pub(crate) struct Aside {
    dir: PathBuf,
}

/// Why a thing is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) name: String,
    pub(crate) reason: String,
}

impl Aside {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn record(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{RECORD}"))
    }

    /// Moves the thing at `path` here, in the place of an earlier one of its name.
    pub(crate) fn take(&self, path: &Path, name: &str, reason: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.dir)?;
        self.forget(name)?;
        let here = self.dir.join(name);
        // In this order nothing is here without a reason.
        record::write(&self.record(name), &Reason { name: name.to_owned(), reason: reason.to_owned() })?;
        fs::rename(path, &here)?;
        self.make_room()?;
        Ok(here)
    }

    /// Removes a thing, which was replaced by a sound one.
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
        super::shelf::remove_any(&self.dir.join(name))?;
        super::remove_file(&self.record(name))
    }

    /// Why something called `name` is here; `None` if nothing is.
    pub(crate) fn reason(&self, name: &str) -> Option<String> {
        record::read::<Reason>(&self.record(name)).ok().map(|reason| reason.reason)
    }

    /// All that is here, the oldest first.
    pub(crate) fn all(&self) -> io::Result<Vec<Reason>> {
        let mut all: Vec<(SystemTime, Reason)> = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(RECORD)) else { continue };
            let since = entry.metadata().and_then(|metadata| metadata.modified());
            let unknown = || "why is not known any more".to_owned();
            let reason = self.reason(name).unwrap_or_else(unknown);
            all.push((since.unwrap_or(SystemTime::UNIX_EPOCH), Reason { name: name.to_owned(), reason }));
        }
        all.sort_by(|(a, x), (b, y)| (a, &x.name).cmp(&(b, &y.name)));
        Ok(all.into_iter().map(|(_, reason)| reason).collect())
    }

    fn make_room(&self) -> io::Result<()> {
        let all = self.all()?;
        let excess = all.len().saturating_sub(MAX_KEPT);
        all[..excess].iter().try_for_each(|reason| self.forget(&reason.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_things_are_kept_with_reasons_within_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let aside = Aside::new(dir.path().join("damaged"));
        assert!(aside.all().unwrap().is_empty() && aside.reason("a").is_none());
        let lose = |name: &str, reason: &str| {
            let path = dir.path().join("thing");
            fs::write(&path, reason).unwrap();
            let here = aside.take(&path, name, reason).unwrap();
            assert!(!path.exists() && fs::read_to_string(here).unwrap() == reason);
            let record = fs::File::options().write(true).open(aside.record(name)).unwrap();
            // Older than what comes next.
            let since = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(reason.len() as u64);
            record.set_modified(since).unwrap();
        };
        for (name, reason) in [("a", "1"), ("b", "22"), ("c", "333"), ("d", "4444"), ("a", "55555")] {
            lose(name, reason);
        }
        assert_eq!(aside.all().unwrap().len(), MAX_KEPT);
        lose("e", "666666");
        let names: Vec<String> = aside.all().unwrap().into_iter().map(|reason| reason.name).collect();
        assert_eq!(names, ["c", "d", "a", "e"], "the oldest has gone");
        assert_eq!(aside.reason("a").unwrap(), "55555");
        aside.forget("a").unwrap();
        assert_eq!(
            (aside.reason("a"), fs::read_dir(&aside.dir).unwrap().count()),
            (None, 2 * (MAX_KEPT - 1))
        );
    }
}
