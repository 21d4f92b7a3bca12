//! Values of flags: read, and refused by the flags' names rather than the library's.

use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bouvet_host::{InvalidConfig, parse_size};
use clap::Args;

use super::outcome::Failed;
use crate::calendar;

/// Advice about a limit that no cgroup enforces.
const NO_CGROUPS: &str =
    "run the server as root, name a delegated cgroup in BOUVET_CGROUP, or leave the option away";
/// Advice about a port that only root may use.
const LOW_PORT: &str = "choose a port above 1023, as in `-p 8080:80`, or run the server as root";
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
            let example = if allowed.contains("as in") { "" } else { ", as in 512m" };
            format!("{name} {typed} means {typed} bytes; {allowed}{example}")
        }
        Some(typed) => format!("{name} {} is {value}; {allowed}", typed.escape_debug()),
        None => format!("`{name}` is {value}; {allowed}"),
    })
}

/// What a server refuses of a description, by the flags' names and with advice.
pub(super) fn refused(failed: Failed) -> Failed {
    let (first, rest) = failed.text.split_once(' ').unwrap_or((&failed.text, ""));
    let Some(name) = first.strip_prefix('`').and_then(|first| flag(first.strip_suffix('`')?)) else {
        let is_low_port = failed.text.contains("this process may not listen on");
        let hint = if is_low_port { LOW_PORT } else { &failed.hint };
        return Failed { hint: hint.to_owned(), ..failed };
    };
    let hint = match name {
        _ if rest.starts_with("needs cgroups") => NO_CGROUPS,
        "--volume" if rest.contains("must be there") => "create the directory or file first",
        "--memory" | "--cpus" => "`bouvet info` shows what the machine has",
        _ => &failed.hint,
    };
    Failed { text: format!("`{name}` {rest}"), hint: hint.to_owned(), code: failed.code }
}

/// A flag with a value that it cannot have.
pub(super) fn wrong(flag: &str, value: &str, allowed: &str) -> Failed {
    Failed::new(format!("`{flag}` is `{}`; {allowed}", value.escape_debug()))
}

/// Reads a number of an option.
pub(super) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| match text.parse::<i128>() {
        Ok(..0) => "a whole number that is not negative is allowed".to_owned(),
        Ok(_) => "a smaller number is allowed".to_owned(),
        Err(_) => "a whole number is allowed".to_owned(),
    })
}

/// The time that `text` means: an age, a time, or seconds since 1970.
pub(super) fn time(flag: &str, text: &str) -> Result<SystemTime, Failed> {
    let allowed = "how long ago (10m), a date (2026-01-31), a time (2026-01-31T12:00:00Z) and seconds since 1970 are allowed";
    let wrong = || wrong(flag, text, allowed);
    let epoch = |text: &str| {
        let since = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(since)
    };
    let time = match humantime::parse_duration(text) {
        Ok(ago) if epoch(text).is_none() => SystemTime::now().checked_sub(ago).ok_or_else(wrong)?,
        _ => match epoch(text) {
            Some(time) => time,
            None => {
                // A date alone, and a time without seconds, as docker has them; in UTC.
                let forms = [text.to_owned(), format!("{text}T00:00:00Z"), format!("{text}:00Z")];
                let time = forms.iter().find_map(|form| humantime::parse_rfc3339_weak(form).ok());
                time.ok_or_else(wrong)?
            }
        },
    };
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(calendar::LAST_UNIX_SECS);
    if time > last { Err(wrong()) } else { Ok(time) }
}

/// The time that was typed, for the server.
pub(super) fn time_for_server(flag: &str, text: Option<&str>) -> Result<Option<String>, Failed> {
    let time = text.map(|text| time(flag, text)).transpose()?;
    Ok(time.map(calendar::nanos))
}

/// The lines of a file of variables or labels, without comments and blank lines.
pub(super) fn lines_of(file: &Path) -> Result<Vec<String>, Failed> {
    let text = fs::read_to_string(file)
        .map_err(|error| Failed::new(format!("cannot read `{}`: {error}", file.display())))?;
    let lines = text.lines().map(str::trim_start);
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

// Its documentation would become the help of the commands that have it.
#[derive(Debug, Default, Args)]
pub(super) struct Platform {
    /// Platform of the image: only this machine's
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
}

impl Platform {
    /// Refuses platforms that this machine does not run.
    pub(super) fn check(&self) -> Result<(), Failed> {
        let Some(wanted) = &self.platform else { return Ok(()) };
        let ours = match std::env::consts::ARCH {
            "x86_64" => ["amd64", "x86_64"],
            "aarch64" => ["arm64", "aarch64"],
            other => [other, other],
        };
        let architecture = wanted.strip_prefix("linux/").unwrap_or(wanted);
        let architecture = architecture.strip_suffix("/v8").unwrap_or(architecture);
        match ours.contains(&architecture) {
            true => Ok(()),
            false => Err(wrong("--platform", wanted, &format!("this machine runs only linux/{}", ours[0]))),
        }
    }

    #[cfg(test)]
    pub(super) fn of(platform: &str) -> Self {
        Self { platform: Some(platform.to_owned()) }
    }
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
    fn times_are_ages_dates_or_seconds() {
        let of = |text: &str| time_for_server("--since", Some(text)).map_err(|failed| failed.text);
        assert_eq!(of("1700000000"), Ok(Some("2023-11-14T22:13:20.000000000Z".into())));
        assert_eq!(of("1700000000.5"), Ok(Some("2023-11-14T22:13:20.500000000Z".into())));
        assert_eq!(of("2026-01-31T12:00:00Z"), Ok(Some("2026-01-31T12:00:00.000000000Z".into())));
        assert_eq!(of("253402300799"), Ok(Some("9999-12-31T23:59:59.000000000Z".into())));
        assert_eq!(of("2026-01-31"), Ok(Some("2026-01-31T00:00:00.000000000Z".into())));
        assert_eq!(of("2026-01-31T12:30"), Ok(Some("2026-01-31T12:30:00.000000000Z".into())));
        assert!(of("10m").is_ok());
        for wrong in ["soon", "-5", "2026-01", "2026-13-01", "2026-01-31T12", "1e30", "", "253402300800"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_platforms_are_refused() {
        let ours = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
        assert!(Platform::default().check().is_ok() && Platform::of(ours).check().is_ok());
        assert!(Platform::of(&format!("linux/{ours}")).check().is_ok());
        assert!(
            Platform::of("linux/s390x").check().is_err() && Platform::of("windows/amd64").check().is_err()
        );
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

    #[test]
    fn refusals_of_server_name_the_flags() {
        let of = |text: &str| {
            let failed = refused(Failed::new(text).hint("h"));
            (failed.text, failed.hint)
        };
        let (text, hint) = of("`resources.memory_mb` is 204800 MiB; 128 to 16000 MiB are allowed");
        assert_eq!(text, "`--memory` is 204800 MiB; 128 to 16000 MiB are allowed");
        assert!(hint.contains("bouvet info"), "{hint}");
        let (text, hint) = of("`resource_limits.cpu_shares` needs cgroups with the controller `cpu`");
        assert_eq!((&*text, &*hint), ("`--cpu-shares` needs cgroups with the controller `cpu`", NO_CGROUPS));
        let (text, hint) = of("`volumes` is `/nosuch`; it must be there, but: not found");
        assert_eq!(text, "`--volume` is `/nosuch`; it must be there, but: not found");
        assert_eq!(hint, "create the directory or file first");
        let (_, hint) = of("could not have the port `80`: this process may not listen on 127.0.0.1:80");
        assert_eq!(hint, LOW_PORT);
        assert_eq!(of("the image is gone"), ("the image is gone".into(), "h".into()));
    }

    #[test]
    fn numbers_are_refused_in_words() {
        assert_eq!(number::<u64>("7"), Ok(7));
        for (text, why) in [
            ("abc", "a whole number is allowed"),
            ("-1", "a whole number that is not negative is allowed"),
            ("18446744073709551616", "a smaller number is allowed"),
        ] {
            assert_eq!(number::<u64>(text), Err(why.to_owned()), "{text}");
        }
    }
}
