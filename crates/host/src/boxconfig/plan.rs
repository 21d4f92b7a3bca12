//! What a [`BoxConfig`] comes to.

use std::path::PathBuf;

use super::capabilities::Capabilities;
use super::hosts::{HostLine, check_hostname};
use super::limits::Limits;
use super::network::NetworkPlan;
use super::ports::PortSpec;
use super::sysctl::Sysctl;
use super::tmpfs::Tmpfs;
use super::{
    BoxConfig, InvalidConfig, TeeConfig, check_env, check_group, check_guest_path, check_user, in_range,
};
use crate::exec::Signal;
use crate::volume::VolumeSpec;

const MAX_NAME_BYTES: usize = 64;
/// Sizes of `/dev/shm`: a page, and what no machine has. What is written there counts as memory all the same.
const MIN_SHM_BYTES: u64 = 4096;
const MAX_SHM_BYTES: u64 = 1 << 40;
/// The longest grace period of a main program: more than anybody waits for.
pub(crate) const MAX_STOP_TIMEOUT_SECS: u64 = 24 * 3600;
/// The longest wait of a clone that a pool has too many of, in seconds.
pub(super) const MAX_IDLE_TTL_SECS: u64 = 365 * 24 * 3600;
/// The longest pause between two changes of a pool's size, in seconds.
pub(super) const MAX_COOLDOWN_SECS: u64 = 24 * 3600;
/// The longest window in which a pool counts requests, in seconds.
const MAX_WINDOW_SECS: u64 = 24 * 3600;
/// Where the workspace is mounted.
pub(crate) const WORKSPACE: &str = "/workspace";

/// A [`BoxConfig`] whose fields were read and found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) volumes: Vec<VolumeSpec>,
    pub(crate) tmpfs: Vec<Tmpfs>,
    pub(crate) limits: Limits,
    pub(crate) security: Security,
    /// `None`: it has none.
    pub(crate) network: Option<NetworkPlan>,
    pub(crate) ports: Vec<PortSpec>,
    pub(crate) hosts: Vec<HostLine>,
    pub(crate) sysctls: Vec<Sysctl>,
    /// `None`: the guest's default.
    pub(crate) shm_bytes: Option<u64>,
}

/// What is taken from a sandbox's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Security {
    pub(crate) capabilities: Capabilities,
    pub(crate) seccomp: Seccomp,
    pub(crate) no_new_privileges: bool,
    /// Nothing is taken, and the guest's own kernel and devices are open to root.
    pub(crate) privileged: bool,
}

/// Which system calls programs may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// Those of Docker's profile.
    Default,
    /// All.
    Unconfined,
    /// Those of the profile in this file, in Docker's format.
    Profile(PathBuf),
}

impl Plan {
    pub(super) fn of(config: &BoxConfig) -> Result<Self, InvalidConfig> {
        check_names(config)?;
        check_pool(config)?;
        check_parts(config)?;
        let mut tmpfs: Vec<_> =
            config.tmpfs.iter().map(|text| Tmpfs::parse(text)).collect::<Result<_, _>>()?;
        // What lies within another is mounted after it.
        tmpfs.sort_by(|one, other| one.path.cmp(&other.path));
        let mut volumes: Vec<_> =
            config.volumes.iter().map(|text| VolumeSpec::parse(text)).collect::<Result<_, _>>()?;
        if !config.workspace.as_os_str().is_empty() {
            let (host, guest) = (config.workspace.clone(), WORKSPACE.to_owned());
            volumes.push(VolumeSpec { host, guest, read_only: false });
        }
        VolumeSpec::check_together(&volumes)?;
        Ok(Self {
            volumes,
            tmpfs,
            limits: config.resource_limits.plan(config.resources.memory_mb)?,
            security: Security::of(config)?,
            network: NetworkPlan::of(config)?,
            ports: PortSpec::parse_all(&config.port_map)?,
            hosts: HostLine::parse_all(config)?,
            sysctls: config.sysctls.iter().map(|text| Sysctl::parse(text)).collect::<Result<_, _>>()?,
            shm_bytes: check_shm(config)?,
        })
    }
}

impl Security {
    fn of(config: &BoxConfig) -> Result<Self, InvalidConfig> {
        let capabilities = Capabilities::resolve(&config.cap_add, &config.cap_drop)?;
        let mut security =
            Self { capabilities, seccomp: Seccomp::Default, no_new_privileges: false, privileged: false };
        for option in &config.security_opt {
            security.set(option)?;
        }
        if config.privileged {
            let taken = !config.cap_drop.is_empty() || matches!(security.seccomp, Seccomp::Profile(_));
            if taken {
                let allowed =
                    "with `cap_drop` or a seccomp profile, false is: a privileged sandbox keeps all";
                return Err(InvalidConfig {
                    field: "privileged",
                    value: "true".into(),
                    allowed: allowed.into(),
                });
            }
            security.privileged = true;
            security.capabilities = Capabilities::ALL;
            security.seccomp = Seccomp::Unconfined;
        }
        Ok(security)
    }

    fn set(&mut self, option: &str) -> Result<(), InvalidConfig> {
        // Docker takes both signs.
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => self.no_new_privileges = true,
            ("no-new-privileges", "false") => self.no_new_privileges = false,
            ("seccomp", "unconfined") => self.seccomp = Seccomp::Unconfined,
            ("seccomp", "default" | "builtin") => self.seccomp = Seccomp::Default,
            ("seccomp", path) if !path.is_empty() => self.seccomp = Seccomp::Profile(path.into()),
            _ => {
                let allowed =
                    "`seccomp=unconfined`, `seccomp=PROFILE.json` and `no-new-privileges` are allowed";
                return Err(InvalidConfig::text("security_opt", option, allowed));
            }
        }
        Ok(())
    }
}

/// Whether sandboxes and their networks may be called so.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), InvalidConfig> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let sound = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= MAX_NAME_BYTES
        && name.chars().all(plain);
    if sound {
        return Ok(());
    }
    let allowed = format!(
        "up to {MAX_NAME_BYTES} letters, digits, `_`, `.` and `-`, a letter or digit first, are allowed"
    );
    Err(InvalidConfig::text(field, name, allowed))
}

fn check_shm(config: &BoxConfig) -> Result<Option<u64>, InvalidConfig> {
    match config.shm_size {
        Some(bytes) if !(MIN_SHM_BYTES..=MAX_SHM_BYTES).contains(&bytes) => {
            let allowed = format!("{MIN_SHM_BYTES} to {MAX_SHM_BYTES} bytes are allowed");
            Err(InvalidConfig { field: "shm_size", value: format!("{bytes} bytes"), allowed })
        }
        bytes => Ok(bytes),
    }
}

fn check_names(config: &BoxConfig) -> Result<(), InvalidConfig> {
    if !config.name.is_empty() {
        check_name("name", &config.name)?;
    }
    if !config.hostname.is_empty() {
        check_hostname(&config.hostname)?;
    }
    if config.idle && (!config.cmd.is_empty() || config.entrypoint_override.is_some()) {
        let allowed = "with `cmd` or `entrypoint_override`, false is".into();
        return Err(InvalidConfig { field: "idle", value: "true".into(), allowed });
    }
    if !config.working_dir.is_empty() {
        check_guest_path("working_dir", &config.working_dir)?;
    }
    check_user("user", &config.user)?;
    config.group_add.iter().try_for_each(|group| check_group("group_add", group))?;
    check_stop(config)
}

fn check_stop(config: &BoxConfig) -> Result<(), InvalidConfig> {
    if !config.stop_signal.is_empty() {
        parse_signal("stop_signal", &config.stop_signal)?;
    }
    match config.stop_timeout_secs {
        Some(seconds) if seconds > MAX_STOP_TIMEOUT_SECS => {
            let allowed = format!("0 to {MAX_STOP_TIMEOUT_SECS} s are allowed");
            Err(InvalidConfig { field: "stop_timeout_secs", value: format!("{seconds} s"), allowed })
        }
        _ => Ok(()),
    }
}

/// The signal that `text` names.
pub(crate) fn parse_signal(field: &'static str, text: &str) -> Result<Signal, InvalidConfig> {
    text.parse().map_err(|_| InvalidConfig::text(field, text, Signal::ALLOWED))
}

fn check_pool(config: &BoxConfig) -> Result<(), InvalidConfig> {
    let wrong = |field, value: String, allowed: &str| {
        Err(InvalidConfig { field, value, allowed: allowed.to_owned() })
    };
    let pool = &config.pool;
    if !(1..=256).contains(&pool.max_size) {
        return wrong("pool.max_size", pool.max_size.to_string(), "1 to 256 are allowed");
    }
    if pool.min_idle > pool.max_size {
        return wrong("pool.min_idle", pool.min_idle.to_string(), "0 to `pool.max_size` are allowed");
    }
    let scaling = &pool.scaling;
    if !(0.0..=1.0).contains(&scaling.scale_up_threshold) {
        let value = scaling.scale_up_threshold.to_string();
        return wrong("pool.scaling.scale_up_threshold", value, "0 to 1 are allowed");
    }
    if !(0.0..=scaling.scale_up_threshold).contains(&scaling.scale_down_threshold) {
        let value = scaling.scale_down_threshold.to_string();
        return wrong("pool.scaling.scale_down_threshold", value, "0 to `scale_up_threshold` are allowed");
    }
    if scaling.max_min_idle.is_some_and(|most| most > pool.max_size || most < pool.min_idle) {
        let value = scaling.max_min_idle.unwrap_or_default().to_string();
        return wrong("pool.scaling.max_min_idle", value, "`pool.min_idle` to `pool.max_size` are allowed");
    }
    in_range("pool.idle_ttl_secs", pool.idle_ttl_secs, 0..=MAX_IDLE_TTL_SECS, " s")?;
    in_range("pool.scaling.cooldown_secs", scaling.cooldown_secs, 0..=MAX_COOLDOWN_SECS, " s")?;
    in_range("pool.scaling.window_secs", scaling.window_secs, 1..=MAX_WINDOW_SECS, " s")
}

fn check_parts(config: &BoxConfig) -> Result<(), InvalidConfig> {
    if let Some(sidecar) = &config.sidecar {
        if crate::is_base_image(&sidecar.image) {
            let allowed = "an OCI image reference is needed";
            return Err(InvalidConfig::text("sidecar.image", &sidecar.image, allowed));
        }
        let port = sidecar.vsock_port;
        if port == 0 || port > u32::from(u16::MAX) || port == bouvet_wire::LINK_VSOCK_PORT {
            let allowed =
                format!("1 to 65535 are allowed, but for {} of the link", bouvet_wire::LINK_VSOCK_PORT);
            return Err(InvalidConfig { field: "sidecar.vsock_port", value: port.to_string(), allowed });
        }
        sidecar.env.iter().try_for_each(|(name, value)| check_env("sidecar.env", name, value))?;
    }
    let workload = match &config.tee {
        TeeConfig::None => return Ok(()),
        TeeConfig::SevSnp { workload_id, .. } | TeeConfig::Tdx { workload_id, .. } => workload_id,
    };
    if workload.is_empty() || workload.len() > MAX_NAME_BYTES || workload.contains(char::is_control) {
        let allowed = format!("1 to {MAX_NAME_BYTES} bytes of text are allowed");
        return Err(InvalidConfig::text("tee.workload_id", workload, allowed));
    }
    if config.pool.enabled {
        let allowed = "with `tee`, false is: what waits in a pool was not launched for its sandbox".into();
        return Err(InvalidConfig { field: "pool.enabled", value: "true".into(), allowed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxconfig::SidecarConfig;

    fn plan(change: impl FnOnce(&mut BoxConfig)) -> Result<Plan, InvalidConfig> {
        let mut config = BoxConfig::default();
        change(&mut config);
        config.plan()
    }

    fn field(change: impl FnOnce(&mut BoxConfig)) -> &'static str {
        plan(change).unwrap_err().field
    }

    fn list(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    #[test]
    fn the_default_is_what_docker_gives() {
        let security = plan(|_| ()).unwrap().security;
        assert_eq!(security.seccomp, Seccomp::Default);
        assert!(!security.privileged && !security.no_new_privileges);
        assert!(security.capabilities.has("CHOWN") && !security.capabilities.has("SYS_ADMIN"));
    }

    #[test]
    fn security_options_are_read() {
        let seccomp =
            |option: &str| plan(|c| c.security_opt = list(option)).map(|plan| plan.security.seccomp);
        assert_eq!(seccomp("seccomp=unconfined").unwrap(), Seccomp::Unconfined);
        assert_eq!(seccomp("seccomp=/etc/p.json").unwrap(), Seccomp::Profile("/etc/p.json".into()));
        assert!(plan(|c| c.security_opt = list("no-new-privileges")).unwrap().security.no_new_privileges);
        for wrong in ["seccomp=", "apparmor=x", "no-new-privileges=maybe", ""] {
            assert_eq!(seccomp(wrong).unwrap_err().field, "security_opt", "{wrong}");
        }
    }

    #[test]
    fn a_privileged_sandbox_keeps_all_and_takes_no_contradiction() {
        let security = plan(|c| c.privileged = true).unwrap().security;
        assert_eq!((security.capabilities, security.seccomp), (Capabilities::ALL, Seccomp::Unconfined));
        let dropping = |c: &mut BoxConfig| (c.privileged, c.cap_drop) = (true, list("CHOWN"));
        assert_eq!(field(dropping), "privileged");
    }

    #[test]
    fn ports_need_no_network() {
        let ports = plan(|c| c.port_map = list("8080:80")).unwrap().ports;
        assert_eq!(ports, ["127.0.0.1:8080:80/tcp".parse().unwrap()]);
        assert_eq!(field(|c| c.port_map = list("eighty")), "port_map");
        assert_eq!(field(|c| c.port_map = vec!["8080:80".into(), "8080:81".into()]), "port_map");
    }

    #[test]
    fn each_part_is_checked() {
        assert_eq!(field(|c| c.name = "-x".into()), "name");
        assert_eq!(field(|c| c.name = "x".repeat(65)), "name");
        assert!(plan(|c| c.name = "x".repeat(64)).is_ok());
        assert_eq!(field(|c| c.hostname = "a b".into()), "hostname");
        assert_eq!(field(|c| c.extra_hosts = list("db")), "extra_hosts");
        assert_eq!(field(|c| c.sysctls = list("kernel.panic=1")), "sysctls");
        for (bytes, is_right) in [(4095, false), (4096, true), (1 << 40, true), ((1 << 40) + 1, false)] {
            assert_eq!(plan(|c| c.shm_size = Some(bytes)).is_ok(), is_right, "{bytes}");
        }
        assert_eq!(field(|c| c.user = "a:b:c".into()), "user");
        assert!(plan(|c| c.user = "1000:1000".into()).is_ok());
        assert_eq!(field(|c| c.working_dir = "x/../y".into()), "working_dir");
        assert_eq!(field(|c| (c.idle, c.cmd) = (true, list("true"))), "idle");
        assert_eq!(field(|c| c.pool.max_size = 0), "pool.max_size");
        assert_eq!(field(|c| c.pool.min_idle = 6), "pool.min_idle");
        assert_eq!(
            field(|c| c.pool.scaling.scale_up_threshold = f64::NAN),
            "pool.scaling.scale_up_threshold"
        );
        assert_eq!(field(|c| c.pool.scaling.max_min_idle = Some(6)), "pool.scaling.max_min_idle");
        assert_eq!(field(|c| c.sidecar = Some(SidecarConfig::default())), "sidecar.image");
        let tee = TeeConfig::Tdx { workload_id: String::new(), simulate: true };
        assert_eq!(field(|c| c.tee = tee), "tee.workload_id");
        let tee = TeeConfig::Tdx { workload_id: "w".into(), simulate: true };
        assert!(plan(|c| c.tee = tee.clone()).is_ok());
        assert_eq!(field(|c| (c.tee, c.pool.enabled) = (tee, true)), "pool.enabled");
    }

    #[test]
    fn the_port_of_a_sidecar_is_none_of_the_link_s() {
        let sidecar = |vsock_port| SidecarConfig { image: "proxy".into(), vsock_port, ..Default::default() };
        assert!(plan(|c| c.sidecar = Some(sidecar(65_535))).is_ok());
        for wrong in [0, 65_536, bouvet_wire::LINK_VSOCK_PORT] {
            assert_eq!(field(|c| c.sidecar = Some(sidecar(wrong))), "sidecar.vsock_port");
        }
    }

    #[test]
    fn file_systems_within_others_are_mounted_after_them() {
        let paths = plan(|c| c.tmpfs = vec!["/a/b".into(), "/a".into()]).unwrap().tmpfs;
        assert_eq!(paths.iter().map(|tmpfs| &tmpfs.path[..]).collect::<Vec<_>>(), ["/a", "/a/b"]);
    }
}
