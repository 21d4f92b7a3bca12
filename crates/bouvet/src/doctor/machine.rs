//! The machine: processor, KVM, memory, disk, helper programs, descriptors, the port.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bouvet_host::{Acceleration, EngineChoice, Kvm, ToolError, chain};
use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::advice::SECOND_SERVER;
use crate::client;
use crate::config::Config;

/// Below this a server has room for few sandboxes' files.
const LITTLE_SPACE_MB: u64 = 3 * 1024;
/// Below this it has room for none.
const NO_SPACE_MB: u64 = 512;
/// Descriptors that the server holds for each sandbox, and for itself, at the most.
const FDS_PER_SANDBOX: u64 = 16;
const OWN_FDS: u64 = 256;
/// Of what it may have, a third is for all that is not chosen by guests: as `bouvet_host` shares them out.
const FD_SHARES: u64 = 3;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let host = &config.host;
    let found = Kvm::find();
    let memory = memory(config, found);
    let mut findings = vec![processor(std::env::consts::ARCH), kvm(found, host.engine), memory];
    findings.extend(space("disk space", "BOUVET_CHROOT", &host.dir));
    if let Some(templates) = &host.templates
        && !templates.starts_with(&host.dir)
    {
        findings.extend(space("templates", "BOUVET_TEMPLATES", templates));
    }
    findings.push(mke2fs(bouvet_host::check_mke2fs().await));
    findings.push(descriptors(getrlimit(Resource::Nofile).maximum, host.max_sandboxes));
    if config.transport.http() {
        findings.push(port(config.http.address).await);
    }
    findings
}

fn processor(architecture: &str) -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let text = format!("{architecture}, {cpus} to use");
    match architecture {
        "x86_64" => Finding::ok("processor", text),
        _ => Finding::error("processor", text, "run the server on x86_64: the engines run on no other yet"),
    }
}

fn kvm(kvm: Kvm, engine: EngineChoice) -> Finding {
    let (text, advice) = match kvm {
        Kvm::Hardware => {
            return Finding::ok("/dev/kvm", "works, with hardware virtualization");
        }
        Kvm::Software => (
            "works, but is itself emulated (the processor has neither vmx nor svm); Bouvet emulates without it"
                .to_owned(),
            "take a bare-metal instance, or switch on nested virtualization for this one",
        ),
        Kvm::Missing { processor: true } => (
            "not there, though the processor has virtualization".to_owned(),
            "`modprobe kvm_intel`, or kvm_amd; in a container, add `--device=/dev/kvm`",
        ),
        Kvm::Missing { processor: false } => (
            "not there, and the processor reports neither vmx nor svm".to_owned(),
            "take a bare-metal instance, switch on nested virtualization for this one, or virtualization in the firmware",
        ),
        Kvm::Denied => (
            "this user may not open it".to_owned(),
            "run the server as root, or `sudo usermod -aG kvm USER` and log in again; neither helps where the machine, or \
             the container, does not give KVM to root either",
        ),
        Kvm::Broken(kind) => (
            format!("there, but does not work: {kind}"),
            "end what else uses the processor's virtualization; `dmesg | grep -i kvm` may say more",
        ),
    };
    match (kvm, engine) {
        (Kvm::Software, _) => Finding::warning("/dev/kvm", text, advice),
        (_, EngineChoice::Firecracker) => Finding::error("/dev/kvm", text, advice),
        _ => Finding::warning("/dev/kvm", format!("{text}; QEMU emulates, slower"), advice),
    }
}

fn memory(config: &Config, kvm: Kvm) -> Finding {
    let info = rustix::system::sysinfo();
    let total_mb = info.totalram.saturating_mul(info.mem_unit.into()) / 1024 / 1024;
    let pool = config.host.pool.as_ref().map_or(0, |pool| pool.size);
    let guest_mb = config.sandbox.resources.memory_mb;
    // Firecracker uses KVM also where software stands behind it; QEMU does not.
    let acceleration = match (kvm, config.host.resolved_engine()) {
        (Kvm::Hardware, _) | (_, EngineChoice::Firecracker) => Acceleration::Hardware,
        _ => Acceleration::Software,
    };
    let sandbox_mb = u64::from(guest_mb) + acceleration.process_mb(guest_mb);
    judge_memory(total_mb, sandbox_mb, pool, config.host.max_sandboxes)
}

/// `sandbox_mb` is for the VM of the default size and its process.
fn judge_memory(total_mb: u64, sandbox_mb: u64, pool: u32, max_sandboxes: u32) -> Finding {
    let mb_of = |sandboxes: u32| u64::from(sandboxes) * sandbox_mb;
    let text = format!(
        "{total_mb} MiB; a sandbox of the default size may use {sandbox_mb} MiB with its VM's process: {} MiB for the pool \
         of {pool}, {} MiB for all {max_sandboxes}",
        mb_of(pool),
        mb_of(max_sandboxes)
    );
    if mb_of(pool) > total_mb {
        return Finding::warning("memory", text, "set BOUVET_POOL_MIN_SIZE lower");
    }
    Finding::ok("memory", text)
}

/// Free space of the file system of `dir`, which may not exist yet. `None`: the file system has no space at all, which is an
/// error of the directory.
fn space(subject: &'static str, variable: &str, dir: &Path) -> Option<Finding> {
    let there: PathBuf = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")).into();
    match rustix::fs::statvfs(&there) {
        Ok(found) if found.f_blocks == 0 => None,
        Ok(found) => Some(judge_space(subject, variable, dir, found.f_bavail * found.f_frsize / 1024 / 1024)),
        Err(error) => Some(Finding::error(
            subject,
            format!("`{}` cannot be used: {error}", there.display()),
            format!("set {variable} to a directory of your own"),
        )),
    }
}

fn judge_space(subject: &'static str, variable: &str, dir: &Path, free_mb: u64) -> Finding {
    let text = format!("{free_mb} MiB are free for `{}`", dir.display());
    let advice = format!("make room, or set {variable} to a directory on a larger disk");
    match free_mb {
        0..NO_SPACE_MB => Finding::error(subject, text, advice),
        NO_SPACE_MB..LITTLE_SPACE_MB => Finding::warning(subject, text, advice),
        _ => Finding::ok(subject, text),
    }
}

fn mke2fs(checked: Result<(), ToolError>) -> Finding {
    match checked {
        Ok(()) => Finding::ok("mke2fs", "can be run; it makes the sandboxes' disks"),
        Err(error) => Finding::error("mke2fs", chain(&error), "`apt-get install e2fsprogs`"),
    }
}

/// What the server raises its own limit to. `None` is without limit.
fn descriptors(limit: Option<u64>, max_sandboxes: u32) -> Finding {
    let needed = FD_SHARES * (OWN_FDS + FDS_PER_SANDBOX * u64::from(max_sandboxes));
    match limit {
        Some(limit) if limit < needed => Finding::warning(
            "descriptors",
            format!(
                "{limit} may be open; {max_sandboxes} sandboxes can need {needed}, connections and volumes among them"
            ),
            format!("`ulimit -Hn {needed}`, LimitNOFILE in the unit, or a lower BOUVET_MAX_SANDBOXES"),
        ),
        Some(limit) => {
            let share = limit / FD_SHARES;
            let text = format!(
                "{limit} may be open, {share} of them connections of sandboxes, {share} files of volumes"
            );
            Finding::ok("descriptors", text)
        }
        None => Finding::ok("descriptors", "as many as there are may be open"),
    }
}

async fn port(address: SocketAddr) -> Finding {
    let bound = tokio::net::TcpListener::bind(address).await.map(drop);
    let taken = matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
    let ours = taken && client::is_bouvet(address).await;
    judge_port(address, bound, ours)
}

fn judge_port(address: SocketAddr, bound: io::Result<()>, ours: bool) -> Finding {
    let open = address.ip().is_unspecified() || !address.ip().is_loopback();
    match bound {
        // A warning: the machine is as it should be, and `bouvet serve` fails.
        Err(_) if ours => Finding::warning(
            "port",
            format!(
                "a Bouvet server is already running on {address}: `bouvet serve` cannot start a second one there"
            ),
            SECOND_SERVER,
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && address.port() < 1024 => {
            Finding::error(
                "port",
                format!("this user may not listen on {address}"),
                "set BOUVET_HTTP_PORT to 1024 or more",
            )
        }
        Err(error) => Finding::error(
            "port",
            format!("could not listen on {address}: {error}"),
            "set BOUVET_HTTP_PORT to a free port and BOUVET_HTTP_HOST to an address of this machine, or \
             BOUVET_TRANSPORT=stdio",
        ),
        Ok(()) if open => Finding::warning(
            "port",
            format!("{address} is free, and other machines may reach it: the server asks for no password"),
            "set BOUVET_HTTP_HOST=127.0.0.1, with a reverse proxy for others",
        ),
        Ok(()) => Finding::ok("port", format!("{address} is free")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn kvm_is_an_error_only_where_firecracker_is_demanded() {
        let all = [
            Kvm::Hardware,
            Kvm::Software,
            Kvm::Missing { processor: true },
            Kvm::Missing { processor: false },
            Kvm::Denied,
            Kvm::Broken(io::ErrorKind::ResourceBusy),
        ];
        let levels = |engine| all.map(|found| kvm(found, engine).level);
        let (ok, warning, error) = (Level::Ok, Level::Warning, Level::Error);
        assert_eq!(levels(EngineChoice::Auto), [ok, warning, warning, warning, warning, warning]);
        assert_eq!(levels(EngineChoice::Firecracker), [ok, warning, error, error, error, error]);
        assert!(all.iter().skip(1).all(|found| kvm(*found, EngineChoice::Auto).advice.is_some()));
        let advice = |found| kvm(found, EngineChoice::Auto).advice.unwrap();
        assert!(advice(Kvm::Missing { processor: true }).contains("modprobe"));
        assert!(advice(Kvm::Denied).contains("usermod"));
    }

    #[test]
    fn memory_for_the_pool_is_required() {
        // 256 MiB, and 264 MiB for QEMU.
        let judge = |total_mb| judge_memory(total_mb, 520, 3, 100);
        assert_eq!((judge(1560).level, judge(1559).level), (Level::Ok, Level::Warning));
        assert_eq!(
            judge(4096).text,
            "4096 MiB; a sandbox of the default size may use 520 MiB with its VM's process: 1560 MiB for the pool of 3, \
             52000 MiB for all 100"
        );
    }

    #[test]
    fn space_is_judged_by_what_sandboxes_need() {
        let level = |free| judge_space("disk space", "BOUVET_CHROOT", Path::new("/d"), free).level;
        assert_eq!([0, 511, 512, 3071, 3072].map(level), {
            let (ok, warning, error) = (Level::Ok, Level::Warning, Level::Error);
            [error, error, warning, warning, ok]
        });
        let missing = Path::new("/nonexistent/deep/down");
        assert!(space("disk space", "BOUVET_CHROOT", missing).is_some(), "of what it will be on");
        assert_eq!(space("disk space", "BOUVET_CHROOT", Path::new("/proc/x")), None);
    }

    #[test]
    fn descriptors_are_counted_for_all_sandboxes() {
        // Each sandbox has 16, the server 256 and all of that is a third.
        assert_eq!(descriptors(Some(3 * 1856 - 1), 100).level, Level::Warning);
        let enough = descriptors(Some(3 * 1856), 100);
        assert_eq!(enough.level, Level::Ok);
        assert!(enough.text.contains("1856 of them connections"), "{}", enough.text);
        assert_eq!(descriptors(None, 1000).level, Level::Ok);
    }

    #[tokio::test]
    async fn a_port_that_another_program_has_is_an_error() {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let (finding, _) = tokio::join!(port(address), async {
            // Whoever it is, it speaks no HTTP.
            drop(taken.accept().await);
        });
        assert_eq!((finding.subject, finding.level), ("port", Level::Error), "{finding}");
        drop(taken);
        assert_eq!(port(address).await.level, Level::Ok);
    }

    #[test]
    fn a_port_that_others_reach_is_pointed_out() {
        let judge = |address: &str| judge_port(address.parse().unwrap(), Ok(()), false).level;
        assert_eq!(judge("0.0.0.0:8080"), Level::Warning);
        assert_eq!(judge("127.0.0.1:8080"), Level::Ok);
        assert_eq!(judge("[::1]:8080"), Level::Ok);
        let denied =
            judge_port("127.0.0.1:80".parse().unwrap(), Err(io::ErrorKind::PermissionDenied.into()), false);
        assert!(denied.advice.unwrap().contains("1024"));
        let ours = judge_port("127.0.0.1:80".parse().unwrap(), Err(io::ErrorKind::AddrInUse.into()), true);
        assert_eq!(ours.level, Level::Warning);
    }

    #[test]
    fn other_processors_are_refused() {
        assert_eq!(processor("x86_64").level, Level::Ok);
        assert_eq!(processor("aarch64").level, Level::Error);
    }
}
