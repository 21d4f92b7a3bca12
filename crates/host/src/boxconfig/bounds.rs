//! Every number in a description, at its bound and one past it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{BoxConfig, PoolConfig, ResourceLimits, ScalingPolicy, SidecarConfig};

/// Each number: its path in the JSON, the bound, what is one past it, and how the error names the bound.
fn table() -> Vec<(&'static str, Value, Value, &'static str)> {
    let row = |path, bound: i64, words| (path, json!(bound), json!(bound + 1), words);
    let half = json!(0.5);
    vec![
        row("/resources/vcpus", 32, "1 to 32 are allowed"),
        row("/resources/memory_mb", 1 << 20, "128 to 1048576 MiB are allowed"),
        row("/resources/disk_mb", 1 << 20, "64 to 1048576 MiB are allowed"),
        row("/resources/timeout", 31_536_000, "0 to 31536000 s are allowed"),
        ("/resources/timeout", json!(0), json!(1_000_000_000_000_u64), "0 to 31536000 s are allowed"),
        ("/resources/timeout", json!(0), json!(1_u64 << 63), "0 to 31536000 s are allowed"),
        ("/resources/timeout", json!(0), json!(u64::MAX), "0 to 31536000 s are allowed"),
        row("/cache/max_rootfs_entries", 1_000_000, "0 to 1000000 are allowed"),
        row("/cache/max_cache_bytes", 1 << 50, "0 to 1125899906842624 bytes are allowed"),
        row("/pool/min_idle", 256, "0 to `pool.max_size` are allowed"),
        row("/pool/max_size", 256, "1 to 256 are allowed"),
        row("/pool/idle_ttl_secs", 31_536_000, "0 to 31536000 s are allowed"),
        ("/pool/scaling/scale_up_threshold", json!(1.0), json!(1.1), "0 to 1 are allowed"),
        ("/pool/scaling/scale_down_threshold", half, json!(0.6), "0 to `scale_up_threshold` are allowed"),
        row("/pool/scaling/max_min_idle", 256, "`pool.min_idle` to `pool.max_size` are allowed"),
        row("/pool/scaling/cooldown_secs", 86_400, "0 to 86400 s are allowed"),
        row("/pool/scaling/window_secs", 86_400, "1 to 86400 s are allowed"),
        row("/network_limits/max_connections", 65_536, "1 to 65536 are allowed"),
        row("/network_limits/max_datagram_flows", 65_536, "1 to 65536 are allowed"),
        row("/network_limits/buffer_bytes", 4_194_304, "16384 to 4194304 are allowed"),
        row("/network_limits/packets_per_s", 10_000_000, "100 to 10000000 are allowed"),
        row("/network_limits/bytes_per_s", 4_000_000_000, "262144 to 4000000000 are allowed"),
        row("/network_limits/queries_per_s", 10_000, "1 to 10000 are allowed"),
        row("/network_limits/echoes_per_s", 1000, "1 to 1000 are allowed"),
        row("/network_limits/dial_timeout_ms", 120_000, "100 to 120000 are allowed"),
        row("/network_limits/idle_connection_s", 604_800, "10 to 604800 are allowed"),
        row("/network_limits/idle_datagrams_s", 3600, "5 to 3600 are allowed"),
        row("/resource_limits/pids_limit", 4_194_304, "1 to 4194304 are allowed"),
        row("/resource_limits/cpu_shares", 262_144, "2 to 262144 are allowed"),
        row("/resource_limits/cpu_quota", 4_096_000_000, "1000 to 4096000000, are allowed"),
        row("/resource_limits/cpu_period", 1_000_000, "1000 to 1000000 are allowed"),
        row("/resource_limits/memory_reservation", 1 << 30, "0 to 1073741824 are allowed"),
        row("/resource_limits/memory_swap", 1 << 50, "to 1125899906842624, are allowed"),
        row("/sidecar/vsock_port", 65_535, "1 to 65535 are allowed"),
        row("/shm_size", 1 << 40, "4096 to 1099511627776 bytes are allowed"),
        row("/stop_timeout_secs", 86_400, "0 to 86400 s are allowed"),
    ]
}

/// A description in which every number is set.
fn full() -> Value {
    let scaling = ScalingPolicy { scale_up_threshold: 0.5, max_min_idle: Some(256), ..Default::default() };
    let config = BoxConfig {
        pool: PoolConfig { max_size: 256, scaling, ..PoolConfig::default() },
        resource_limits: ResourceLimits {
            pids_limit: Some(1),
            cpu_shares: Some(2),
            cpu_quota: Some(1000),
            cpu_period: Some(1000),
            memory_reservation: Some(0),
            memory_swap: Some(-1),
            ..ResourceLimits::default()
        },
        sidecar: Some(SidecarConfig { image: "alpine".into(), ..SidecarConfig::default() }),
        shm_size: Some(4096),
        stop_timeout_secs: Some(0),
        ..BoxConfig::default()
    };
    serde_json::to_value(config).unwrap()
}

fn numbers(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Number(_) => drop(found.insert(path.to_owned())),
        Value::Object(object) => {
            object.iter().for_each(|(name, value)| numbers(value, &format!("{path}/{name}"), found));
        }
        Value::Array(list) => list.iter().for_each(|value| numbers(value, path, found)),
        _ => {}
    }
}

/// What is said of the description in which the number at `path` is `value`.
fn with(path: &str, value: &Value) -> Result<BoxConfig, String> {
    let mut config = full();
    *config.pointer_mut(path).unwrap() = value.clone();
    let config: BoxConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn every_number_is_bounded_by_name() {
    for (path, bound, past, words) in table() {
        assert_eq!(with(path, &bound).map(drop), Ok(()), "{path} {bound}");
        let error = with(path, &past).unwrap_err();
        let name = path.rsplit('/').next().unwrap();
        assert!(error.contains(name) && error.contains(words), "{path} {past}: {error}");
    }
}

#[test]
fn bounds_table_has_every_number() {
    let mut found = BTreeSet::new();
    numbers(&full(), "", &mut found);
    let listed: BTreeSet<_> = table().iter().map(|(path, ..)| (*path).to_owned()).collect();
    assert_eq!(found, listed);
}

#[test]
fn sizes_in_text_are_bounded() {
    for (bound, past) in [("/a:size=1t", "/a:size=1099511627777"), ("/a:size=1", "/a:size=0")] {
        let config = |text: &str| BoxConfig { tmpfs: vec![text.into()], ..BoxConfig::default() };
        assert_eq!(config(bound).validate(), Ok(()));
        let error = config(past).validate().unwrap_err().to_string();
        assert!(error.contains("1 byte to 1 TiB"), "{error}");
    }
    let limit = |text: &str| {
        let resource_limits = ResourceLimits { ulimits: vec![text.into()], ..ResourceLimits::default() };
        BoxConfig { resource_limits, ..BoxConfig::default() }.validate().map_err(|error| error.field)
    };
    assert_eq!(limit("cpu=18446744073709551615"), Ok(()));
    assert_eq!(limit("cpu=18446744073709551616"), Err("resource_limits.ulimits"));
}

#[test]
fn old_descriptions_are_brought_within_bounds() {
    let mut old = full();
    for (path, _, past, _) in table() {
        let unbounded = [
            "/resources/timeout",
            "/cache/max_rootfs_entries",
            "/cache/max_cache_bytes",
            "/pool/idle_ttl_secs",
            "/pool/scaling/cooldown_secs",
            "/resource_limits/cpu_quota",
            "/resource_limits/memory_swap",
        ];
        if unbounded.contains(&path) {
            *old.pointer_mut(path).unwrap() = past;
        }
    }
    old["tmpfs"] = json!(["/a:mode=700,size=2t", "/b:size=64m", "/c"]);
    let old: BoxConfig = serde_json::from_value(old).unwrap();
    assert!(old.validate().is_err());
    let config = old.within_bounds();
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(config.tmpfs, ["/a:mode=700,size=1099511627776", "/b:size=64m", "/c"]);
    let usual = BoxConfig { tmpfs: vec!["/b:size=64m,ro".into()], ..BoxConfig::default() };
    assert_eq!(usual.clone().within_bounds(), usual);
}
