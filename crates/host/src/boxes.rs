//! Persistent sandboxes on disk: what each was asked to be, how it ended last, and all that it wrote.
//!
//! ```text
//! DIR/ID/box.json       the record
//! DIR/ID/scratch.ext4   its writable disk
//! DIR/ID/log.json       the end of what its main program printed
//! DIR/ID/policy.json    what it may reach, once that was changed
//! DIR/ID/name.json      what it is called, once that was changed
//! DIR/ID/lock           held by the host that has it
//! ```
//!
//! Hosts lock DIR itself while they add a sandbox or look through all: what has no record then is what a host that was
//! killed had begun to add or to remove.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bouvet_net::Policy;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::boxconfig::BoxConfig;
use crate::host::GroundRecord;
use crate::instance;
use crate::journal::LogRecord;
use crate::lock::Lock;
use crate::sandbox::SandboxId;
use crate::sandbox::life::Runs;
use crate::sandbox::state::{State, Stop};

const RECORD: &str = "box.json";
const POLICY: &str = "policy.json";
const NAME: &str = "name.json";

/// Why a sandbox could not be kept.
///
/// ```no_run
/// use bouvet_host::{Host, HostOptions, KeepError, StartError};
///
/// # async fn example(options: HostOptions) {
/// if let Err(StartError::Boxes(KeepError { dir, source })) = Host::start(options).await {
///     eprintln!("persistent sandboxes cannot be kept in {}: {source}", dir.display());
/// }
/// # }
/// ```
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
    /// What it was made from, below what it wrote.
    #[serde(flatten)]
    pub(crate) ground: GroundRecord,
    /// How it came to rest last. `None`: it has not, or its host was killed.
    pub(crate) end: Option<Ending>,
    #[serde(default)]
    pub(crate) runs: Runs,
}

/// How a sandbox came to rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// It was never started.
    Created,
    Stopped(Stop),
    Failed(String),
}

impl Ending {
    fn of(state: State) -> Option<Self> {
        match state {
            State::Created => Some(Self::Created),
            State::Stopped(stop) => Some(Self::Stopped(stop)),
            State::Failed(reason) => Some(Self::Failed(reason)),
            _ => None,
        }
    }
}

impl Record {
    /// What it is when a host takes it in.
    pub(crate) fn state(&self) -> State {
        match &self.end {
            Some(Ending::Created) => State::Created,
            Some(Ending::Stopped(stop)) => State::Stopped(*stop),
            Some(Ending::Failed(reason)) => State::Failed(reason.clone()),
            None => State::Failed("its host ended without stopping it".into()),
        }
    }
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
        ground: GroundRecord,
    ) -> Result<Kept, KeepError> {
        // Disks hold what their sandboxes wrote: only we may read them, and only we may put one there.
        instance::prepare(&self.dir).map_err(|error| failed(&self.dir)(io::Error::other(error)))?;
        let dir = self.dir_of(id);
        let fill = || {
            let lock = lock(&dir)?.ok_or(io::ErrorKind::ResourceBusy)?;
            let (created_at, config) = (SystemTime::now(), config.clone());
            let record = Record { id, created_at, config, ground, end: None, runs: Runs::default() };
            let kept = Kept { scratch: dir.join("scratch.ext4"), dir: dir.clone(), record, _lock: lock };
            write(&dir, RECORD, &kept.record)?;
            Ok(kept)
        };
        let add = || {
            let _all = self.lock_all()?;
            fs::create_dir(&dir)?;
            fill().inspect_err(|_| {
                // What cannot be removed now, the next host removes: it has no record.
                fs::remove_dir_all(&dir).ok();
            })
        };
        add().map_err(failed(&self.dir))
    }

    /// Where all are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The ids of the images that sandboxes here were made from, of all hosts. An error if one of them is not known.
    pub(crate) fn images(&self) -> Result<Vec<String>, KeepError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&self.dir))?,
        };
        let mut images = Vec::new();
        for entry in entries {
            let dir = entry.map_err(failed(&self.dir))?.path();
            let text = match fs::read(dir.join(RECORD)) {
                // What has no record is not a sandbox.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                text => text.map_err(failed(&dir))?,
            };
            // All else may be from another version, or damaged.
            let ground: GroundRecord =
                serde_json::from_slice(&text).map_err(|error| failed(&dir)(error.into()))?;
            images.extend([ground.image, ground.sidecar].into_iter().flatten().map(|image| image.id));
        }
        Ok(images)
    }

    /// Where a sandbox is, or would be.
    pub(crate) fn dir_of(&self, id: SandboxId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// All that no living host has. One that cannot be read is left where it is.
    pub(crate) fn take_in(&self) -> Result<Vec<Kept>, KeepError> {
        let mut kept = Vec::new();
        if !self.dir.exists() {
            return Ok(kept);
        }
        instance::prepare(&self.dir).map_err(|error| failed(&self.dir)(io::Error::other(error)))?;
        let _all = self.lock_all().map_err(failed(&self.dir))?;
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

    /// Waits for other hosts that add or look through.
    fn lock_all(&self) -> io::Result<Lock> {
        let dir = File::open(&self.dir)?;
        Lock::of(dir, FlockOperation::LockExclusive)
    }
}

/// A sandbox that is kept, for as long as this is held by its host.
#[derive(Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
    scratch: PathBuf,
    record: Record,
    _lock: Lock,
}

impl Kept {
    /// `None` for one that another host has, and for the rest of one, which is removed.
    fn open(dir: PathBuf) -> io::Result<Option<Self>> {
        let id = dir.file_name().and_then(|name| name.to_str()?.parse::<SandboxId>().ok());
        let id = id.filter(|id| dir.ends_with(id.to_string()));
        let id = id.ok_or_else(|| io::Error::other("it is not called as sandboxes are"))?;
        let lock = match lock(&dir) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(None),
            // Another host has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // What it was before it was locked is no longer true.
        let text = match fs::read(dir.join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                warn!(sandbox = %id, "removing what is left of a sandbox whose host was killed");
                fs::remove_dir_all(&dir)?;
                return Ok(None);
            }
            text => text?,
        };
        let record: Record = serde_json::from_slice(&text)?;
        if record.id != id {
            return Err(io::Error::other("its record is another sandbox's"));
        }
        Ok(Some(Self { scratch: dir.join("scratch.ext4"), record, dir, _lock: lock }))
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// What it may reach, if that was changed since it was made. What cannot be read must not be taken for nothing.
    pub(crate) fn policy(&self) -> Result<Option<Policy>, KeepError> {
        let text = match fs::read(self.dir.join(POLICY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed(&self.dir))?,
        };
        let policy = serde_json::from_slice(&text).map_err(|error| failed(&self.dir)(error.into()))?;
        Ok(Some(policy))
    }

    /// The sandbox's name, if it was changed since its creation.
    pub(crate) fn name(&self) -> Result<Option<String>, KeepError> {
        let text = match fs::read(self.dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed(&self.dir))?,
        };
        Ok(Some(serde_json::from_slice(&text).map_err(|error| failed(&self.dir)(error.into()))?))
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

    /// Writes whether and how it has ended, and what its main program has printed.
    pub(crate) fn save(&self, state: State, runs: Runs, log: &[LogRecord]) -> Result<(), KeepError> {
        let record = Record { end: Ending::of(state), runs, ..self.record.clone() };
        let saved = write(&self.dir, "log.json", &log).and_then(|()| write(&self.dir, RECORD, &record));
        saved.map_err(failed(&self.dir))
    }

    /// Removes all of it, the record first: without it nobody starts what is left.
    pub(crate) fn remove(&self) -> Result<(), KeepError> {
        let removed = fs::remove_file(self.dir.join(RECORD)).and_then(|()| fs::remove_dir_all(&self.dir));
        removed.map_err(failed(&self.dir))
    }
}

/// Keeps what the sandbox in `dir` may reach from now on.
pub(crate) fn keep_policy(dir: &Path, policy: &Policy) -> Result<(), KeepError> {
    write(dir, POLICY, policy).map_err(failed(dir))
}

/// Keeps what the sandbox in `dir` is called from now on.
pub(crate) fn keep_name(dir: &Path, name: &str) -> Result<(), KeepError> {
    write(dir, NAME, &name).map_err(failed(dir))
}

/// The lock of the sandbox in `dir`; `None` if a living host holds it.
fn lock(dir: &Path) -> io::Result<Option<Lock>> {
    let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock"))?;
    match Lock::of(lock, FlockOperation::NonBlockingLockExclusive) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        lock => lock.map(Some),
    }
}

/// Writes a file whole or not at all, also when the power fails.
pub(crate) fn write(dir: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let text = serde_json::to_vec(content)?;
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, dir.join(name))
    };
    write().inspect_err(|_| {
        // Half of one may have secrets in it, and takes what a full disk lacks.
        fs::remove_file(&new).ok();
    })?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;
    use crate::blueprint::ImageWords;
    use crate::boxconfig::SecretConfig;
    use crate::host::ImageRecord;
    use crate::journal::LogStream;

    #[test]
    fn what_is_kept_is_taken_in_by_the_next_host_and_no_other() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        let config = BoxConfig { persistent: true, name: "db".into(), ..BoxConfig::default() };
        let id = SandboxId::random();
        let kept = boxes.add(id, &config, GroundRecord::default()).unwrap();
        fs::write(kept.scratch(), "disk").unwrap();
        let log = LogRecord { time: SystemTime::now(), stream: LogStream::Stdout, data: "up".into() };
        let state = State::Stopped(Stop { exit_code: 3, out_of_memory: false });
        kept.save(state.clone(), Runs::default(), std::slice::from_ref(&log)).unwrap();
        assert!(boxes.take_in().unwrap().is_empty(), "a living host has it");
        drop(kept);
        let kept = boxes.take_in().unwrap().pop().unwrap();
        assert_eq!((kept.record().id, &kept.record().config, kept.record().state()), (id, &config, state));
        assert_eq!(kept.policy().unwrap(), None);
        let policy = Policy { allow: vec!["a.example".parse().unwrap()], deny: Vec::new() };
        keep_policy(&boxes.dir_of(id), &policy).unwrap();
        assert_eq!(kept.policy().unwrap(), Some(policy));
        fs::write(boxes.dir_of(id).join(POLICY), "{").unwrap();
        assert!(kept.policy().is_err(), "it is not taken for an open one");
        assert_eq!((kept.journal(), fs::read_to_string(kept.scratch()).unwrap()), (vec![log], "disk".into()));
        kept.remove().unwrap();
        drop(kept);
        assert!(boxes.take_in().unwrap().is_empty());
    }

    /// Such an image was taken for unused, and removed.
    #[test]
    fn images_of_unreadable_records_are_unknown() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        assert_eq!(boxes.images().unwrap(), Vec::<String>::new(), "nothing was kept yet");
        let image = |id: &str| Some(ImageRecord { id: id.into(), words: ImageWords::default() });
        let ground = GroundRecord { image: image("sha256:1"), sidecar: image("sha256:2") };
        let kept = boxes.add(SandboxId::random(), &BoxConfig::default(), ground).unwrap();
        fs::write(boxes.dir.join("not a directory"), "").unwrap();
        fs::create_dir(boxes.dir.join("without a record")).unwrap();
        assert_eq!(boxes.images().unwrap(), ["sha256:1", "sha256:2"]);
        let record = kept.dir.join(RECORD);
        let text = fs::read_to_string(&record).unwrap();
        fs::write(&record, text.replace("\"created_at\"", "\"made_at\"")).unwrap();
        assert_eq!(boxes.images().unwrap().len(), 2, "its images are named");
        for damaged in [&text[..text.len() / 2], "", "[]"] {
            fs::write(&record, damaged).unwrap();
            assert_eq!(boxes.images().unwrap_err().dir, kept.dir, "{damaged:?}");
        }
    }

    /// Has writing `name` in `dir` meet a full disk.
    pub(crate) fn fill(dir: &Path, name: &str) {
        std::os::unix::fs::symlink("/dev/full", dir.join(format!("{name}.new"))).unwrap();
    }

    #[test]
    fn a_full_disk_leaves_what_was_kept_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        let value = "hunter2".to_owned().into();
        let secret = SecretConfig { name: "KEY".into(), value, domains: vec!["a.example".into()] };
        let config = BoxConfig { persistent: true, secrets: vec![secret], ..BoxConfig::default() };
        let kept = boxes.add(SandboxId::random(), &config, GroundRecord::default()).unwrap();
        kept.save(State::Failed("before".into()), Runs::default(), &[]).unwrap();
        for name in [RECORD, "log.json"] {
            fill(&kept.dir, name);
            let error = kept.save(State::Running, Runs::default(), &[]).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::StorageFull, "{name}");
            assert!(!kept.dir.join(format!("{name}.new")).is_symlink(), "nothing of it is left");
        }
        drop(kept);
        let kept = boxes.take_in().unwrap().pop().unwrap();
        assert_eq!(kept.record().config, config, "with its secrets");
        assert_eq!(kept.record().state(), State::Failed("before".into()));
        kept.save(State::Running, Runs::default(), &[]).unwrap();
    }

    #[test]
    fn sandbox_that_cannot_be_kept_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        // Its record cannot be written, as on a full disk: a path in it is not text.
        let workspace = std::ffi::OsStr::from_bytes(b"/\xff").into();
        let config = BoxConfig { workspace, ..BoxConfig::default() };
        assert!(boxes.add(SandboxId::random(), &config, GroundRecord::default()).is_err());
        assert_eq!(fs::read_dir(&boxes.dir).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        for name in ["somebody's".to_owned(), SandboxId::random().to_string()] {
            let dir = boxes.dir.join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(RECORD), "{").unwrap();
            assert!(boxes.take_in().unwrap().is_empty());
            assert!(dir.join(RECORD).exists());
        }
    }

    #[test]
    fn the_state_says_how_a_host_left_a_sandbox() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        drop(boxes.add(SandboxId::random(), &BoxConfig::default(), GroundRecord::default()).unwrap());
        let state = |state: Option<State>| {
            let kept = boxes.take_in().unwrap().pop().unwrap();
            if let Some(state) = state {
                kept.save(state, Runs::default(), &[]).unwrap();
            }
            kept.record().state()
        };
        let killed = State::Failed("its host ended without stopping it".into());
        assert_eq!(state(Some(State::Failed("out of time".into()))), killed);
        assert_eq!(state(Some(State::Running)), State::Failed("out of time".into()));
        assert_eq!(state(None), killed);
    }

    #[test]
    fn what_a_killed_host_had_begun_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(parent.path().join("boxes"));
        let dir = boxes.dir.join(SandboxId::random().to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("scratch.ext4"), "x").unwrap();
        let busy = lock(&dir).unwrap();
        assert!(boxes.take_in().unwrap().is_empty());
        assert!(dir.exists(), "a living host removes it");
        drop(busy);
        assert!(boxes.take_in().unwrap().is_empty());
        assert!(!dir.exists());
    }
}
