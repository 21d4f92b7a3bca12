//! What a caller may say of a sandbox to be. [`BoxConfig::validate`] is the only gate.
//!
//! The fields are as typed; [`plan::Plan`] is what they come to, once they were found right.

#[cfg(test)]
mod bounds;
pub(crate) mod capabilities;
pub(crate) mod fresh;
pub(crate) mod hosts;
pub(crate) mod limits;
pub(crate) mod network;
mod parts;
pub(crate) mod plan;
pub(crate) mod ports;
pub(crate) mod restart;
pub(crate) mod size;
pub(crate) mod sysctl;
pub(crate) mod tmpfs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bouvet_wire::owner;
use serde::{Deserialize, Serialize};

pub use bouvet_net::Limits as NetworkLimits;

pub use self::limits::ResourceLimits;
pub use self::network::{SecretConfig, SecretValue};
pub use self::parts::{
    CacheConfig, LogLevel, NetworkMode, PoolConfig, ScalingPolicy, SevSnpGeneration, SidecarConfig, TeeConfig,
};
use self::plan::Plan;
pub use self::ports::{PortProtocol, PortSpec};
use self::restart::Restart;

/// Memory that a Linux guest with its tools needs at least.
const MIN_MEMORY_MB: u32 = 128;
/// More than any machine gives one sandbox. What this machine has is checked by the host.
const MAX_MEMORY_MB: u32 = 1024 * 1024;
const MAX_VCPUS: u32 = 32;
const DISK_MB: std::ops::RangeInclusive<u32> = 64..=1024 * 1024;
/// The longest life of a sandbox, in seconds: a year. Zero is no limit.
pub const MAX_LIFETIME_SECS: u64 = 365 * 24 * 3600;
/// The largest cache of images, in bytes.
const MAX_CACHE_BYTES: u64 = 1 << 50;
/// The most root file systems in a cache of images.
const MAX_CACHE_ENTRIES: usize = 1_000_000;
const MAX_ENV_BYTES: usize = 64 * 1024;
/// `cmd` or `entrypoint_override`, as one program is started with: below what execve(2) takes with its environment.
const MAX_ARGUMENT_BYTES: usize = 1024 * 1024;
/// Names and values of labels together.
const MAX_LABEL_BYTES: usize = 64 * 1024;
/// Length of the name of a user or group.
const MAX_OWNER_BYTES: usize = 256;
/// Elements of any list.
const MAX_ELEMENTS: usize = 256;

/// Description of one sandbox.
///
/// The default is a sandbox of the base image that stays until it is destroyed, with what Docker gives a container.
///
/// ```
/// use bouvet_host::BoxConfig;
///
/// let config = BoxConfig {
///     image: "nginx:alpine".into(),
///     tmpfs: vec!["/var/cache/nginx:size=100m".into()],
///     read_only: true,
///     ..BoxConfig::default()
/// };
/// assert!(config.validate().is_ok());
/// let config = BoxConfig { cap_add: vec!["NET_ADMINISTRATION".into()], ..config };
/// assert_eq!(
///     config.validate().unwrap_err().to_string(),
///     "`cap_add` is `NET_ADMINISTRATION`; `ALL` and the names in capabilities(7) are allowed"
/// );
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoxConfig {
    /// OCI image reference: `nginx:alpine`, `ghcr.io/org/app@sha256:…`, `oci:DIRECTORY`, `docker-archive:FILE`. Empty
    /// or `base`: the host's base image; `devbox-full`: its larger one ([`FULL_BASE_IMAGE`](crate::FULL_BASE_IMAGE)). A
    /// base image starts no program by itself.
    pub image: String,
    /// Directory of the host that is mounted at `/workspace`. Empty: none.
    pub workspace: PathBuf,
    /// What it may use.
    pub resources: ResourceConfig,
    /// What of its life is worth a line in the host's log; with `debug` and `trace`, its VM's console too.
    pub log_level: LogLevel,
    /// Has the host's log name every call to the guest and how it went, but not what it carries.
    pub debug_grpc: bool,
    /// Confidential computing.
    pub tee: TeeConfig,
    /// Replaces the image's CMD, if it is not empty.
    pub cmd: Vec<String>,
    /// Replaces the image's ENTRYPOINT, and with it its CMD.
    pub entrypoint_override: Option<Vec<String>>,
    /// Directories and files of the host: `host_path:guest_path`, or `host_path:guest_path:ro`.
    pub volumes: Vec<String>,
    /// Environment variables beside the image's, for every program in the sandbox. Of one name the last counts.
    pub extra_env: Vec<(String, String)>,
    /// Where images are kept.
    pub cache: CacheConfig,
    /// Sandboxes of this description that wait ready.
    pub pool: PoolConfig,
    /// Ports of the host that lead into the sandbox: `host_port:guest_port`, `address:host_port:guest_port` or `guest_port`,
    /// each with or without `/udp`. See [`PortSpec`].
    pub port_map: Vec<String>,
    /// Addresses of DNS servers, `ADDRESS` or `ADDRESS:PORT`. Empty: the host's.
    pub dns: Vec<String>,
    /// Domains that names are completed with. Empty: the host's. `.` alone: none.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf(5): `ndots:2`. Empty: the host's.
    pub dns_option: Vec<String>,
    /// What it can reach.
    pub network: NetworkMode,
    /// What of it, as rules: `TARGET[:PORTS][/PROTOCOL]`, as in `*.example.com:443`. Empty: all that is public.
    pub allow: Vec<String>,
    /// What not, whatever is allowed: rules of the same form.
    pub deny: Vec<String>,
    /// What it may be allowed at most, now or later: rules of the same form. `None`: anything.
    pub network_bound: Option<Vec<String>>,
    /// How much of everything its network may have.
    pub network_limits: NetworkLimits,
    /// Secrets that go into its requests, and not into it.
    pub secrets: Vec<SecretConfig>,
    /// File systems in memory: `/path`, or `/path:size=100m`.
    pub tmpfs: Vec<String>,
    /// Limits on its programs.
    pub resource_limits: ResourceLimits,
    /// Capabilities beside Docker's default ones: `NET_ADMIN`, `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities that it does not get: `NET_RAW`, `ALL`.
    pub cap_drop: Vec<String>,
    /// `seccomp=unconfined`, `seccomp=PROFILE.json`, `no-new-privileges`.
    pub security_opt: Vec<String>,
    /// Takes nothing from the sandbox's programs: root there is root of its VM.
    pub privileged: bool,
    /// Lets nobody write to its root file system. Volumes and `tmpfs` remain writable.
    pub read_only: bool,
    /// A second image's program that runs beside the main one.
    pub sidecar: Option<SidecarConfig>,
    /// Keeps what was written when it stops, for its next start. Otherwise every start is clean.
    pub persistent: bool,

    /// A name that is unique on its host, for people. Empty: it has none but its id.
    pub name: String,
    /// The name of the machine that its programs see. Empty: `name`, or `sandbox-` and the beginning of its id.
    pub hostname: String,
    /// Further lines of `/etc/hosts`: `NAME:ADDRESS`. The address `host-gateway` is its gateway's.
    pub extra_hosts: Vec<String>,
    /// Kernel settings: `net.core.somaxconn=1024`.
    pub sysctls: Vec<String>,
    /// Size of `/dev/shm` in bytes. `None`: a quarter of the memory, or 64 MiB where programs have twice as much.
    pub shm_size: Option<u64>,
    /// Gives its main program a parent as process 1, which forwards signals and reaps orphans.
    pub init: bool,
    /// Who its main program runs as: `user`, `uid`, `user:group`, `uid:gid`. Empty: whom the image says.
    pub user: String,
    /// Groups of its programs besides those of their user: names and ids.
    pub group_add: Vec<String>,
    /// Where its programs start, and relative paths. Empty: the image's working directory, or the home directory of its
    /// user in the base image.
    pub working_dir: String,
    /// The signal that asks its main program to end, by name or number. Empty: the image's, or else TERM.
    pub stop_signal: String,
    /// Seconds between that signal and the end of a main program that ignores it: at most 86400. `None`: 10.
    pub stop_timeout_secs: Option<u64>,
    /// Gives its main program a terminal.
    pub tty: bool,
    /// Leaves the image's own program out: it has no main program, and stays until it is stopped.
    pub idle: bool,
    /// Keeps its main program's standard input open for those who attach.
    pub stdin_open: bool,
    /// Destroys it as soon as it stops.
    pub auto_remove: bool,
    /// Refuse to run without hardware virtualization.
    pub require_hardware: bool,
    /// Words of its owner's, by name.
    pub labels: BTreeMap<String, String>,
    /// When it is started again by itself: `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:NUMBER`. Empty: `no`.
    pub restart: String,
}

/// What a sandbox may use.
///
/// ```
/// use std::time::Duration;
///
/// use bouvet_host::{BoxConfig, ResourceConfig};
///
/// let timeout = Duration::from_secs(600);
/// let resources = ResourceConfig { vcpus: 1, memory_mb: 64, timeout, ..ResourceConfig::default() };
/// assert_eq!(resources.disk_mb, 4096);
/// let error = BoxConfig { resources, ..BoxConfig::default() }.validate().unwrap_err();
/// assert_eq!(error.to_string(), "`resources.memory_mb` is 64 MiB; 128 to 1048576 MiB are allowed");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceConfig {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory of the VM, in MiB.
    pub memory_mb: u32,
    /// Size of the writable layer, in MiB. Takes space on the host only as it is written.
    pub disk_mb: u32,
    /// The sandbox is destroyed when it is this old, at most a year. Zero: never. Whole seconds where it is serialised.
    #[serde(with = "seconds")]
    pub timeout: Duration,
}

impl Default for ResourceConfig {
    fn default() -> Self {
        Self { vcpus: 2, memory_mb: 1024, disk_mb: 4096, timeout: Duration::from_secs(3600) }
    }
}

/// A duration as a whole number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(duration.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// A field with a value that cannot be had.
///
/// ```
/// use bouvet_host::BoxConfig;
///
/// let config = BoxConfig { port_map: vec!["http".into()], ..BoxConfig::default() };
/// let error = config.validate().unwrap_err();
/// assert_eq!((error.field, error.value.as_str()), ("port_map", "`http`"));
/// assert!(error.allowed.starts_with("`host_port:guest_port`"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is {value}; {allowed}")]
pub struct InvalidConfig {
    /// The field, as its path in [`BoxConfig`].
    pub field: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl InvalidConfig {
    /// Of text that somebody typed.
    pub(crate) fn text(field: &'static str, value: &str, allowed: impl Into<String>) -> Self {
        Self { field, value: format!("`{}`", value.escape_debug()), allowed: allowed.into() }
    }
}

impl BoxConfig {
    /// Whether this can be had on any machine.
    ///
    /// ```
    /// use bouvet_host::BoxConfig;
    ///
    /// let wrong = |config: BoxConfig| config.validate().unwrap_err().field;
    /// assert_eq!(wrong(BoxConfig { tmpfs: vec!["run".into()], ..BoxConfig::default() }), "tmpfs");
    /// assert_eq!(wrong(BoxConfig { volumes: vec!["/data".into()], ..BoxConfig::default() }), "volumes");
    /// assert_eq!(wrong(BoxConfig { dns: vec!["localhost".into()], ..BoxConfig::default() }), "dns");
    /// let right = BoxConfig { volumes: vec!["/data:/srv:ro".into()], ..BoxConfig::default() };
    /// assert_eq!(right.validate(), Ok(()));
    /// ```
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let plan = self.plan()?;
        if !self.name.is_empty() {
            fresh::check_new_name(&self.name)?;
        }
        plan.check_fresh()
    }

    /// What it comes to.
    pub(crate) fn plan(&self) -> Result<Plan, InvalidConfig> {
        let ResourceConfig { vcpus, memory_mb, disk_mb, timeout } = self.resources;
        in_range("resources.vcpus", vcpus, 1..=MAX_VCPUS, "")?;
        in_range("resources.memory_mb", memory_mb, MIN_MEMORY_MB..=MAX_MEMORY_MB, " MiB")?;
        in_range("resources.disk_mb", disk_mb, DISK_MB, " MiB")?;
        let timeout_secs = timeout.as_secs().saturating_add(u64::from(timeout.subsec_nanos() > 0));
        in_range("resources.timeout", timeout_secs, 0..=MAX_LIFETIME_SECS, " s")?;
        in_range("cache.max_cache_bytes", self.cache.max_cache_bytes, 0..=MAX_CACHE_BYTES, " bytes")?;
        in_range("cache.max_rootfs_entries", self.cache.max_rootfs_entries, 0..=MAX_CACHE_ENTRIES, "")?;
        self.check_lengths()?;
        self.extra_env.iter().try_for_each(|(name, value)| check_env("extra_env", name, value))?;
        let labels = self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        at_most("labels", labels, MAX_LABEL_BYTES, "bytes")?;
        if self.labels.contains_key("") {
            return Err(InvalidConfig::text("labels", "", "a label must have a name"));
        }
        if Restart::parse(&self.restart)? != Restart::No && self.auto_remove {
            let allowed = "a sandbox that is removed when it stops is not started again";
            return Err(InvalidConfig::text("restart", &self.restart, allowed));
        }
        Plan::of(self)
    }

    /// The description with values that version 0.1.0 kept, and that are out of bounds now, at their bounds.
    pub(crate) fn within_bounds(mut self) -> Self {
        let longest = Duration::from_secs(MAX_LIFETIME_SECS);
        self.resources.timeout = self.resources.timeout.min(longest);
        self.cache.max_cache_bytes = self.cache.max_cache_bytes.min(MAX_CACHE_BYTES);
        self.cache.max_rootfs_entries = self.cache.max_rootfs_entries.min(MAX_CACHE_ENTRIES);
        self.pool.within_bounds();
        self.resource_limits.within_bounds();
        self.tmpfs = self.tmpfs.iter().map(|text| tmpfs::within_bounds(text)).collect();
        self
    }

    fn check_lengths(&self) -> Result<(), InvalidConfig> {
        let bytes: usize = self.extra_env.iter().map(|(name, value)| name.len() + value.len()).sum();
        at_most("extra_env", bytes, MAX_ENV_BYTES, "bytes")?;
        let entrypoint = self.entrypoint_override.as_deref().unwrap_or_default();
        for (field, list) in [("cmd", &self.cmd[..]), ("entrypoint_override", entrypoint)] {
            at_most(field, list.iter().map(|word| word.len() + 1).sum(), MAX_ARGUMENT_BYTES, "bytes")?;
            if let Some(word) = list.iter().find(|word| word.contains('\0')) {
                return Err(InvalidConfig::text(field, word, "an argument may not contain NUL"));
            }
        }
        for (field, list) in [
            ("volumes", &self.volumes),
            ("dns", &self.dns),
            ("dns_search", &self.dns_search),
            ("dns_option", &self.dns_option),
            ("extra_hosts", &self.extra_hosts),
            ("sysctls", &self.sysctls),
            ("tmpfs", &self.tmpfs),
            ("resource_limits.ulimits", &self.resource_limits.ulimits),
            ("cap_add", &self.cap_add),
            ("cap_drop", &self.cap_drop),
            ("security_opt", &self.security_opt),
            ("group_add", &self.group_add),
        ] {
            at_most(field, list.len(), MAX_ELEMENTS, "elements")?;
        }
        Ok(())
    }
}

fn at_most(field: &'static str, count: usize, limit: usize, unit: &str) -> Result<(), InvalidConfig> {
    if count <= limit {
        return Ok(());
    }
    let (value, allowed) = (format!("{count} {unit} long"), format!("{limit} {unit} are allowed"));
    Err(InvalidConfig { field, value, allowed })
}

/// Whether `value` is allowed. Durations and sizes are checked here or by their parsers, never clamped in silence.
pub(crate) fn in_range<N: Copy + PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: N,
    allowed: std::ops::RangeInclusive<N>,
    unit: &str,
) -> Result<(), InvalidConfig> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let allowed = format!("{} to {}{unit} are allowed", allowed.start(), allowed.end());
    Err(InvalidConfig { field, value: format!("{value}{unit}"), allowed })
}

/// Whether a variable can be put into an environment.
pub(crate) fn check_env(field: &'static str, name: &str, value: &str) -> Result<(), InvalidConfig> {
    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
        let allowed = "a name must not be empty or contain `=`, and neither part may contain NUL".into();
        return Err(InvalidConfig { field, value: format!("`{}`", name.escape_default()), allowed });
    }
    Ok(())
}

/// Whether `user` may name one: nobody, `user`, or `user:group`. Only the guest can find out whether the user exists.
pub(crate) fn check_user(field: &'static str, user: &str) -> Result<(), InvalidConfig> {
    let (name, group) = owner::split_user(user);
    name.iter().chain(&group).try_for_each(|part| check_owner(field, user, part))
}

/// Whether `group` may name one.
pub(crate) fn check_group(field: &'static str, group: &str) -> Result<(), InvalidConfig> {
    if group.is_empty() {
        return Err(InvalidConfig::text(field, group, "the name or the id of a group is allowed"));
    }
    check_owner(field, group, group)
}

/// Whether `part` of `text` may name a user or group.
fn check_owner(field: &'static str, text: &str, part: &str) -> Result<(), InvalidConfig> {
    if part.len() > MAX_OWNER_BYTES || part.contains([':', '\0', '\n']) {
        let allowed = "a user and a user:group, by name or number, are allowed";
        return Err(InvalidConfig::text(field, text, allowed));
    }
    owner::parse_id(part).map(drop).map_err(|error| InvalidConfig::text(field, text, error.to_string()))
}

/// Whether `path` names one place in the guest, whatever links are there: absolute, and without `.` and `..`.
pub(crate) fn check_guest_path(field: &'static str, path: &str) -> Result<(), InvalidConfig> {
    let plain = path.starts_with('/')
        && path.len() <= bouvet_wire::limits::MAX_PATH_BYTES
        && !path.contains('\0')
        && path.split('/').all(|part| !matches!(part, "." | ".."));
    if plain {
        return Ok(());
    }
    Err(InvalidConfig::text(field, path, "absolute paths without `.` and `..` are allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut BoxConfig)) -> Result<(), InvalidConfig> {
        let mut config = BoxConfig::default();
        change(&mut config);
        config.validate()
    }

    #[test]
    fn limits_hold_at_the_edge_and_not_past_it() {
        assert!(with(|c| c.resources.memory_mb = MIN_MEMORY_MB).is_ok());
        let error = with(|c| c.resources.memory_mb = MIN_MEMORY_MB - 1).unwrap_err();
        assert_eq!(error.to_string(), "`resources.memory_mb` is 127 MiB; 128 to 1048576 MiB are allowed");
        assert!(with(|c| c.resources.vcpus = MAX_VCPUS).is_ok());
        assert!(with(|c| c.resources.vcpus = MAX_VCPUS + 1).is_err());
        assert!(with(|c| c.resources.vcpus = 0).is_err());
        assert!(with(|c| c.resources.disk_mb = 63).is_err());
        let env = |name: &str, value: &str| with(|c| c.extra_env.push((name.into(), value.into())));
        assert!(env("A", &"x".repeat(MAX_ENV_BYTES - 1)).is_ok());
        assert!(env("A", &"x".repeat(MAX_ENV_BYTES)).is_err());
        assert!(env("", "x").is_err());
        assert!(env("A=B", "x").is_err());
        assert!(env("A", "x\0").is_err());
        assert!(with(|c| c.cmd = vec!["x".repeat(MAX_ARGUMENT_BYTES - 1)]).is_ok());
        assert!(with(|c| c.cmd = vec!["x".repeat(MAX_ARGUMENT_BYTES)]).is_err());
        assert!(with(|c| c.cmd = vec!["a\0b".into()]).is_err());
        let label = |length| with(|c| drop(c.labels.insert("a".into(), "x".repeat(length))));
        assert!(label(MAX_LABEL_BYTES - 1).is_ok() && label(MAX_LABEL_BYTES).is_err());
        assert!(with(|c| drop(c.labels.insert(String::new(), "x".into()))).is_err());
        let restart = |auto_remove| {
            with(|c| {
                c.restart = "always".into();
                c.auto_remove = auto_remove;
            })
        };
        assert!(restart(false).is_ok() && restart(true).is_err());
        assert!(with(|c| c.cap_drop = vec!["ALL".into(); MAX_ELEMENTS]).is_ok());
        assert!(with(|c| c.cap_drop = vec!["ALL".into(); MAX_ELEMENTS + 1]).is_err());
    }

    #[test]
    fn ids_out_of_range_are_refused() {
        for user in ["2147483647:2147483647", "1000:", ":50", "web", "web:1", "", ":"] {
            assert_eq!(with(|c| c.user = user.into()), Ok(()), "{user}");
        }
        for user in
            ["2147483648", "4294967295", "0:4294967295", "4294967296:0", "-1", "0:-1", "a:b:c", "a\nb"]
        {
            assert_eq!(with(|c| c.user = user.into()).unwrap_err().field, "user", "{user}");
        }
        assert!(with(|c| c.user = "x".repeat(MAX_OWNER_BYTES)).is_ok());
        assert!(with(|c| c.user = "x".repeat(MAX_OWNER_BYTES + 1)).is_err());
        assert!(with(|c| c.group_add = vec!["audio".into(), "2147483647".into()]).is_ok());
        for group in ["", "4294967295", "2147483648", "-1", "a:b"] {
            assert_eq!(with(|c| c.group_add = vec![group.into()]).unwrap_err().field, "group_add", "{group}");
        }
    }

    #[test]
    fn stop_settings_are_checked() {
        assert!(with(|c| (c.stop_signal, c.stop_timeout_secs) = ("SIGRTMIN+3".into(), Some(86_400))).is_ok());
        assert_eq!(with(|c| c.stop_signal = "STOPP".into()).unwrap_err().field, "stop_signal");
        assert_eq!(with(|c| c.stop_timeout_secs = Some(86_401)).unwrap_err().field, "stop_timeout_secs");
    }

    #[test]
    fn a_description_survives_being_written_down() {
        let config = BoxConfig {
            image: "nginx:alpine".into(),
            extra_env: vec![("A".into(), "1".into())],
            sidecar: Some(SidecarConfig::default()),
            tee: TeeConfig::Tdx { workload_id: "w".into(), simulate: true },
            network: NetworkMode::Bridge { network: "net".into() },
            ..BoxConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<BoxConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<BoxConfig>("{}").unwrap(), BoxConfig::default());
        assert!(serde_json::from_str::<BoxConfig>(r#"{"imgae":""}"#).is_err(), "nothing is overheard");
    }
}
