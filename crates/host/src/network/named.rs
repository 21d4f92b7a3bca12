//! Named networks: what is kept of each, and the switches of those that sandboxes of this host are on.
//!
//! ```text
//! DIR/NAME.json   the record; who has sandboxes on the network holds a lock of it, shared
//! ```
//!
//! Hosts lock DIR itself while they add a network, remove one, or begin to use one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bouvet_net::{Crowded, Member, Subnet, Switch};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::boxconfig::InvalidConfig;
use crate::boxconfig::plan::check_name;
use crate::lock::Lock;
use crate::{boxes, instance};

/// Networks that hosts with the same directory may have.
const MAX_NETWORKS: usize = 256;
/// Names that mean something else where a network is named.
const RESERVED: [&str; 2] = ["none", "tsi"];

/// Why a named network was not made, not used or not removed.
///
/// ```no_run
/// use bouvet_host::NamedNetworkError;
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.create_network("agents", None) {
///     Ok(network) => println!("{}", network.ipv4),
///     Err(NamedNetworkError::Taken(name)) => println!("{name} is there already"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum NamedNetworkError {
    /// Its name or its addresses are none.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// There is one of this name.
    #[error("there is a network `{0}` already")]
    Taken(String),
    /// There is none of this name.
    #[error("there is no network `{0}`")]
    None(String),
    /// Sandboxes are on it.
    #[error("the network `{name}` is in use by {by}")]
    InUse {
        /// Its name.
        name: String,
        /// The names or ids of those of this host, or that it is another host which uses it.
        by: String,
    },
    /// There are as many as may be.
    #[error("there are {MAX_NETWORKS} networks, which is the limit")]
    TooMany,
    /// As many sandboxes as may be are on it.
    #[error(transparent)]
    Crowded(#[from] Crowded),
    /// This host has none.
    #[error("this host has no directory for networks")]
    NoStore,
    /// What is kept of them could not be read or written.
    #[error("could not use networks in `{dir}`")]
    Store {
        /// Where.
        dir: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What is kept of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub(crate) name: String,
    pub(crate) subnet: Subnet,
    pub(crate) created_at: SystemTime,
}

/// The named networks that a host knows.
#[derive(Debug)]
pub(crate) struct Networks {
    dir: Option<PathBuf>,
    /// Those that sandboxes of this host are on.
    used: Mutex<HashMap<String, Used>>,
}

#[derive(Debug)]
struct Used {
    switch: Switch,
    /// Keeps other hosts from removing it.
    _lock: Lock,
}

impl Networks {
    /// Keeps networks in `dir`, which is made for the first.
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, used: Mutex::default() }
    }

    /// Makes one at `subnet`, or where no other is.
    pub(crate) fn create(
        &self,
        name: &str,
        subnet: Option<&str>,
    ) -> Result<NetworkRecord, NamedNetworkError> {
        check_name("name", name)?;
        if RESERVED.contains(&name) {
            return Err(InvalidConfig::text("name", name, "other names are allowed").into());
        }
        let wanted = subnet.map(|text| {
            text.parse::<Subnet>().map_err(|error| InvalidConfig::text("subnet", text, error.to_string()))
        });
        let wanted = wanted.transpose()?;
        let store = self.store()?;
        store.make()?;
        let _all = store.lock()?;
        let records = store.records()?;
        if records.iter().any(|record| record.name == name) {
            return Err(NamedNetworkError::Taken(name.to_owned()));
        }
        if records.len() >= MAX_NETWORKS {
            return Err(NamedNetworkError::TooMany);
        }
        let subnet = match wanted {
            Some(subnet) => subnet,
            None => free(&records).ok_or(NamedNetworkError::TooMany)?,
        };
        let record = NetworkRecord { name: name.to_owned(), subnet, created_at: SystemTime::now() };
        boxes::write(store.0, &file_name(name), &record).map_err(store.failed())?;
        Ok(record)
    }

    /// All that there are, by name.
    pub(crate) fn list(&self) -> Result<Vec<NetworkRecord>, NamedNetworkError> {
        match &self.dir {
            Some(dir) if dir.exists() => Store(dir).records(),
            _ => Ok(Vec::new()),
        }
    }

    /// Removes one that nobody is on.
    pub(crate) fn remove(&self, name: &str) -> Result<(), NamedNetworkError> {
        self.let_go();
        let (store, none) = (self.store()?, || NamedNetworkError::None(name.to_owned()));
        if check_name("name", name).is_err() || !store.0.exists() {
            return Err(none());
        }
        let _all = store.lock()?;
        match store.lock_record(name, FlockOperation::NonBlockingLockExclusive) {
            Ok(_lock) => fs::remove_file(store.0.join(file_name(name))).map_err(store.failed()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(none()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(NamedNetworkError::InUse { name: name.to_owned(), by: "another host".into() })
            }
            Err(error) => Err(store.failed()(error)),
        }
    }

    /// A place on one for a sandbox.
    pub(crate) fn join(&self, name: &str) -> Result<Member, NamedNetworkError> {
        let mut used = self.used();
        if let Some(Used { switch, .. }) = used.get(name) {
            return Ok(switch.join()?);
        }
        let (store, none) = (self.store()?, || NamedNetworkError::None(name.to_owned()));
        if !store.0.exists() {
            return Err(none());
        }
        let _all = store.lock()?;
        let lock = match store.lock_record(name, FlockOperation::NonBlockingLockShared) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
            lock => lock.map_err(store.failed())?,
        };
        let record = store.record(&file_name(name)).map_err(store.failed())?;
        let switch = Switch::new(record.subnet);
        let member = switch.join()?;
        used.insert(name.to_owned(), Used { switch, _lock: lock });
        Ok(member)
    }

    /// Lets others remove networks that no sandbox of this host is on any more.
    pub(crate) fn let_go(&self) {
        self.used().retain(|_, used| !used.switch.is_empty());
    }

    fn used(&self) -> MutexGuard<'_, HashMap<String, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Result<Store<'_>, NamedNetworkError> {
        self.dir.as_deref().map(Store).ok_or(NamedNetworkError::NoStore)
    }
}

fn file_name(name: &str) -> String {
    format!("{name}.json")
}

/// The first of our blocks that meets none that is taken. They are where few networks are, so that few of a machine's own
/// are hidden from its sandboxes.
fn free(records: &[NetworkRecord]) -> Option<Subnet> {
    let blocks = (0..=u8::MAX).filter_map(|block| format!("10.213.{block}.0/24").parse::<Subnet>().ok());
    blocks.into_iter().find(|block| !records.iter().any(|record| record.subnet.overlaps(block)))
}

/// The directory.
struct Store<'a>(&'a Path);

impl Store<'_> {
    fn make(&self) -> Result<(), NamedNetworkError> {
        instance::prepare(self.0).map_err(|error| self.failed()(io::Error::other(error)))
    }

    fn lock(&self) -> Result<Lock, NamedNetworkError> {
        let lock = File::open(self.0).and_then(|dir| Lock::of(dir, FlockOperation::LockExclusive));
        lock.map_err(self.failed())
    }

    fn lock_record(&self, name: &str, how: FlockOperation) -> io::Result<Lock> {
        Lock::of(File::open(self.0.join(file_name(name)))?, how)
    }

    fn record(&self, file_name: &str) -> io::Result<NetworkRecord> {
        Ok(serde_json::from_slice(&fs::read(self.0.join(file_name))?)?)
    }

    /// By name. What is being written has another ending.
    fn records(&self) -> Result<Vec<NetworkRecord>, NamedNetworkError> {
        let read = || {
            let mut records = Vec::new();
            for entry in fs::read_dir(self.0)? {
                let file_name = entry?.file_name();
                let Some(file_name) = file_name.to_str().filter(|name| name.ends_with(".json")) else {
                    continue;
                };
                match self.record(file_name) {
                    // Another host has just removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    record => records.push(record?),
                }
            }
            records.sort_by(|one: &NetworkRecord, other| one.name.cmp(&other.name));
            Ok(records)
        };
        read().map_err(self.failed())
    }

    fn failed(&self) -> impl Fn(io::Error) -> NamedNetworkError + use<> {
        let dir = self.0.to_owned();
        move |source| NamedNetworkError::Store { dir: dir.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_hosts() -> (tempfile::TempDir, Networks, Networks) {
        let parent = tempfile::tempdir().unwrap();
        let networks = || Networks::new(Some(parent.path().join("networks")));
        let (one, other) = (networks(), networks());
        (parent, one, other)
    }

    fn names(networks: &Networks) -> Vec<String> {
        networks.list().unwrap().into_iter().map(|record| record.name).collect()
    }

    #[test]
    fn a_network_is_there_for_all_hosts_until_it_is_removed() {
        let (_parent, one, other) = two_hosts();
        assert_eq!(names(&one), [""; 0]);
        let at = |networks: &Networks, name: &str, subnet: Option<&str>| {
            networks.create(name, subnet).unwrap().subnet.to_string()
        };
        assert_eq!(at(&one, "web", None), "10.213.0.0/24");
        assert_eq!(at(&other, "agents", None), "10.213.1.0/24");
        assert_eq!(at(&one, "wide", Some("10.213.2.0/23")), "10.213.2.0/23");
        assert_eq!(at(&one, "next", None), "10.213.4.0/24");
        assert!(matches!(other.create("web", None), Err(NamedNetworkError::Taken(_))));
        assert_eq!(names(&one), ["agents", "next", "web", "wide"]);
        other.remove("web").unwrap();
        assert!(matches!(one.remove("web"), Err(NamedNetworkError::None(_))));
        assert!(matches!(one.join("web"), Err(NamedNetworkError::None(_))));
        assert_eq!(names(&one), ["agents", "next", "wide"]);
        assert_eq!(at(&one, "again", None), "10.213.0.0/24");
    }

    #[test]
    fn what_is_in_use_is_not_removed() {
        let (_parent, one, other) = two_hosts();
        one.create("web", None).unwrap();
        let (first, second) = (one.join("web").unwrap(), one.join("web").unwrap());
        assert_ne!(first.addresses(), second.addresses());
        let theirs = other.join("web").unwrap();
        for networks in [&one, &other] {
            assert!(matches!(networks.remove("web"), Err(NamedNetworkError::InUse { .. })));
        }
        drop((first, second));
        one.let_go();
        assert!(matches!(one.remove("web"), Err(NamedNetworkError::InUse { .. })), "the other host uses it");
        drop(theirs);
        assert!(matches!(one.remove("web"), Err(NamedNetworkError::InUse { .. })), "it has not let go");
        other.let_go();
        one.remove("web").unwrap();
    }

    #[test]
    fn wrong_ones_change_nothing() {
        let (parent, networks, _) = two_hosts();
        for name in ["", "none", "tsi", "a b", "../x", ".x", &"x".repeat(65)] {
            let error = networks.create(name, None).unwrap_err();
            assert!(matches!(&error, NamedNetworkError::Invalid(error) if error.field == "name"), "{name}");
            assert!(matches!(networks.remove(name), Err(NamedNetworkError::None(_))), "{name}");
        }
        for subnet in ["", "10.0.0.0/30", "8.8.8.0/24", "fd00::/64"] {
            let error = networks.create("web", Some(subnet)).unwrap_err();
            assert!(
                matches!(&error, NamedNetworkError::Invalid(error) if error.field == "subnet"),
                "{subnet}"
            );
        }
        assert!(!parent.path().join("networks").exists());
        let none = Networks::new(None);
        assert!(matches!(none.create("web", None), Err(NamedNetworkError::NoStore)));
        assert!(matches!(none.join("web"), Err(NamedNetworkError::NoStore)));
        assert_eq!(names(&none), [""; 0]);
    }

    #[test]
    fn as_many_are_made_as_may_be() {
        let (_parent, networks, _) = two_hosts();
        for number in 0..MAX_NETWORKS {
            networks.create(&format!("n{number}"), None).unwrap();
        }
        assert!(matches!(networks.create("more", None), Err(NamedNetworkError::TooMany)));
        assert!(matches!(networks.create("more", Some("10.1.0.0/24")), Err(NamedNetworkError::TooMany)));
        networks.remove("n7").unwrap();
        assert_eq!(networks.create("more", None).unwrap().subnet.to_string(), "10.213.7.0/24");
    }

    #[test]
    fn a_full_disk_makes_no_network() {
        let (parent, networks, _) = two_hosts();
        networks.create("web", None).unwrap();
        boxes::tests::fill(&parent.path().join("networks"), "next.json");
        let error = networks.create("next", None).unwrap_err();
        assert!(
            matches!(&error, NamedNetworkError::Store { source, .. } if source.kind() == io::ErrorKind::StorageFull)
        );
        assert_eq!(names(&networks), ["web"]);
        networks.create("next", None).unwrap();
    }

    #[test]
    fn what_a_killed_host_had_half_written_is_no_network() {
        let (parent, networks, _) = two_hosts();
        networks.create("web", None).unwrap();
        fs::write(parent.path().join("networks/next.json.new"), "{\"name\"").unwrap();
        assert_eq!(names(&networks), ["web"]);
        assert!(matches!(networks.join("next"), Err(NamedNetworkError::None(_))));
        networks.create("next", None).unwrap();
        assert_eq!(names(&networks), ["next", "web"]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let (parent, networks, _) = two_hosts();
        networks.create("web", None).unwrap();
        fs::write(parent.path().join("networks/web.json"), "{").unwrap();
        assert!(matches!(networks.list(), Err(NamedNetworkError::Store { .. })));
        assert!(matches!(networks.join("web"), Err(NamedNetworkError::Store { .. })));
        networks.remove("web").unwrap();
        assert_eq!(names(&networks), [""; 0]);
    }
}
