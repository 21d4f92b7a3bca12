//! `resource_limits`: what a sandbox's programs may use of what its VM has, and its VM of the host.

use serde::{Deserialize, Serialize};

use super::InvalidConfig;

/// Weights that the kernel takes (`kernel/sched/sched.h`, `MIN_SHARES`, `MAX_SHARES`).
const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// Microseconds (`kernel/sched/core.c`, `min_cfs_quota_period`, `max_cfs_quota_period`).
const CPU_PERIOD_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
const DEFAULT_CPU_PERIOD_US: u64 = 100_000;
const MIN_CPU_QUOTA_US: i64 = 1_000;
/// All CPUs of the largest machine for the longest period.
const MAX_CPU_QUOTA_US: i64 = 4096 * 1_000_000;
/// The largest sum of memory and swap, in bytes.
const MAX_MEMORY_SWAP_BYTES: i64 = 1 << 50;
/// The most CPUs that a machine may have to us.
const MAX_CPUS: u32 = 4096;

/// Limits on a sandbox's programs. `None`: no other limit than its VM's.
///
/// ```
/// use bouvet_host::{BoxConfig, ResourceLimits};
///
/// let limits = ResourceLimits {
///     pids_limit: Some(100),
///     ulimits: vec!["nofile=1024:2048".into()],
///     cpu_quota: Some(50_000),
///     ..ResourceLimits::default()
/// };
/// let config = BoxConfig { resource_limits: limits.clone(), ..BoxConfig::default() };
/// assert_eq!(config.validate(), Ok(()));
/// let resource_limits = ResourceLimits { ulimits: vec!["files=1024".into()], ..limits };
/// let error = BoxConfig { resource_limits, ..config }.validate().unwrap_err();
/// assert_eq!((error.field, error.value.as_str()), ("resource_limits.ulimits", "`files=1024`"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceLimits {
    /// Processes and threads that its programs may have together. In the guest.
    pub pids_limit: Option<u64>,
    /// CPUs of the host that its VM may run on: `0-2,7`. By the host.
    pub cpuset_cpus: Option<String>,
    /// `RESOURCE=SOFT:HARD` or `RESOURCE=BOTH`, by the names of ulimit(1): `nofile=1024:2048`. In the guest.
    pub ulimits: Vec<String>,
    /// Weight of its VM against others when CPUs are scarce: 2 to 262144, 1024 is usual. By the host.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time that its programs get in each period. -1: no limit. In the guest.
    pub cpu_quota: Option<i64>,
    /// Length of that period in microseconds: 1000 to 1000000, 100000 if it is not said.
    pub cpu_period: Option<u64>,
    /// Memory in bytes that its VM keeps when the host runs short. By the host.
    pub memory_reservation: Option<u64>,
    /// Bytes of memory and swap that its VM may use together on the host. -1 and `None`: as much swap as there is.
    pub memory_swap: Option<i64>,
}

/// [`ResourceLimits`] as they were found right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) pids: Option<u64>,
    pub(crate) cpuset: Option<String>,
    pub(crate) ulimits: Vec<Ulimit>,
    pub(crate) cpu_shares: Option<u64>,
    pub(crate) cpu: Option<CpuQuota>,
    pub(crate) memory_reservation_bytes: Option<u64>,
    pub(crate) swap: Option<Swap>,
}

impl Limits {
    /// The first field that is about the VM's process, which must begin with it; `None` if the guest can do all.
    pub(crate) fn first_for_the_host(&self) -> Option<&'static str> {
        let said = [
            (self.cpuset.is_some(), "resource_limits.cpuset_cpus"),
            (self.cpu_shares.is_some(), "resource_limits.cpu_shares"),
            (self.memory_reservation_bytes.is_some(), "resource_limits.memory_reservation"),
            (self.swap.is_some(), "resource_limits.memory_swap"),
        ];
        said.into_iter().find_map(|(said, field)| said.then_some(field))
    }
}

/// So much CPU time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuQuota {
    pub(crate) quota_us: u64,
    pub(crate) period_us: u64,
}

/// Swap of the host that a VM may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swap {
    Unlimited,
    Bytes(u64),
}

/// A limit of setrlimit(2). `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ulimit {
    /// Its number (`include/uapi/asm-generic/resource.h`).
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

const RESOURCES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

impl ResourceLimits {
    /// What they come to in a VM with `memory_mb` MiB.
    pub(crate) fn plan(&self, memory_mb: u32) -> Result<Limits, InvalidConfig> {
        let in_range = |field, value: Option<u64>, range: std::ops::RangeInclusive<u64>| match value {
            Some(value) if !range.contains(&value) => {
                let allowed = format!("{} to {} are allowed", range.start(), range.end());
                Err(InvalidConfig { field, value: value.to_string(), allowed })
            }
            value => Ok(value),
        };
        let memory_bytes = u64::from(memory_mb) * 1024 * 1024;
        Ok(Limits {
            pids: in_range("resource_limits.pids_limit", self.pids_limit, 1..=4_194_304)?,
            cpuset: self.cpuset_cpus.as_deref().map(check_cpuset).transpose()?,
            ulimits: self.ulimits.iter().map(|text| Ulimit::parse(text)).collect::<Result<_, _>>()?,
            cpu_shares: in_range("resource_limits.cpu_shares", self.cpu_shares, CPU_SHARES)?,
            cpu: self.cpu()?,
            memory_reservation_bytes: in_range(
                "resource_limits.memory_reservation",
                self.memory_reservation,
                0..=memory_bytes,
            )?,
            swap: self.swap(memory_bytes)?,
        })
    }

    /// See [`BoxConfig::within_bounds`](super::BoxConfig::within_bounds).
    pub(super) fn within_bounds(&mut self) {
        self.cpu_quota = self.cpu_quota.map(|quota_us| quota_us.min(MAX_CPU_QUOTA_US));
        self.memory_swap = self.memory_swap.map(|bytes| bytes.min(MAX_MEMORY_SWAP_BYTES));
    }

    fn cpu(&self) -> Result<Option<CpuQuota>, InvalidConfig> {
        let period_us = self.cpu_period.unwrap_or(DEFAULT_CPU_PERIOD_US);
        if !CPU_PERIOD_US.contains(&period_us) {
            let (field, value) = ("resource_limits.cpu_period", format!("{period_us} µs"));
            return Err(InvalidConfig { field, value, allowed: "1000 to 1000000 are allowed".into() });
        }
        match self.cpu_quota {
            None | Some(-1) => Ok(None),
            Some(quota_us) if (MIN_CPU_QUOTA_US..=MAX_CPU_QUOTA_US).contains(&quota_us) => {
                Ok(Some(CpuQuota { quota_us: quota_us.unsigned_abs(), period_us }))
            }
            Some(quota_us) => {
                let (field, value) = ("resource_limits.cpu_quota", format!("{quota_us} µs"));
                let allowed = format!("-1, and {MIN_CPU_QUOTA_US} to {MAX_CPU_QUOTA_US}, are allowed");
                Err(InvalidConfig { field, value, allowed })
            }
        }
    }

    fn swap(&self, memory_bytes: u64) -> Result<Option<Swap>, InvalidConfig> {
        match self.memory_swap {
            None => Ok(None),
            Some(-1) => Ok(Some(Swap::Unlimited)),
            Some(bytes @ ..=MAX_MEMORY_SWAP_BYTES)
                if u64::try_from(bytes).is_ok_and(|bytes| bytes >= memory_bytes) =>
            {
                Ok(Some(Swap::Bytes(bytes.unsigned_abs() - memory_bytes)))
            }
            Some(bytes) => {
                let allowed =
                    format!("-1, and {memory_bytes} (its memory) to {MAX_MEMORY_SWAP_BYTES}, are allowed");
                let (field, value) = ("resource_limits.memory_swap", format!("{bytes} bytes"));
                Err(InvalidConfig { field, value, allowed })
            }
        }
    }
}

/// A list of numbers and ranges, as the kernel's cpuset has it.
fn check_cpuset(text: &str) -> Result<String, InvalidConfig> {
    if cpus(text).is_some() {
        return Ok(text.to_owned());
    }
    let allowed = "numbers and ranges of CPUs with commas between them are allowed: 0-2,7";
    Err(InvalidConfig::text("resource_limits.cpuset_cpus", text, allowed))
}

/// The CPUs of a list; `None` if it is not one.
pub(super) fn cpus(text: &str) -> Option<Vec<std::ops::RangeInclusive<u32>>> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < MAX_CPUS);
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(number(first)?..=number(last)?).filter(|range| !range.is_empty())
    };
    text.split(',').map(part).collect()
}

impl Ulimit {
    /// Its name, if no program can run with it: none can be started, or has memory to run in.
    pub(super) fn lets_nothing_run(&self) -> Option<&'static str> {
        let name = *RESOURCES.get(self.resource as usize)?;
        (self.soft == 0 && matches!(name, "nproc" | "as" | "data" | "stack")).then_some(name)
    }

    fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let allowed = "`RESOURCE=LIMIT` and `RESOURCE=SOFT:HARD` are allowed, with the names of ulimit(1) as in \
                       `nofile=1024:2048`, -1 for no limit, and no soft limit above the hard one";
        Self::read(text).ok_or_else(|| InvalidConfig::text("resource_limits.ulimits", text, allowed))
    }

    fn read(text: &str) -> Option<Self> {
        let (name, limits) = text.split_once('=')?;
        let resource = RESOURCES.iter().position(|known| *known == name)?;
        let limit = |text: &str| match text {
            "-1" | "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (limit(soft)?, limit(hard)?);
        (soft <= hard).then_some(Self { resource: u32::try_from(resource).ok()?, soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut ResourceLimits)) -> Result<Limits, InvalidConfig> {
        let mut limits = ResourceLimits::default();
        change(&mut limits);
        limits.plan(1024)
    }

    #[test]
    fn nothing_said_is_no_limit() {
        assert_eq!(plan(|_| ()).unwrap(), Limits::default());
    }

    #[test]
    fn limits_hold_at_the_edge_and_not_past_it() {
        assert!(plan(|l| l.pids_limit = Some(1)).is_ok() && plan(|l| l.pids_limit = Some(0)).is_err());
        assert!(plan(|l| l.cpu_shares = Some(2)).is_ok() && plan(|l| l.cpu_shares = Some(1)).is_err());
        assert!(plan(|l| l.cpu_shares = Some(262_144)).is_ok());
        assert!(plan(|l| l.cpu_shares = Some(262_145)).is_err());
        assert!(
            plan(|l| l.cpu_period = Some(999)).is_err() && plan(|l| l.cpu_period = Some(1_000_001)).is_err()
        );
        assert!(plan(|l| l.cpu_quota = Some(999)).is_err() && plan(|l| l.cpu_quota = Some(-2)).is_err());
        let half = CpuQuota { quota_us: 50_000, period_us: 100_000 };
        assert_eq!(plan(|l| l.cpu_quota = Some(50_000)).unwrap().cpu, Some(half));
        assert_eq!(plan(|l| l.cpu_quota = Some(-1)).unwrap().cpu, None);
        assert!(plan(|l| l.memory_reservation = Some(1 << 30)).is_ok());
        assert!(plan(|l| l.memory_reservation = Some((1 << 30) + 1)).is_err());
        assert_eq!(plan(|l| l.memory_swap = Some(1 << 30)).unwrap().swap, Some(Swap::Bytes(0)));
        assert_eq!(plan(|l| l.memory_swap = Some(-1)).unwrap().swap, Some(Swap::Unlimited));
        assert!(plan(|l| l.memory_swap = Some((1 << 30) - 1)).is_err());
    }

    #[test]
    fn lists_of_cpus_are_checked() {
        for right in ["0", "0-2,7", "3,1"] {
            assert!(plan(|l| l.cpuset_cpus = Some(right.into())).is_ok(), "{right}");
        }
        for wrong in ["", ",", "2-1", "a", "0-", "4096", "0\n1", "-1"] {
            assert!(plan(|l| l.cpuset_cpus = Some(wrong.into())).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ulimits_are_read() {
        let parse = |text: &str| Ulimit::parse(text).map(|l| (l.resource, l.soft, l.hard));
        assert_eq!(parse("nofile=1024:2048").unwrap(), (7, 1024, 2048));
        assert_eq!(parse("core=0").unwrap(), (4, 0, 0));
        assert_eq!(parse("memlock=-1:unlimited").unwrap(), (8, u64::MAX, u64::MAX));
        for wrong in ["nofile", "nofile=", "what=1", "nofile=2:1", "nofile=1:2:3", "nofile=-2", "=1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
