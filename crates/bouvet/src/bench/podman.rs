//! podman with state of its own, in namespaces of its own, so that its mounts and processes go with them whatever
//! becomes of us.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use super::program;

/// Of one command of podman, but for a pull.
const DEADLINE: Duration = Duration::from_secs(60);
const PULL_DEADLINE: Duration = Duration::from_secs(600);
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

/// Why podman cannot be used with `runtime` here, if it cannot.
pub(super) fn missing(runtime: &str) -> Option<String> {
    let tools = ["podman", runtime, "unshare", "nsenter", "mount", "umount"];
    if let Some(tool) = tools.into_iter().find(|tool| program::find(tool).is_none()) {
        return Some(format!("{tool}: not installed"));
    }
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then(|| "only root can give podman namespaces and mounts of its own".to_owned())
}

/// How images and containers are stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Storage {
    /// As copies: for containers of no image.
    Copies,
    /// As layers, which the kernel lays over each other: what podman takes where it can.
    Overlay,
}

/// podman with state of its own, and namespaces to use it in.
#[derive(Debug)]
pub(super) struct Podman {
    pub(super) runtime: &'static str,
    storage: Storage,
    holder: Child,
    /// Options of `nsenter` that name them.
    namespaces: [String; 2],
    /// The cgroup below which podman makes its own.
    cgroup: String,
    dir: TempDir,
}

impl Podman {
    pub(super) async fn prepare(runtime: &'static str, storage: Storage) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("could not make a directory for podman")?;
        let mut command = program::command("unshare", &HOLDER);
        let mut holder = command.stdin(Stdio::piped()).spawn().context("could not start unshare")?;
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
            storage,
            holder,
            namespaces: [
                format!("--mount=/proc/{pid}/ns/mnt"),
                format!("--pid=/proc/{pid}/ns/pid_for_children"),
            ],
            cgroup: format!("bouvet-bench-{pid}"),
            dir,
        };
        if Path::new(SECOND_CGROUPS).join("cgroup.procs").exists() {
            podman.inside(&["umount", SECOND_CGROUPS], DEADLINE).await?;
        }
        Ok(podman)
    }

    /// Mounts a root file system, of which containers can be made, and returns the options for that.
    pub(super) async fn mount(&self, rootfs: &Path) -> anyhow::Result<[String; 2]> {
        std::fs::create_dir(self.dir.path().join("rootfs"))?;
        let target = self.path("rootfs");
        self.inside(&["mount", "-o", "ro,loop", &rootfs.to_string_lossy(), &target], DEADLINE).await?;
        // `O`: an overlay that is thrown away with the container.
        Ok(["--rootfs".to_owned(), format!("{target}:O")])
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    /// Where it keeps images.
    pub(super) fn store(&self) -> String {
        self.path("store")
    }

    /// Runs a program in the namespaces.
    async fn inside(&self, program: &[&str], deadline: Duration) -> anyhow::Result<String> {
        program::run("nsenter", &self.entered(program), deadline).await
    }

    /// The arguments of `nsenter` by which `program` runs in the namespaces.
    fn entered<'a>(&'a self, program: &[&'a str]) -> Vec<&'a str> {
        let namespaces = self.namespaces.iter().map(String::as_str);
        namespaces.chain(["--"]).chain(program.iter().copied()).collect()
    }

    async fn run_within(&self, arguments: &[&str], deadline: Duration) -> anyhow::Result<String> {
        let program = self.command(arguments);
        self.inside(&program.iter().map(String::as_str).collect::<Vec<_>>(), deadline).await
    }

    pub(super) async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run_within(arguments, DEADLINE).await
    }

    /// Pulls an image from a registry that speaks plain text.
    pub(super) async fn pull(&self, reference: &str) -> anyhow::Result<()> {
        self.run_within(&["pull", "--quiet", "--tls-verify=false", reference], PULL_DEADLINE).await.map(drop)
    }

    fn command(&self, arguments: &[&str]) -> Vec<String> {
        let [store, state, temporary] = ["store", "state", "tmp"].map(|name| self.path(name));
        let driver = match self.storage {
            Storage::Copies => "vfs",
            Storage::Overlay => "overlay",
        };
        #[rustfmt::skip] // an option is one line
        let mut program = vec![
            "podman",
            "--root", &store, "--runroot", &state, "--tmpdir", &temporary,
            "--runtime", self.runtime,
            // There is no systemd to ask, and no journal to tell.
            "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--storage-driver", driver,
        ];
        program.extend(arguments);
        program.into_iter().map(str::to_owned).collect()
    }

    /// The arguments that run `program` in a new container of `image`, which an option may come before.
    fn container<'a>(&'a self, verb: &[&'a str], image: &[&'a str], program: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = verb.to_vec();
        arguments.extend(CONTAINER);
        arguments.extend(["--cgroup-parent", &self.cgroup]);
        arguments.extend(image);
        arguments.extend(program);
        arguments
    }

    /// Runs `program` in a new container, to its end.
    pub(super) async fn run_container(&self, image: &[&str], program: &[&str]) -> anyhow::Result<String> {
        self.run(&self.container(&["run", "--rm"], image, program)).await
    }

    /// The same, and says what its first line was and when that came.
    pub(super) async fn first_line(
        &self,
        image: &[&str],
        program: &[&str],
    ) -> anyhow::Result<(String, Duration)> {
        let command = self.command(&self.container(&["run", "--rm"], image, program));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        program::first_line("nsenter", &self.entered(&command), DEADLINE).await
    }

    /// Starts a container that waits, and returns its name.
    pub(super) async fn start(&self, image: &[&str]) -> anyhow::Result<String> {
        let printed = self.run(&self.container(&["run", "--detach"], image, &["sleep", "infinity"])).await?;
        Ok(printed.trim().to_owned())
    }

    /// Removes the containers and the namespaces.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
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
