//! The machine that was measured on, and what processes hold of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use procfs::process::Process;
use procfs::{Current as _, Meminfo};
use serde::Serialize;
use serde_json::Value;

use super::program;

const BYTES_PER_MB: f64 = 1e6;
/// Directories below one another that are looked into, at most.
const MAX_DEPTH: usize = 8;

/// Facts without which figures mean little. What could not be found out is empty.
#[derive(Debug, Default, Serialize)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    memory_mb: u64,
    kernel: String,
    qemu: String,
    podman: String,
    /// What makes the server's VMs.
    engine: String,
    /// `kvm` where hardware virtualization is used, `tcg` where instructions are emulated.
    acceleration: String,
    server_version: String,
    /// `debug` for a build that was not optimised, of which no figure counts.
    build: &'static str,
}

impl Machine {
    pub(super) async fn look() -> Self {
        let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
        let first = |info: procfs::CpuInfo| info.get_field(0, "model name").map(str::to_owned);
        Self {
            processor: procfs::CpuInfo::current().ok().and_then(first).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mb: Meminfo::current().map_or(0, |memory| memory.mem_total / 1_000_000),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| String::new(), |release| release.trim().to_owned()),
            qemu: version(&qemu).await,
            podman: version("podman").await,
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            ..Self::default()
        }
    }

    /// Whether the server's VMs have hardware virtualization.
    pub(super) fn has_hardware(&self) -> bool {
        self.acceleration == "kvm"
    }

    /// Takes what the server says of itself under `/health?details`.
    pub(super) fn learn(&mut self, health: &Value) {
        let text = |field: &str| health[field].as_str().unwrap_or_default().to_owned();
        (self.engine, self.acceleration) = (text("engine"), text("acceleration"));
        self.server_version = text("version");
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_mb, kernel, qemu, podman, server_version, build, .. } = self;
        let virtualization = match self.acceleration.as_str() {
            "kvm" => "hardware virtualization",
            "tcg" => "software emulation, no hardware virtualization",
            "kvm-software" => "KVM in software, no hardware virtualization",
            _ => "acceleration not known",
        };
        write!(
            f,
            "{cores} cores ({processor}), {memory_mb} MB of memory, Linux {kernel}; {virtualization}; "
        )?;
        let server = if server_version.is_empty() { "of unknown version" } else { server_version };
        write!(f, "Bouvet {server} ({build} build)")?;
        [qemu, podman].into_iter().filter(|name| !name.is_empty()).try_for_each(|name| write!(f, ", {name}"))
    }
}

/// The first line of what `program` says of its version; empty if it is not there.
async fn version(program: &str) -> String {
    let said = program::run(program, &["--version"], program::SHORT).await.unwrap_or_default();
    said.lines().next().unwrap_or_default().to_owned()
}

/// Memory that programs can have without anything being swapped out, in MB. The median of a few looks: what
/// is taken for a moment and given back would count by chance.
pub(super) async fn available_mb() -> anyhow::Result<f64> {
    const LOOKS: usize = 5;
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let available = Meminfo::current()?.mem_available.context("the kernel does not say MemAvailable")?;
        looks.push(megabytes(available));
    }
    looks.sort_by(f64::total_cmp);
    Ok(looks[LOOKS / 2])
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / BYTES_PER_MB
}

/// The processes that `parent` started and has not reaped.
pub(super) fn children(parent: u32) -> anyhow::Result<Vec<Process>> {
    let parent = i32::try_from(parent).context("process id")?;
    // Processes that end meanwhile are no children any more.
    let all = procfs::process::all_processes()?.flatten();
    Ok(all.filter(|process| process.stat().is_ok_and(|stat| stat.ppid == parent)).collect())
}

/// Processor time that the processes took so far.
pub(super) fn cpu_time(processes: &[Process]) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for process in processes {
        let stat = process.stat().context("a VM's process ended while it was watched")?;
        ticks += stat.utime + stat.stime;
    }
    Ok(Duration::from_millis(ticks * 1000 / procfs::ticks_per_second()))
}

/// Memory of a process that it shares with no other, in MB.
pub(super) fn private_mb(process: &Process) -> anyhow::Result<f64> {
    let rollup = process.smaps_rollup()?.memory_map_rollup;
    let of = |name: &str| -> u64 { rollup.iter().filter_map(|map| map.extension.map.get(name)).sum() };
    Ok(megabytes(of("Private_Clean") + of("Private_Dirty")))
}

/// The cgroup below which the VMs of `server` have theirs. `None` where they have none of their own, and
/// where there is no VM to ask.
pub(super) fn cgroup_of_vms(server: u32) -> anyhow::Result<Option<PathBuf>> {
    let of = |process: &Process| {
        let groups = process.cgroups().ok()?.0;
        let group = groups.iter().find(|group| group.controllers.iter().any(|name| name == "memory"));
        let group = group.or_else(|| groups.iter().find(|group| group.hierarchy == 0))?;
        let mount = if group.hierarchy == 0 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
        Some(Path::new(mount).join(group.pathname.trim_start_matches('/')))
    };
    let own = Process::new(i32::try_from(server).context("process id")?).ok().as_ref().and_then(of);
    let vm = children(server)?.first().and_then(of);
    Ok(vm.filter(|vm| Some(vm) != own.as_ref()).and_then(|vm| vm.parent().map(Path::to_owned)))
}

/// How many entries a directory and those below it have. One that is not there, or goes meanwhile, has none.
pub(super) fn count_entries(dir: &Path, only_dirs: bool) -> usize {
    let mut waiting = vec![(dir.to_owned(), 0)];
    let mut count = 0;
    while let Some((dir, depth)) = waiting.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            count += usize::from(is_dir || !only_dirs);
            if is_dir && depth < MAX_DEPTH {
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_says_what_it_runs_on() {
        let mut machine = Machine::default();
        machine.learn(&json!({ "engine": "qemu", "acceleration": "tcg", "version": "0.1.0" }));
        assert!(machine.to_string().contains("no hardware virtualization; Bouvet 0.1.0"), "{machine}");
        machine.learn(&json!("nonsense"));
        assert!(
            machine.to_string().contains("acceleration not known; Bouvet of unknown version"),
            "{machine}"
        );
    }

    #[test]
    fn entries_are_counted_at_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/c"), "").unwrap();
        assert_eq!((count_entries(dir.path(), false), count_entries(dir.path(), true)), (3, 2));
        assert_eq!(count_entries(&dir.path().join("missing"), false), 0);
    }

    #[test]
    fn one_sees_oneself() {
        let own = Process::myself().unwrap();
        assert!(private_mb(&own).unwrap() > 0.1);
        let parent = u32::try_from(own.stat().unwrap().ppid).unwrap();
        assert!(children(parent).unwrap().iter().any(|child| child.pid == own.pid));
    }
}
