//! What is checked when a sandbox is made, and not of those that were kept: earlier versions took more.

use std::fs;

use bouvet_wire::volume::{BadTarget, check_target};

use super::InvalidConfig;
use super::limits::{self, Limits};
use super::plan::{Plan, check_name};
use super::tmpfs::Tmpfs;
use crate::sandbox::SandboxId;
use crate::volume::VolumeSpec;

/// The CPUs that run: numbers and ranges, as in a cpuset.
const ONLINE_CPUS: &str = "/sys/devices/system/cpu/online";
/// Where the guest keeps its own files in a file system that it mounts there itself, beside any other.
const RUN: &str = "/run";

impl Plan {
    /// Whether a sandbox of this could start on any machine.
    pub(super) fn check_fresh(&self) -> Result<(), InvalidConfig> {
        self.tmpfs.iter().try_for_each(check_tmpfs)?;
        check_ulimits(&self.limits)
    }

    /// Whether this machine has what it names. Reads files.
    pub(crate) fn check_here(&self) -> Result<(), InvalidConfig> {
        VolumeSpec::validate_all(&self.volumes)?;
        let Some(wanted) = &self.limits.cpuset else { return Ok(()) };
        // Where the kernel does not tell, it refuses when the sandbox starts.
        let online = fs::read_to_string(ONLINE_CPUS).unwrap_or_default();
        check_cpus(wanted, online.trim())
    }
}

/// Whether a sandbox may be given this name from now on: no id can be taken for one.
pub(crate) fn check_new_name(name: &str) -> Result<(), InvalidConfig> {
    check_name("name", name)?;
    if name.parse::<SandboxId>().is_err() {
        return Ok(());
    }
    Err(InvalidConfig::text(
        "name",
        name,
        "anything but 32 hexadecimal digits or a UUID is allowed: ids are such",
    ))
}

/// As for volumes, but that `/run` may be one, and a path may be written longer.
fn check_tmpfs(tmpfs: &Tmpfs) -> Result<(), InvalidConfig> {
    let parts: Vec<_> = tmpfs.path.split('/').filter(|part| !part.is_empty()).collect();
    let path = format!("/{}", parts.join("/"));
    match check_target(&path) {
        Err(BadTarget::Reserved) if path == RUN => Ok(()),
        Err(bad) => {
            let allowed = bad.to_string().replace("at `/run`, or ", "or ");
            Err(InvalidConfig::text("tmpfs", &tmpfs.path, allowed))
        }
        Ok(()) => Ok(()),
    }
}

fn check_ulimits(limits: &Limits) -> Result<(), InvalidConfig> {
    let Some(name) = limits.ulimits.iter().find_map(|ulimit| ulimit.lets_nothing_run()) else {
        return Ok(());
    };
    let allowed = "1 and more are allowed for `nproc`, `as`, `data` and `stack`: with 0 no program can run";
    Err(InvalidConfig::text("resource_limits.ulimits", &format!("{name}=0"), allowed))
}

fn check_cpus(wanted: &str, online: &str) -> Result<(), InvalidConfig> {
    let (Some(wanted_cpus), Some(cpus)) = (limits::cpus(wanted), limits::cpus(online)) else { return Ok(()) };
    let is_there = |cpu: u32| cpus.iter().any(|range| range.contains(&cpu));
    if wanted_cpus.into_iter().flatten().all(is_there) {
        return Ok(());
    }
    let allowed = format!("this machine has the CPUs {online}");
    Err(InvalidConfig::text("resource_limits.cpuset_cpus", wanted, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxconfig::{BoxConfig, ResourceLimits};

    fn refused(config: &BoxConfig) -> Option<&'static str> {
        assert!(config.plan().is_ok(), "one that was kept is known all the same");
        let fresh = config.validate().and_then(|()| config.plan()?.check_here());
        fresh.err().map(|error| error.field)
    }

    #[test]
    fn tmpfs_over_the_guest_is_refused() {
        let tmpfs = |path: &str| refused(&BoxConfig { tmpfs: vec![path.into()], ..BoxConfig::default() });
        for right in ["/run", "/run/", "/run/lock", "/tmp:size=1m", "/tmp/", "/devices", "//data"] {
            assert_eq!(tmpfs(right), None, "{right}");
        }
        for wrong in [
            "/proc",
            "/proc/",
            "//proc",
            "/sys/fs",
            "/dev",
            "/dev/shm:size=1m",
            "/run/bouvet",
            "/run/bouvet/x",
        ] {
            assert_eq!(tmpfs(wrong), Some("tmpfs"), "{wrong}");
        }
    }

    #[test]
    fn names_like_ids_are_refused() {
        let id = SandboxId::random().to_string();
        let plain: String = id.chars().filter(|c| *c != '-').collect();
        for wrong in [&id, &plain, &id.to_uppercase(), &plain.to_uppercase()] {
            let name = wrong.clone();
            assert_eq!(refused(&BoxConfig { name, ..BoxConfig::default() }), Some("name"), "{wrong}");
            assert_eq!(check_new_name(wrong).unwrap_err().field, "name");
        }
        for right in [&plain[..31], &format!("{plain}0"), "web", "deadbeef"] {
            assert_eq!(check_new_name(right), Ok(()), "{right}");
        }
    }

    #[test]
    fn volumes_without_source_are_refused() {
        let volume = |text: &str| refused(&BoxConfig { volumes: vec![text.into()], ..BoxConfig::default() });
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("{}:/x", dir.path().join(name).display());
        assert_eq!(volume(&at("")), None);
        for wrong in [&at("nothing"), "/dev/null:/x", "relative:/x"] {
            assert_eq!(volume(wrong), Some("volumes"), "{wrong}");
        }
        let workspace = dir.path().join("nothing");
        assert_eq!(refused(&BoxConfig { workspace, ..BoxConfig::default() }), Some("volumes"));
    }

    #[test]
    fn cpus_that_are_missing_are_refused() {
        assert!(check_cpus("0,3", "0-1,3").is_ok() && check_cpus("0-1", "0-1,3").is_ok());
        for wrong in ["2", "1-3", "4", "4095"] {
            let error = check_cpus(wrong, "0-1,3").unwrap_err();
            assert_eq!(error.allowed, "this machine has the CPUs 0-1,3", "{wrong}");
        }
        let limits = ResourceLimits { cpuset_cpus: Some("4095".into()), ..ResourceLimits::default() };
        let config = BoxConfig { resource_limits: limits, ..BoxConfig::default() };
        assert_eq!(refused(&config), Some("resource_limits.cpuset_cpus"));
    }

    #[test]
    fn limits_without_any_program_are_refused() {
        let ulimit = |text: &str| {
            let limits = ResourceLimits { ulimits: vec![text.into()], ..ResourceLimits::default() };
            refused(&BoxConfig { resource_limits: limits, ..BoxConfig::default() })
        };
        for right in ["nproc=1", "core=0", "fsize=0", "memlock=0:1", "nofile=0:1024"] {
            assert_eq!(ulimit(right), None, "{right}");
        }
        for wrong in ["nproc=0", "nproc=0:10", "as=0", "data=0:-1", "stack=0"] {
            assert_eq!(ulimit(wrong), Some("resource_limits.ulimits"), "{wrong}");
        }
    }
}
