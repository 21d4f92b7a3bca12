//! What was typed and cannot be: by the flags' names rather than the library's.

use bouvet_host::{InvalidConfig, parse_size};

use super::outcome::Failed;

const MIB: u64 = 1024 * 1024;

/// The flag that sets a field of a description.
fn flag(field: &str) -> Option<&'static str> {
    Some(match field {
        "image" => "IMAGE",
        "workspace" => "--workspace",
        "resources.vcpus" => "--cpus",
        "resources.memory_mb" => "--memory",
        "resources.disk_mb" => "--disk",
        "cmd" | "command" => "CMD",
        "entrypoint_override" => "--entrypoint",
        "volumes" => "--volume",
        "extra_env" | "env" => "--env",
        "port_map" => "--publish",
        "dns" => "--dns",
        "dns_search" => "--dns-search",
        "dns_option" => "--dns-option",
        "extra_hosts" => "--add-host",
        "sysctls" => "--sysctl",
        "shm_size" => "--shm-size",
        "hostname" => "--hostname",
        "network" => "--network",
        "allow" => "--allow",
        "deny" => "--deny",
        "secrets" => "--secret",
        "idle" => "--idle",
        "sidecar.image" => "--sidecar",
        "sidecar.vsock_port" => "--sidecar-port",
        "sidecar.env" => "--sidecar-env",
        "tee.workload_id" => "--tee-workload",
        "tmpfs" => "--tmpfs",
        "cap_add" => "--cap-add",
        "cap_drop" => "--cap-drop",
        "security_opt" => "--security-opt",
        "name" => "--name",
        "user" => "--user",
        "labels" => "--label",
        "restart" => "--restart",
        "group_add" => "--group-add",
        "stop_signal" => "--stop-signal",
        "stop_timeout_secs" => "--stop-timeout",
        "working_dir" => "--workdir",
        "resource_limits.pids_limit" => "--pids-limit",
        "resource_limits.cpuset_cpus" => "--cpuset-cpus",
        "resource_limits.ulimits" => "--ulimit",
        "resource_limits.cpu_shares" => "--cpu-shares",
        "resource_limits.cpu_quota" => "--cpu-quota",
        "resource_limits.cpu_period" => "--cpu-period",
        "resource_limits.memory_reservation" => "--memory-reservation",
        "resource_limits.memory_swap" => "--memory-swap",
        _ => return None,
    })
}

/// An invalid description, in words of this command line.
pub(super) fn of(error: &InvalidConfig) -> Failed {
    of_typed(error, |_| None)
}

/// The same, where `typed` has the size that was typed for a flag.
pub(super) fn of_typed<'a>(error: &InvalidConfig, typed: impl Fn(&str) -> Option<&'a str>) -> Failed {
    let name = flag(error.field).unwrap_or(error.field);
    let (value, allowed) = (&error.value, &error.allowed);
    Failed::new(match typed(name) {
        // Docker's sizes are bytes, and people mean megabytes.
        Some(typed) if typed.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{name} {typed} means {typed} bytes; {allowed}, as in 512m")
        }
        Some(typed) => format!("{name} {} is {value}; {allowed}", typed.escape_debug()),
        None => format!("`{name}` is {value}; {allowed}"),
    })
}

/// A flag with a value that it cannot have.
pub(super) fn wrong(flag: &str, value: &str, allowed: &str) -> Failed {
    Failed::new(format!("`{flag}` is `{}`; {allowed}", value.escape_debug()))
}

/// A size in bytes.
pub(super) fn bytes(flag: &str, text: &str) -> Result<u64, Failed> {
    parse_size(text).ok_or_else(|| wrong(flag, text, "a size like 512m or 2g is allowed"))
}

/// A size in whole MiB; what is left over counts as one.
pub(super) fn mib(flag: &str, text: &str) -> Result<u32, Failed> {
    let mib = bytes(flag, text)?.div_ceil(MIB);
    u32::try_from(mib).map_err(|_| wrong(flag, text, "a size like 512m or 2g is allowed"))
}

#[cfg(test)]
mod tests {
    use bouvet_host::{BoxConfig, ResourceConfig};

    use super::*;

    #[test]
    fn size_errors_show_what_was_typed() {
        let error = |memory_mb| {
            let resources = ResourceConfig { memory_mb, ..ResourceConfig::default() };
            BoxConfig { resources, ..BoxConfig::default() }.validate().unwrap_err()
        };
        let text = |memory_mb, typed| of_typed(&error(memory_mb), |_| Some(typed)).text;
        assert_eq!(
            text(1, "100"),
            "--memory 100 means 100 bytes; 128 to 1048576 MiB are allowed, as in 512m"
        );
        assert_eq!(text(64, "64m"), "--memory 64m is 64 MiB; 128 to 1048576 MiB are allowed");
        assert_eq!(of(&error(64)).text, "`--memory` is 64 MiB; 128 to 1048576 MiB are allowed");
    }

    #[test]
    fn sizes_are_read_in_mib() {
        assert_eq!(mib("--memory", "512m"), Ok(512));
        assert_eq!(mib("--memory", "2g"), Ok(2048));
        assert_eq!(mib("--memory", "1"), Ok(1));
        assert_eq!(
            mib("--memory", "much").unwrap_err().text,
            "`--memory` is `much`; a size like 512m or 2g is allowed"
        );
    }
}
