//! A VM's share of the host: which CPUs, how much of them when they are scarce, which memory it keeps.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Cgroup, CgroupError, Parent, Version, refused, set};
use crate::boxconfig::limits::{Limits, Swap};

/// Controllers that a VM may need beside memory, by the names of their hierarchies in version 1.
const OTHERS: [&str; 2] = ["cpu", "cpuset"];

/// Gives `cgroup`, whose memory is limited to `memory_bytes`, what `limits` says.
pub(super) fn apply(
    parent: &Parent,
    cgroup: &mut Cgroup,
    memory_bytes: u64,
    limits: &Limits,
) -> Result<(), CgroupError> {
    let own = cgroup.dir.clone();
    if let Some(shares) = limits.cpu_shares {
        let dir = with(parent, cgroup, "resource_limits.cpu_shares", "cpu")?;
        match parent.version {
            Version::One => set(&dir.join("cpu.shares"), &shares)?,
            Version::Two => set(&dir.join("cpu.weight"), &weight(shares))?,
        }
    }
    if let Some(cpus) = &limits.cpuset {
        let dir = with(parent, cgroup, "resource_limits.cpuset_cpus", "cpuset")?;
        set(&dir.join("cpuset.cpus"), cpus)?;
    }
    if let Some(bytes) = limits.memory_reservation_bytes {
        let file = match parent.version {
            Version::One => "memory.soft_limit_in_bytes",
            Version::Two => "memory.low",
        };
        set(&own.join(file), &bytes)?;
    }
    match (limits.swap, parent.version) {
        (None, _) | (Some(Swap::Unlimited), Version::One) => Ok(()),
        (Some(swap), Version::One) => {
            let bytes = memory_bytes + swap_bytes(swap);
            swap_file(&own, "memory.memsw.limit_in_bytes").and_then(|file| set(&file, &bytes))
        }
        (Some(Swap::Unlimited), Version::Two) => {
            swap_file(&own, "memory.swap.max").and_then(|file| set(&file, &"max"))
        }
        (Some(swap), Version::Two) => {
            swap_file(&own, "memory.swap.max").and_then(|file| set(&file, &swap_bytes(swap)))
        }
    }
}

fn swap_bytes(swap: Swap) -> u64 {
    match swap {
        Swap::Unlimited => u64::MAX,
        Swap::Bytes(bytes) => bytes,
    }
}

/// Version 2 counts from 1 to 10000 what version 1 counts from 2 to 262144: as runc and systemd translate.
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

fn swap_file(dir: &Path, name: &str) -> Result<PathBuf, CgroupError> {
    let file = dir.join(name);
    if file.exists() {
        return Ok(file);
    }
    Err(CgroupError::NoController { field: "resource_limits.memory_swap", controller: "swap accounting" })
}

/// The directory of `cgroup` for `controller`, made if it is one of its own.
fn with(
    parent: &Parent,
    cgroup: &mut Cgroup,
    field: &'static str,
    controller: &'static str,
) -> Result<PathBuf, CgroupError> {
    let missing = || CgroupError::NoController { field, controller };
    if parent.version == Version::Two {
        let above = parent.dir.parent().ok_or_else(missing)?;
        for dir in [above, &parent.dir] {
            // The kernel says no to one that is not there.
            fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")).map_err(|_| missing())?;
        }
        return Ok(cgroup.dir.clone());
    }
    let sibling = sibling(&parent.dir, controller).ok_or_else(missing)?;
    let name = cgroup.dir.file_name().ok_or_else(missing)?;
    let dir = sibling.join(name);
    make(&sibling, controller)?;
    make(&dir, controller)?;
    cgroup.others.push(dir.clone());
    Ok(dir)
}

/// Makes a cgroup of version 1. One of cpusets is of no use before it has what its parent has.
fn make(dir: &Path, controller: &str) -> Result<(), CgroupError> {
    fs::create_dir_all(dir).map_err(refused(dir))?;
    if controller != "cpuset" {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let above = dir.parent().unwrap_or(dir).join(file);
        let value = fs::read_to_string(&above).map_err(refused(&above))?;
        set(&dir.join(file), &value.trim_end())?;
    }
    Ok(())
}

/// Where the hierarchy of `controller` has what that of memory has in `dir`; `None` if it is not mounted there.
fn sibling(dir: &Path, controller: &str) -> Option<PathBuf> {
    let (name, hierarchy) = (dir.file_name()?, dir.parent()?);
    let root = hierarchy.with_file_name(controller);
    (hierarchy.file_name()? == "memory" && root.join("cgroup.procs").exists()).then(|| root.join(name))
}

/// All of them that were made.
pub(super) fn siblings(dir: &Path) -> Vec<PathBuf> {
    OTHERS.iter().filter_map(|controller| sibling(dir, controller)).filter(|dir| dir.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_span_what_shares_span() {
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
        assert_eq!(weight(1024), 39, "the usual share");
    }

    #[test]
    fn a_field_that_this_host_cannot_honour_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Parent { dir: dir.path().join("memory/bouvet"), version: Version::One };
        let dir = parent.dir.join("vm");
        let mut cgroup = Cgroup { dir, others: Vec::new(), memory_bytes: 0, version: Version::One };
        let apply =
            |cgroup: &mut Cgroup, limits: Limits| apply(&parent, cgroup, 0, &limits).unwrap_err().to_string();
        let error = apply(&mut cgroup, Limits { cpu_shares: Some(2), ..Limits::default() });
        assert!(
            error.starts_with("`resource_limits.cpu_shares` needs cgroups with the controller `cpu`"),
            "{error}"
        );
        let error = apply(&mut cgroup, Limits { swap: Some(Swap::Bytes(0)), ..Limits::default() });
        assert!(error.starts_with("`resource_limits.memory_swap`"), "{error}");
    }
}
