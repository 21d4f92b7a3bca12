//! Persistent sandboxes on disk: what each was asked to be, how it ended last, and all that it wrote.
//!
//! ```text
//! DIR/ID/box.json       the record
//! DIR/ID/scratch.ext4   its writable disk
//! DIR/ID/log.json       the end of what its main program printed
//! DIR/ID/lock           held by the host that has it
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::boxconfig::BoxConfig;
use crate::host::ImageRecord;
use crate::instance;
use crate::journal::LogRecord;
use crate::sandbox::SandboxId;
use crate::sandbox::state::Stop;

/// Why a sandbox could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("could not keep persistent sandboxes in `{dir}`")]
pub struct KeepError {
    /// Where.
    pub dir: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

fn failed(dir: &Path) -> impl Fn(io::Error) -> KeepError + use<'_> {
    move |source| KeepError { dir: dir.to_owned(), source }
}

/// What is written of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: SandboxId,
    pub(crate) created_at: SystemTime,
    pub(crate) config: BoxConfig,
    /// What it was made from, below what it wrote. `None`: the base image.
    pub(crate) image: Option<ImageRecord>,
    /// How it stopped last. `None`: it has not, or its host was killed.
    pub(crate) stop: Option<Stop>,
}

/// The directory of all persistent sandboxes of one or more hosts.
#[derive(Debug)]
pub(crate) struct Boxes {
    dir: PathBuf,
}

impl Boxes {
    /// Keeps sandboxes in `dir`, which is made for the first.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes a place for a sandbox.
    pub(crate) fn add(
        &self,
        id: SandboxId,
        config: &BoxConfig,
        image: Option<ImageRecord>,
    ) -> Result<Kept, KeepError> {
        // Disks hold what their sandboxes wrote: only we may read them, and only we may put one there.
        instance::prepare(&self.dir).map_err(|error| failed(&self.dir)(io::Error::other(error)))?;
        let dir = self.dir.join(id.to_string());
        let add = || {
            fs::create_dir(&dir)?;
            let lock = lock(&dir)?.ok_or(io::ErrorKind::ResourceBusy)?;
            let (created_at, config) = (SystemTime::now(), config.clone());
            let record = Record { id, created_at, config, image, stop: None };
            let kept = Kept { scratch: dir.join("scratch.ext4"), dir: dir.clone(), record, _lock: lock };
            write(&dir, "box.json", &kept.record)?;
            Ok(kept)
        };
        add().map_err(failed(&self.dir))
    }

    /// All that no living host has. One that cannot be read is left where it is.
    pub(crate) fn take_in(&self) -> Result<Vec<Kept>, KeepError> {
        let mut kept = Vec::new();
        if !self.dir.exists() {
            return Ok(kept);
        }
        instance::prepare(&self.dir).map_err(|error| failed(&self.dir)(io::Error::other(error)))?;
        for entry in fs::read_dir(&self.dir).map_err(failed(&self.dir))? {
            let dir = entry.map_err(failed(&self.dir))?.path();
            match Kept::open(dir.clone()) {
                Ok(Some(one)) => kept.push(one),
                Ok(None) => {}
                Err(error) => warn!(dir = %dir.display(), %error, "could not read a persistent sandbox"),
            }
        }
        Ok(kept)
    }
}

/// A sandbox that is kept, for as long as this is held by its host.
#[derive(Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
    scratch: PathBuf,
    record: Record,
    _lock: File,
}

impl Kept {
    /// `None` for one that another host has.
    fn open(dir: PathBuf) -> io::Result<Option<Self>> {
        let record = serde_json::from_slice(&fs::read(dir.join("box.json"))?)?;
        let Some(lock) = lock(&dir)? else { return Ok(None) };
        Ok(Some(Self { scratch: dir.join("scratch.ext4"), record, dir, _lock: lock }))
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Its writable disk, which may not be there yet.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// What its main program had printed.
    pub(crate) fn journal(&self) -> Vec<LogRecord> {
        let read = fs::read(self.dir.join("log.json"));
        read.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Writes how it ended, and what its main program has printed.
    pub(crate) fn save(&self, stop: Option<Stop>, log: &[LogRecord]) -> Result<(), KeepError> {
        let record = Record { stop, ..self.record.clone() };
        let saved = write(&self.dir, "log.json", &log).and_then(|()| write(&self.dir, "box.json", &record));
        saved.map_err(failed(&self.dir))
    }

    /// Removes all of it.
    pub(crate) fn remove(&self) -> Result<(), KeepError> {
        fs::remove_dir_all(&self.dir).map_err(failed(&self.dir))
    }
}

/// The lock of the sandbox in `dir`; `None` if a living host holds it.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file whole or not at all, also when the power fails.
fn write(dir: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::LogStream;

    #[test]
    fn what_is_kept_is_taken_in_by_the_next_host_and_no_other() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        let config = BoxConfig { persistent: true, name: "db".into(), ..BoxConfig::default() };
        let id = SandboxId::random();
        let kept = boxes.add(id, &config, None).unwrap();
        fs::write(kept.scratch(), "disk").unwrap();
        let log = LogRecord { time: SystemTime::now(), stream: LogStream::Stdout, data: "up".into() };
        let stop = Stop { exit_code: 3, out_of_memory: false };
        kept.save(Some(stop), std::slice::from_ref(&log)).unwrap();
        assert!(boxes.take_in().unwrap().is_empty(), "a living host has it");
        drop(kept);
        let kept = boxes.take_in().unwrap().pop().unwrap();
        assert_eq!((kept.record().id, &kept.record().config, kept.record().stop), (id, &config, Some(stop)));
        assert_eq!((kept.journal(), fs::read_to_string(kept.scratch()).unwrap()), (vec![log], "disk".into()));
        kept.remove().unwrap();
        drop(kept);
        assert!(boxes.take_in().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        let dir = boxes.dir.join("half");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("box.json"), "{").unwrap();
        assert!(boxes.take_in().unwrap().is_empty());
        assert!(dir.join("box.json").exists());
    }
}
