//! The parts of a [`BoxConfig`](super::BoxConfig) that are values of their own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::plan::{MAX_COOLDOWN_SECS, MAX_IDLE_TTL_SECS};
use crate::attest::Technology;

/// What of a sandbox's life is worth a line in the host's log.
///
/// ```
/// use bouvet_host::{BoxConfig, LogLevel};
///
/// let config: BoxConfig = serde_json::from_str(r#"{"log_level": "warn"}"#)?;
/// assert_eq!(config.log_level, LogLevel::Warn);
/// assert!(BoxConfig::default().log_level < config.log_level);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// As [`LogLevel::Debug`].
    Trace,
    /// What happens, and its VM's console.
    Debug,
    /// What happens.
    #[default]
    Info,
    /// What may be wrong.
    Warn,
    /// What is wrong.
    Error,
}

/// Confidential computing: whether the sandbox's memory is encrypted, and attested.
///
/// No engine has the hardware's yet. Simulated, nothing is encrypted; the sandbox is booted for itself, not cloned, and
/// what it is launched from is measured, for [`Sandbox::attest`](crate::Sandbox::attest).
///
/// ```
/// use bouvet_host::{BoxConfig, TeeConfig};
///
/// let tee = TeeConfig::Tdx { workload_id: String::new(), simulate: true };
/// let error = BoxConfig { tee, ..BoxConfig::default() }.validate().unwrap_err();
/// assert_eq!(error.field, "tee.workload_id");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TeeConfig {
    /// Neither.
    #[default]
    None,
    /// AMD SEV-SNP.
    SevSnp {
        /// Names what runs, in the report.
        workload_id: String,
        /// Generation of the processor.
        #[serde(default)]
        generation: SevSnpGeneration,
        /// Makes reports without the hardware. They say so, and prove nothing.
        #[serde(default)]
        simulate: bool,
    },
    /// Intel TDX.
    Tdx {
        /// Names what runs, in the report.
        workload_id: String,
        /// Makes reports without the hardware. They say so, and prove nothing.
        #[serde(default)]
        simulate: bool,
    },
}

impl TeeConfig {
    /// Whose confidential computing is asked for.
    pub(crate) fn technology(&self) -> Option<Technology> {
        match self {
            Self::None => None,
            Self::SevSnp { .. } => Some(Technology::SevSnp),
            Self::Tdx { .. } => Some(Technology::Tdx),
        }
    }
}

/// Generations of AMD's processors with SEV-SNP.
///
/// ```
/// use bouvet_host::{SevSnpGeneration, TeeConfig};
///
/// let tee = serde_json::from_str(r#"{"sev_snp": {"workload_id": "agent", "generation": "genoa"}}"#)?;
/// let generation = SevSnpGeneration::Genoa;
/// assert_eq!(TeeConfig::SevSnp { workload_id: "agent".into(), generation, simulate: false }, tee);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SevSnpGeneration {
    /// EPYC 7003.
    #[default]
    Milan,
    /// EPYC 9004.
    Genoa,
}

/// Where images are kept, and how many.
///
/// ```
/// use bouvet_host::{BoxConfig, CacheConfig};
///
/// let fresh = CacheConfig { enabled: false, ..CacheConfig::default() };
/// let config = BoxConfig { image: "nginx:alpine".into(), cache: fresh, ..BoxConfig::default() };
/// let written = serde_json::to_string(&config)?;
/// assert!(!serde_json::from_str::<BoxConfig>(&written)?.cache.enabled);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Whether they are. Otherwise an image is fetched for this sandbox alone, and gone with it.
    pub enabled: bool,
    /// The directory. `None`: the host's.
    pub cache_dir: Option<PathBuf>,
    /// Root file systems that are kept, at most 1000000; beyond that the longest unused go.
    pub max_rootfs_entries: usize,
    /// Bytes that all of it may take: at most 1 PiB.
    pub max_cache_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { enabled: true, cache_dir: None, max_rootfs_entries: 10, max_cache_bytes: 10_000_000_000 }
    }
}

/// Sandboxes of one description that wait ready.
///
/// ```
/// use bouvet_host::{BoxConfig, PoolConfig};
///
/// let pool = PoolConfig { enabled: true, min_idle: 2, ..PoolConfig::default() };
/// assert!(BoxConfig { pool: pool.clone(), ..BoxConfig::default() }.validate().is_ok());
/// let pool = PoolConfig { max_size: 1, ..pool };
/// let error = BoxConfig { pool, ..BoxConfig::default() }.validate().unwrap_err();
/// assert_eq!(error.to_string(), "`pool.min_idle` is 2; 0 to `pool.max_size` are allowed");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Whether there are any.
    pub enabled: bool,
    /// How many wait at any time.
    pub min_idle: usize,
    /// How many may wait.
    pub max_size: usize,
    /// Those beyond `min_idle` go when they have waited so long, in seconds: at most a year. Zero: never.
    pub idle_ttl_secs: u64,
    /// How many wait, by how many are asked for.
    pub scaling: ScalingPolicy,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            min_idle: 1,
            max_size: 5,
            idle_ttl_secs: 300,
            scaling: ScalingPolicy::default(),
        }
    }
}

impl PoolConfig {
    /// See [`BoxConfig::within_bounds`](super::BoxConfig::within_bounds).
    pub(super) fn within_bounds(&mut self) {
        self.idle_ttl_secs = self.idle_ttl_secs.min(MAX_IDLE_TTL_SECS);
        self.scaling.cooldown_secs = self.scaling.cooldown_secs.min(MAX_COOLDOWN_SECS);
    }
}

/// How a pool follows demand.
///
/// ```
/// use bouvet_host::{BoxConfig, PoolConfig, ScalingPolicy};
///
/// let scaling = ScalingPolicy { enabled: true, scale_up_threshold: 1.5, ..ScalingPolicy::default() };
/// let pool = PoolConfig { enabled: true, scaling, ..PoolConfig::default() };
/// let error = BoxConfig { pool, ..BoxConfig::default() }.validate().unwrap_err();
/// assert_eq!(error.to_string(), "`pool.scaling.scale_up_threshold` is 1.5; 0 to 1 are allowed");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScalingPolicy {
    /// Whether it does.
    pub enabled: bool,
    /// One more waits when this part of the requests in a window found none ready: 0 to 1.
    pub scale_up_threshold: f64,
    /// One less waits when no larger part did: 0 to `scale_up_threshold`.
    pub scale_down_threshold: f64,
    /// The most that wait by this. `None`: the pool's `max_size`.
    pub max_min_idle: Option<usize>,
    /// Seconds between two changes: at most 86400.
    pub cooldown_secs: u64,
    /// Length of the window in seconds.
    pub window_secs: u64,
}

// A threshold is never NaN: validation refuses it.
impl Eq for ScalingPolicy {}

impl Default for ScalingPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            scale_up_threshold: 0.3,
            scale_down_threshold: 0.05,
            max_min_idle: None,
            cooldown_secs: 60,
            window_secs: 120,
        }
    }
}

/// What a sandbox can reach.
///
/// ```
/// use bouvet_host::{BoxConfig, NetworkMode};
///
/// let config: BoxConfig = serde_json::from_str(r#"{"network": {"bridge": {"network": "agents"}}}"#)?;
/// assert_eq!(config.network, NetworkMode::Bridge { network: "agents".into() });
/// assert_eq!(BoxConfig::default().network, NetworkMode::Tsi);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// What its rules allow, by way of the host: the internet, if nothing is said.
    #[default]
    Tsi,
    /// The sandboxes on the same named network too, by their names and addresses.
    Bridge {
        /// The network's name.
        network: String,
    },
    /// Nothing: it has no interface but its own loopback.
    None,
}

/// A second image's program that runs beside the main one.
///
/// ```
/// use bouvet_host::{BoxConfig, SidecarConfig};
///
/// let proxy = SidecarConfig { image: "ghcr.io/org/proxy:1".into(), ..SidecarConfig::default() };
/// let config = BoxConfig { sidecar: Some(proxy.clone()), ..BoxConfig::default() };
/// assert_eq!(config.validate(), Ok(()));
/// let sidecar = Some(SidecarConfig { vsock_port: 0, ..proxy });
/// assert_eq!(BoxConfig { sidecar, ..config }.validate().unwrap_err().field, "sidecar.vsock_port");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SidecarConfig {
    /// Its OCI image reference.
    pub image: String,
    /// Where it takes orders: a port of its vsock, or of its loopback.
    pub vsock_port: u32,
    /// Environment variables beside its image's.
    pub env: Vec<(String, String)>,
}

impl Default for SidecarConfig {
    fn default() -> Self {
        Self { image: String::new(), vsock_port: 4092, env: Vec::new() }
    }
}
