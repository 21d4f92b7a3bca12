//! The configuration on this machine: findings that the server logs when it starts, and `doctor` shows.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use bouvet_host::CgroupChoice;
use rustix::fs::{Access, access, statfs};

use super::Finding;
use crate::advice::RAISE_OPEN_FILES;
use crate::config::{Config, Unknown};
use crate::http::connections::{Shares, TooFewDescriptors};

/// `f_type` of file systems in memory: statfs(2).
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
/// Processes that may wait for each processor before VMs are slow to start, on average over a minute.
const MAX_LOAD_PER_CPU: f64 = 2.0;
/// `sysinfo` counts loads in these fractions: sysinfo(2).
const LOAD_UNITS: f64 = 65536.0;

/// Warnings of `unknown` variables, and findings about the configuration.
pub(crate) fn examine(config: &Config, unknown: &[Unknown]) -> Vec<Finding> {
    let mut findings = misspelled(unknown);
    findings.extend(chosen(config));
    findings.push(user(rustix::process::geteuid().is_root()));
    findings.push(directory(&config.host.dir));
    findings.extend(config.host.boxes.as_deref().and_then(Path::parent).map(data));
    findings.extend(config.expose.map(|address| expose(address, can_bind(address))));
    findings.push(open_files(Shares::here()));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    #[expect(clippy::cast_precision_loss, reason = "loads and processors are small numbers")]
    findings.push(load(rustix::system::sysinfo().loads[0] as f64 / LOAD_UNITS, cpus as f64));
    findings
}

/// The limit of open files, and what connections may have of it.
fn open_files(shares: Result<Shares, TooFewDescriptors>) -> Finding {
    match shares {
        Ok(Shares { http, commands }) => {
            let text = format!("enough for {http} connections over HTTP and {commands} of `bouvet` commands");
            Finding::ok("open files", text)
        }
        Err(error) => Finding::error("open files", error.to_string(), RAISE_OPEN_FILES),
    }
}

pub(super) fn misspelled(unknown: &[Unknown]) -> Vec<Finding> {
    let advice = "correct its name, or unset it; `bouvet serve --help` lists all";
    unknown.iter().map(|unknown| Finding::warning("variables", unknown.to_string(), advice)).collect()
}

/// The defaults that depend on user and machine.
fn chosen(config: &Config) -> Option<Finding> {
    let values: Vec<_> = config.chosen.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let cgroup = match config.host.cgroup {
        CgroupChoice::Off if config.chosen.iter().any(|(name, _)| *name == "BOUVET_CGROUP") => {
            " (no cgroup is delegated to this user)"
        }
        _ => "",
    };
    (!values.is_empty())
        .then(|| Finding::ok("defaults", format!("for this machine and user: {}{cgroup}", values.join(", "))))
}

fn user(is_root: bool) -> Finding {
    match is_root {
        true => Finding::ok("user", "root: each VM gets a user id of its own"),
        false => Finding::warning(
            "user",
            "not root: VMs run as this user, in its namespaces",
            "run the server as root, or read what this loses in docs/SELF_HOST.md#without-root",
        ),
    }
}

/// The directory in which the server makes its own, or the nearest above it that exists.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"))
}

fn directory(dir: &Path) -> Finding {
    let there = existing(dir);
    let advice = "set BOUVET_CHROOT to a directory of your own, on a disk";
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        return Finding::error("directory", unwritable(dir, there, error), advice);
    }
    match statfs(there) {
        // /proc, for example: there is nothing to write to.
        Ok(found) if found.f_blocks == 0 => {
            let text = format!("`{}` is on a file system without space", dir.display());
            Finding::error("directory", text, advice)
        }
        Ok(found) => judge_directory(dir, found.f_type),
        Err(error) => {
            Finding::error("directory", format!("`{}` cannot be used: {error}", there.display()), advice)
        }
    }
}

/// The words for `dir`, where `there` is it, or the nearest above it that exists.
fn unwritable(dir: &Path, there: &Path, error: rustix::io::Errno) -> String {
    match dir == there {
        true => format!("`{}` cannot be written: {error}", dir.display()),
        false => {
            format!("`{}` cannot be made, as `{}` cannot be written: {error}", dir.display(), there.display())
        }
    }
}

fn judge_directory(dir: &Path, file_system: i64) -> Finding {
    match file_system {
        TMPFS | RAMFS => Finding::warning(
            "directory",
            format!(
                "`{}` is in memory (tmpfs): files that a sandbox writes count as memory of its VM, which can end it",
                dir.display()
            ),
            "set BOUVET_CHROOT to a directory on a disk",
        ),
        _ => Finding::ok("directory", format!("`{}` can be written", dir.display())),
    }
}

fn data(dir: &Path) -> Finding {
    let there = existing(dir);
    match access(there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok("data", format!("`{}` can be written", dir.display())),
        Err(error) => Finding::error(
            "data",
            unwritable(dir, there, error),
            "set BOUVET_DATA to a directory of your own",
        ),
    }
}

fn can_bind(address: IpAddr) -> io::Result<()> {
    std::net::TcpListener::bind((address, 0)).map(drop)
}

fn expose(address: IpAddr, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::ok("expose", format!("ports are exposed on {address}")),
        Err(error) => Finding::warning(
            "expose",
            format!("ports cannot be exposed on {address}: {error}"),
            "set BOUVET_EXPOSE_ADDRESS to an address of this machine, or to off",
        ),
    }
}

fn load(load: f64, cpus: f64) -> Finding {
    let text = format!("{load:.1} on {cpus} processors");
    match load > MAX_LOAD_PER_CPU * cpus {
        true => Finding::warning(
            "load",
            format!("{text}: VMs start slowly, and may miss their deadlines"),
            "end other work, or start fewer sandboxes at once (BOUVET_POOL_MAX_BOOTS, BOUVET_POOL_MIN_SIZE)",
        ),
        false => Finding::ok("load", text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn few_open_files_are_an_error() {
        assert_eq!(open_files(Shares::of(Some(511))).level, Level::Error);
        let finding = open_files(Shares::of(Some(512)));
        assert!(finding.level == Level::Ok && finding.text.contains("56 connections"), "{}", finding.text);
    }

    #[test]
    fn directory_in_memory_is_a_warning() {
        let level = |file_system| judge_directory(Path::new("/tmp/bouvet"), file_system).level;
        let ext4 = 0xef53;
        assert_eq!([TMPFS, RAMFS, ext4].map(level), [Level::Warning, Level::Warning, Level::Ok]);
        assert_eq!(directory(Path::new("/dev/shm/bouvet")).level, Level::Warning);
    }

    #[test]
    fn directory_without_space_is_one_error() {
        let finding = directory(Path::new("/proc/x"));
        assert_eq!((finding.subject, finding.level), ("directory", Level::Error), "{finding}");
    }

    #[test]
    fn only_root_runs_without_a_warning() {
        assert_eq!((user(false).level, user(true).level), (Level::Warning, Level::Ok));
    }

    #[test]
    fn missing_directory_names_its_parent() {
        let words = |dir: &str| unwritable(Path::new(dir), Path::new("/a"), rustix::io::Errno::ACCESS);
        assert!(words("/a/b/c").starts_with("`/a/b/c` cannot be made, as `/a` cannot be written"));
        assert!(words("/a").starts_with("`/a` cannot be written"));
    }

    #[test]
    fn data_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        // Not even root makes a directory in a file.
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(data(&dir.path().join("file/x")).level, Level::Error);
        assert_eq!(data(&dir.path().join("deep/down")).level, Level::Ok);
    }

    #[test]
    fn expose_address_of_another_machine_is_a_warning() {
        // RFC 5737: no machine has it.
        let address = "192.0.2.1".parse().unwrap();
        let finding = expose(address, can_bind(address));
        assert_eq!(finding.level, Level::Warning, "{finding}");
        let own = "127.0.0.1".parse().unwrap();
        assert_eq!(expose(own, can_bind(own)).level, Level::Ok);
    }

    #[test]
    fn load_above_its_limit_is_a_warning() {
        assert_eq!((load(4.0, 2.0).level, load(4.1, 2.0).level), (Level::Ok, Level::Warning));
    }

    #[test]
    fn misspelled_variable_suggests_the_known_one() {
        let unknown = crate::config::unknown_variables(["BOUVET_CHROTT".to_owned()].into_iter());
        let findings = misspelled(&unknown);
        assert_eq!(findings[0].text, "the variable BOUVET_CHROTT is not known; did you mean BOUVET_CHROOT?");
    }
}
