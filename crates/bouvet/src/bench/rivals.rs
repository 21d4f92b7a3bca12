//! The same work with containers, where they are installed: podman, with each runtime that there is.
//!
//! A container gets our own rootfs, without a copy: an overlay over the image, as our VMs have it. Everything
//! happens in namespaces of its own, so that mounts and processes go with them, whatever becomes of us.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use super::report::Unit;
use super::{Run, machine, program};

const RUNTIMES: [&str; 2] = ["crun", "runsc"];
/// Containers whose memory is measured, at most: each takes a part of a second to start.
const MAX_CONTAINERS: u32 = 20;
/// Of one command of podman.
const DEADLINE: Duration = Duration::from_secs(60);
/// Keeps new mount and process namespaces until its standard input ends, and reaps what nobody else does.
#[rustfmt::skip] // an option is one line
const HOLDER: [&str; 9] = [
    "--mount", "--propagation=private",
    "--pid", "--fork", "--kill-child", "--mount-proc",
    "env", "--ignore-signal=CHLD", "cat",
];
/// Version 2 of cgroups where version 1 is mounted too. crun refuses to work with both, and gets version 1.
const SECOND_CGROUPS: &str = "/sys/fs/cgroup/unified";
/// What every container is started with. podman's default limits are more than it may set without
/// CAP_SYS_RESOURCE; our sandboxes have no network either.
const CONTAINER: [&str; 3] = ["--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];

/// Measures each rival, or says why not.
pub(super) async fn rivals(run: &mut Run) -> anyhow::Result<()> {
    for runtime in RUNTIMES {
        let name = format!("podman with {runtime}");
        if let Some(reason) = missing(runtime, &run.config.host.rootfs) {
            run.report.skip(&name, reason);
            continue;
        }
        let podman = Podman::prepare(runtime, &run.config.host.rootfs).await.context(name.clone())?;
        let measured = measure(run, &podman, &name).await;
        let ended = podman.end().await;
        measured.and(ended).context(name)?;
    }
    Ok(())
}

fn missing(runtime: &str, rootfs: &Path) -> Option<String> {
    let tools = ["podman", runtime, "unshare", "nsenter", "mount", "umount"];
    if let Some(tool) = tools.into_iter().find(|tool| program::find(tool).is_none()) {
        return Some(format!("{tool}: not installed"));
    }
    if !rustix::process::geteuid().is_root() {
        return Some("only root can mount the rootfs".to_owned());
    }
    (!rootfs.is_file()).then(|| format!("there is no rootfs `{}`", rootfs.display()))
}

async fn measure(run: &mut Run, podman: &Podman, name: &str) -> anyhow::Result<()> {
    let runtime = podman.runtime;
    let waiting = podman.start().await?;
    let work: [(&str, &str, &[&str], &str); 2] = [
        ("true", "true", &["true"], ""),
        ("python", "python3 -c 'print(1)'", &["python3", "-c", "print(1)"], "1\n"),
    ];
    for (id, what, program, prints) in work {
        let (id, title) = (format!("podman-{runtime}-run-{id}"), format!("{name}: run --rm {what}"));
        repeat(run, &id, &title, prints, || podman.container(&["run", "--rm"], program)).await?;
    }
    for (id, what, program, prints) in work {
        let (id, title) = (format!("podman-{runtime}-exec-{id}"), format!("{name}: exec {what}"));
        let arguments: Vec<&str> = ["exec", &waiting].into_iter().chain(program.iter().copied()).collect();
        repeat(run, &id, &title, prints, || podman.run(&arguments)).await?;
    }
    let count = run.line.sandboxes.unwrap_or(MAX_CONTAINERS).min(MAX_CONTAINERS);
    let before = machine::available_mb().await?;
    for number in 1..=count {
        run.say(format!("{name}: memory, container {number} of {count}"));
        podman.start().await?;
    }
    let each = (before - machine::available_mb().await?) / f64::from(count);
    let title = format!("{name}: memory of a container that sleeps, over {count}");
    run.report.add(&format!("podman-{runtime}-memory"), &title, Unit::Mb, vec![each]);
    Ok(())
}

/// Times what must print `prints`. The first time reads everything from disk, and does not count.
async fn repeat<F: Future<Output = anyhow::Result<String>>>(
    run: &mut Run,
    id: &str,
    title: &str,
    prints: &str,
    work: impl Fn() -> F,
) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for time in 0..=run.line.repeat {
        run.say(format!("{title}: {time} of {}", run.line.repeat));
        let started = Instant::now();
        let printed = work().await?;
        times.push(started.elapsed());
        ensure!(printed == prints, "{title} printed `{printed}`");
    }
    run.report.add_times(id, title, &times[1..]);
    Ok(())
}

/// podman with state of its own, and namespaces to use it in.
#[derive(Debug)]
struct Podman {
    runtime: &'static str,
    holder: Child,
    /// Options of `nsenter` that name them.
    namespaces: [String; 2],
    /// The cgroup below which podman makes its own.
    cgroup: String,
    dir: TempDir,
}

impl Podman {
    async fn prepare(runtime: &'static str, rootfs: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("could not make a directory for podman")?;
        let mut command = program::command("unshare", &HOLDER);
        let mut holder =
            command.stdin(std::process::Stdio::piped()).spawn().context("could not start unshare")?;
        // Its answer says that it is in its namespaces: to mount anything before would be to mount it in
        // ours.
        let (input, output) = (holder.stdin.as_mut(), holder.stdout.as_mut());
        let (input, output) = (input.context("standard input")?, output.context("standard output")?);
        input.write_all(b"?").await?;
        let answer = tokio::time::timeout(program::SHORT, output.read_u8()).await;
        answer.context("unshare did not start")?.context("could not make namespaces")?;
        let pid = holder.id().context("unshare has ended")?;
        let podman = Self {
            runtime,
            holder,
            namespaces: [
                format!("--mount=/proc/{pid}/ns/mnt"),
                format!("--pid=/proc/{pid}/ns/pid_for_children"),
            ],
            cgroup: format!("bouvet-bench-{pid}"),
            dir,
        };

        std::fs::create_dir(podman.dir.path().join("rootfs"))?;
        let (rootfs, target) = (rootfs.to_string_lossy(), podman.path("rootfs"));
        podman.inside(&["mount", "-o", "ro,loop", &rootfs, &target]).await?;
        if Path::new(SECOND_CGROUPS).join("cgroup.procs").exists() {
            podman.inside(&["umount", SECOND_CGROUPS]).await?;
        }
        Ok(podman)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    /// Runs a program in the namespaces.
    async fn inside(&self, program: &[&str]) -> anyhow::Result<String> {
        let namespaces = self.namespaces.iter().map(String::as_str);
        let arguments: Vec<&str> = namespaces.chain(["--"]).chain(program.iter().copied()).collect();
        program::run("nsenter", &arguments, DEADLINE).await
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let [store, state, temporary] = ["store", "state", "tmp"].map(|name| self.path(name));
        #[rustfmt::skip] // an option is one line
        let mut program = vec![
            "podman",
            "--root", &store, "--runroot", &state, "--tmpdir", &temporary,
            "--runtime", self.runtime,
            // There is no systemd to ask, no journal to tell, and no image to store.
            "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--storage-driver", "vfs",
        ];
        program.extend(arguments);
        self.inside(&program).await
    }

    /// Runs `program` in a new container.
    async fn container(&self, verb: &[&str], program: &[&str]) -> anyhow::Result<String> {
        // `O`: an overlay that is thrown away with the container.
        let rootfs = format!("{}:O", self.path("rootfs"));
        let mut arguments = verb.to_vec();
        arguments.extend(CONTAINER);
        arguments.extend(["--cgroup-parent", &self.cgroup, "--rootfs", &rootfs]);
        arguments.extend(program);
        self.run(&arguments).await
    }

    /// Starts a container that waits, and returns its name.
    async fn start(&self) -> anyhow::Result<String> {
        let printed = self.container(&["run", "--detach"], &["sleep", "infinity"]).await?;
        Ok(printed.trim().to_owned())
    }

    /// Removes the containers and the namespaces.
    async fn end(mut self) -> anyhow::Result<()> {
        let removed = self.run(&["rm", "--force", "--all", "--time", "0"]).await;
        drop(self.holder.stdin.take());
        let ended = tokio::time::timeout(program::SHORT, self.holder.wait()).await;
        ended.context("the namespaces did not end")??;
        self.remove_cgroups();
        removed.map(drop)
    }

    /// podman leaves them, empty: one in version 2, one for each controller in version 1.
    fn remove_cgroups(&self) {
        let controllers = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let mounts = controllers.map(|entry| entry.path()).chain([Path::new("/sys/fs/cgroup").to_owned()]);
        for parent in mounts.map(|mount| mount.join(&self.cgroup)) {
            // Most are not there. One that is still in use stays, and holds nothing.
            std::fs::remove_dir(parent.join("conmon")).ok();
            std::fs::remove_dir(parent).ok();
        }
    }
}
