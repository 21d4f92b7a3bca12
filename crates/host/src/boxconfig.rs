//! What a caller may say of a sandbox to be. [`BoxConfig::validate`] is the only gate.

use std::collections::BTreeMap;
use std::time::Duration;

/// Memory that a Linux guest with its tools needs at least.
const MIN_MEMORY_MB: u32 = 128;
/// More than any machine gives one sandbox. What this machine has is checked by the host.
const MAX_MEMORY_MB: u32 = 1024 * 1024;
const MAX_VCPUS: u32 = 32;
const DISK_MB: std::ops::RangeInclusive<u32> = 64..=1024 * 1024;
const MAX_ENV_BYTES: usize = 64 * 1024;

/// Description of one sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BoxConfig {
    /// Resource limits.
    pub resources: ResourceConfig,
    /// Extra environment variables for every program in the sandbox.
    pub extra_env: BTreeMap<String, String>,
    /// Refuse to run without hardware virtualization.
    pub require_hardware: bool,
}

/// What a sandbox may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceConfig {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory of the VM, in MiB.
    pub memory_mb: u32,
    /// Size of the writable layer, in MiB. Takes space on the host only as it is written.
    pub disk_mb: u32,
    /// The sandbox is destroyed when it is this old. Zero: never.
    pub timeout: Duration,
}

impl Default for ResourceConfig {
    fn default() -> Self {
        Self { vcpus: 2, memory_mb: 1024, disk_mb: 4096, timeout: Duration::from_secs(3600) }
    }
}

/// A field with a value that cannot be had.
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

impl BoxConfig {
    /// Whether this can be had on any machine.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let ResourceConfig { vcpus, memory_mb, disk_mb, .. } = self.resources;
        in_range("resources.vcpus", vcpus, 1..=MAX_VCPUS, "")?;
        in_range("resources.memory_mb", memory_mb, MIN_MEMORY_MB..=MAX_MEMORY_MB, " MiB")?;
        in_range("resources.disk_mb", disk_mb, DISK_MB, " MiB")?;
        let bytes: usize = self.extra_env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > MAX_ENV_BYTES {
            let allowed = format!("{MAX_ENV_BYTES} bytes are allowed");
            return Err(InvalidConfig { field: "extra_env", value: format!("{bytes} bytes long"), allowed });
        }
        self.extra_env.iter().try_for_each(|(name, value)| check_env("extra_env", name, value))
    }
}

fn in_range(
    field: &'static str,
    value: u32,
    allowed: std::ops::RangeInclusive<u32>,
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
        let env = |name: &str, value: &str| with(|c| drop(c.extra_env.insert(name.into(), value.into())));
        assert!(env("A", &"x".repeat(MAX_ENV_BYTES - 1)).is_ok());
        assert!(env("A", &"x".repeat(MAX_ENV_BYTES)).is_err());
        assert!(env("", "x").is_err());
        assert!(env("A=B", "x").is_err());
        assert!(env("A", "x\0").is_err());
    }
}
