//! What a host stands on: its directory, its range of user ids, its cgroups.

use std::fs;
use std::io;
use std::path::Path;

use tracing::warn;

use super::{HostOptions, StartError};
use crate::cgroup;
use crate::instance::Instance;

/// Distance between the first user ids of two hosts: more than one can use.
const UIDS_PER_HOST: u32 = 10_000;
/// Where the hosts of a machine tell their ranges of user ids apart.
const UID_CLAIMS: &str = "/run/bouvet/uids";

/// What a host stands on, and gives back at its end.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) instance: Instance,
    /// Its range of user ids; only root has any to give.
    pub(super) uids: Option<Instance>,
    pub(super) cgroups: Option<cgroup::Parent>,
}

impl Ground {
    pub(super) fn claim(options: &HostOptions) -> Result<Self, StartError> {
        let clear = |dir: &Path| cgroup::Parent::reap(&options.cgroup, &cgroup_name(dir));
        let instance = Instance::claim(&options.dir, clear)?;
        let mut ground = Self { instance, uids: None, cgroups: None };
        match ground.claim_rest(options) {
            Ok(()) => Ok(ground),
            Err(error) => {
                ground.give_back();
                Err(error)
            }
        }
    }

    fn claim_rest(&mut self, options: &HostOptions) -> Result<(), StartError> {
        if !options.engine.has_vms() {
            return Ok(());
        }
        if rustix::process::geteuid().is_root() {
            self.uids = Some(Instance::claim(Path::new(UID_CLAIMS), |_| {})?);
        }
        self.cgroups = cgroup::Parent::prepare(&options.cgroup, &cgroup_name(&self.instance.dir))?;
        Ok(())
    }

    /// The first of the user ids that are its VMs' own, if any are.
    pub(super) fn first_uid(&self, options: &HostOptions) -> Option<u32> {
        self.uids.as_ref().map(|claim| options.first_uid + claim.number * UIDS_PER_HOST)
    }

    pub(super) fn give_back(&self) {
        let warn = |what: &str, error: io::Error| warn!(%error, "could not remove the host's {what}");
        if let Some(Err(error)) = self.cgroups.as_ref().map(cgroup::Parent::remove) {
            warn("cgroup", error);
        }
        if let Some(Err(error)) = self.uids.as_ref().map(Instance::remove) {
            warn("claim on user ids", error);
        }
        if let Err(error) = self.instance.remove() {
            warn("directory", error);
        }
    }
}

/// One name per directory, so that two hosts on one machine do not reap each other's VMs.
fn cgroup_name(dir: &Path) -> String {
    let path = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut name = String::from("bouvet");
    for part in path.components().filter_map(|part| part.as_os_str().to_str()).filter(|part| *part != "/") {
        name.push('-');
        name.extend(part.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_names_tell_directories_apart() {
        assert_eq!(cgroup_name(Path::new("/nonexistent/bouvet")), "bouvet-nonexistent-bouvet");
        assert_ne!(cgroup_name(Path::new("/nonexistent/a/b")), cgroup_name(Path::new("/nonexistent/a-b")));
    }
}
