//! Images of two sizes: pulled from a registry and started, by the library that the server is made of and by podman.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bouvet_host::{BoxConfig, Host, HostOptions, ImageOptions, LogOptions, PoolConfig, PullEvent};
use serde_json::json;

use super::podman::{Podman, Storage};
use super::registry::Registry;
use super::report::{Unit, ms};
use super::{Run, machine, podman, program, registry};

/// An image of each size: bytes of its files.
struct Size {
    id: &'static str,
    name: &'static str,
    bytes: u64,
}

const SIZES: [Size; 2] = [
    Size { id: "100mb", name: "100 MB", bytes: 100_000_000 },
    Size { id: "1gb", name: "1 GB", bytes: 1_000_000_000 },
];
/// Pulls take long, and show in a few what they have to show.
const MAX_PULLS: u32 = 3;
/// Starts after the first one, for each pull.
const LATER_STARTS: u32 = 3;
const RUNTIME: &str = "crun";
/// What is run in the images.
const PROGRAM: [&str; 2] = ["echo", "ready"];
const PRINTS: &str = "ready\n";
/// A clone waits within this time.
const POOL_DEADLINE: Duration = Duration::from_secs(120);
const POOL_POLL: Duration = Duration::from_millis(20);
/// Of a `sync`: what others wrote may have to reach the disk too.
const SYNC_DEADLINE: Duration = Duration::from_secs(300);

/// What was measured by the library, of each pull or start.
#[derive(Default)]
struct Ours {
    pull_ms: Vec<f64>,
    /// The parts of a pull: until its layers are unpacked and checked, and from there.
    fetch_ms: Vec<f64>,
    convert_ms: Vec<f64>,
    first_ms: Vec<f64>,
    later_ms: Vec<f64>,
    pool_ms: Vec<f64>,
    transferred_mb: Vec<f64>,
    rootfs_mb: Vec<f64>,
    cache_mb: Vec<f64>,
}

/// The same with podman.
#[derive(Default)]
struct Theirs {
    pull_ms: Vec<f64>,
    /// A pull, and what it wrote has reached the disk, as it has when ours ends.
    on_disk_ms: Vec<f64>,
    first_ms: Vec<f64>,
    later_ms: Vec<f64>,
    store_mb: Vec<f64>,
}

/// Pulls and starts an image of each size, by turns.
pub(super) async fn images(run: &mut Run) -> anyhow::Result<()> {
    if let Some(reason) = registry::missing() {
        run.report.skip("images", reason);
        return Ok(());
    }
    let rival = podman::missing(RUNTIME);
    let registry = Registry::start().await?;
    let pulls = run.line.repeat.min(MAX_PULLS);
    for size in &SIZES {
        run.say(format!("an image of {}: making it", size.name));
        let reference = registry.publish(size.id, size.bytes).await?;
        let (mut ours, mut theirs) = (Ours::default(), Theirs::default());
        for pull in 1..=pulls {
            run.say(format!("an image of {}: {pull} of {pulls}", size.name));
            ours.measure(run, &reference).await?;
            if rival.is_none() {
                theirs.measure(&reference).await.with_context(|| format!("podman with {RUNTIME}"))?;
            }
        }
        ours.report(run, size);
        theirs.report(run, size);
    }
    if let Some(reason) = rival {
        run.report.skip(&format!("images: podman with {RUNTIME}"), reason);
    }
    Ok(())
}

impl Ours {
    /// A host with nothing in its directories pulls the image and starts it.
    async fn measure(&mut self, run: &mut Run, reference: &str) -> anyhow::Result<()> {
        let dir = tempfile::tempdir().context("could not make a directory for images")?;
        let configured = &run.config.host;
        let pull = configured.images.as_ref().map(|images| images.pull.clone()).unwrap_or_default();
        let options = HostOptions {
            images: Some(ImageOptions { dir: dir.path().join("images"), pull }),
            templates: Some(dir.path().join("templates")),
            pool: None,
            ..configured.clone()
        };
        let config = BoxConfig {
            image: reference.to_owned(),
            cmd: PROGRAM.map(str::to_owned).to_vec(),
            resources: run.config.sandbox.resources.clone(),
            ..BoxConfig::default()
        };
        let host = Host::start(options).await?;
        // What a server says of itself: here it is this process.
        run.report.machine.learn(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "engine": host.engine(),
            "acceleration": host.acceleration().name(),
        }));
        let measured = self.measure_with(&host, &config, &dir.path().join("images")).await;
        host.shut_down().await;
        measured
    }

    async fn measure_with(&mut self, host: &Host, config: &BoxConfig, cache: &Path) -> anyhow::Result<()> {
        self.pull(host, &config.image, cache).await?;
        self.first_ms.push(first_output(host, config).await?);
        for _ in 0..LATER_STARTS {
            self.later_ms.push(first_output(host, config).await?);
        }
        let pool = PoolConfig { enabled: true, min_idle: 1, max_size: 1, ..PoolConfig::default() };
        let config = BoxConfig { pool, ..config.clone() };
        // The first to ask for a pool begins it.
        first_output(host, &config).await?;
        tokio::time::timeout(POOL_DEADLINE, pooled(host)).await.context("nothing waits in the pool")?;
        self.pool_ms.push(first_output(host, &config).await?);
        Ok(())
    }

    async fn pull(&mut self, host: &Host, reference: &str, cache: &Path) -> anyhow::Result<()> {
        settle().await?;
        let seen = Arc::new((OnceLock::new(), OnceLock::new()));
        let tell = Arc::clone(&seen);
        let started = Instant::now();
        // Of each the first is kept.
        let image = host.pull(reference, move |event| match event {
            PullEvent::Resolved { layers, .. } => drop(tell.0.set(layers)),
            PullEvent::Converting { .. } => drop(tell.1.set(started.elapsed())),
            PullEvent::Asking { .. } | PullEvent::Waiting | PullEvent::Layer { .. } => {}
        });
        let image = image.await?;
        let pulled = started.elapsed();
        let (layers, fetched) = (seen.0.get().context("layers")?, *seen.1.get().context("conversion")?);
        self.pull_ms.push(ms(pulled));
        self.fetch_ms.push(ms(fetched));
        self.convert_ms.push(ms(pulled - fetched));
        self.transferred_mb.push(machine::megabytes(layers.iter().map(|(_, bytes)| bytes).sum()));
        self.rootfs_mb.push(machine::megabytes(image.size_bytes));
        self.cache_mb.push(disk_mb(&cache.to_string_lossy()).await?);
        Ok(())
    }

    fn report(self, run: &mut Run, size: &Size) {
        let Size { id, name, .. } = size;
        for (what, scenario, unit, values) in [
            ("pull", "pull", Unit::Ms, self.pull_ms),
            ("fetch", "pull, until its layers are unpacked and checked", Unit::Ms, self.fetch_ms),
            ("convert", "pull, from there until its root file system is on disk", Unit::Ms, self.convert_ms),
            ("first", "first start, to its output", Unit::Ms, self.first_ms),
            ("later", "later start, to its output", Unit::Ms, self.later_ms),
            ("pool", "start from a pool, to its output", Unit::Ms, self.pool_ms),
            ("transferred", "layers as transferred", Unit::Mb, self.transferred_mb),
            ("rootfs", "disk of its root file system", Unit::Mb, self.rootfs_mb),
            ("cache", "disk of the cache, which has both", Unit::Mb, self.cache_mb),
        ] {
            run.report.add(
                &format!("image-{id}-{what}"),
                &format!("image of {name}: {scenario}"),
                unit,
                values,
            );
        }
    }
}

impl Theirs {
    /// podman with nothing in its store pulls the image and starts it.
    async fn measure(&mut self, reference: &str) -> anyhow::Result<()> {
        let podman = Podman::prepare(RUNTIME, Storage::Overlay).await?;
        let measured = self.measure_with(&podman, reference).await;
        let ended = podman.end().await;
        measured.and(ended)
    }

    async fn measure_with(&mut self, podman: &Podman, reference: &str) -> anyhow::Result<()> {
        settle().await?;
        let started = Instant::now();
        podman.pull(reference).await?;
        self.pull_ms.push(ms(started.elapsed()));
        program::run("sync", &["--file-system", &podman.store()], SYNC_DEADLINE).await?;
        self.on_disk_ms.push(ms(started.elapsed()));
        self.store_mb.push(disk_mb(&podman.store()).await?);
        for start in 0..=LATER_STARTS {
            let (printed, time) = podman.first_line(&[reference], &PROGRAM).await?;
            ensure!(printed == PRINTS, "it printed `{printed}`");
            let times = if start == 0 { &mut self.first_ms } else { &mut self.later_ms };
            times.push(ms(time));
        }
        Ok(())
    }

    fn report(self, run: &mut Run, size: &Size) {
        let Size { id, name, .. } = size;
        for (what, scenario, unit, values) in [
            ("pull", "pull", Unit::Ms, self.pull_ms),
            ("on-disk", "pull, until it is on disk", Unit::Ms, self.on_disk_ms),
            ("first", "first start, to its output", Unit::Ms, self.first_ms),
            ("later", "later start, to its output", Unit::Ms, self.later_ms),
            ("store", "disk of its store", Unit::Mb, self.store_mb),
        ] {
            let scenario = format!("podman with {RUNTIME}, image of {name}: {scenario}");
            run.report.add(&format!("podman-image-{id}-{what}"), &scenario, unit, values);
        }
    }
}

/// Milliseconds from the request for a sandbox until its program's output is here.
async fn first_output(host: &Host, config: &BoxConfig) -> anyhow::Result<f64> {
    let started = Instant::now();
    let sandbox = host.create(config.clone()).await?;
    let mut log = sandbox.logs(LogOptions { follow: true, ..LogOptions::default() });
    let record = log.next().await.context("its program printed nothing")?;
    let time = started.elapsed();
    ensure!(record.data == PRINTS, "it printed `{}`", String::from_utf8_lossy(&record.data));
    sandbox.destroy().await;
    Ok(ms(time))
}

/// Waits until as many sandboxes wait as should.
async fn pooled(host: &Host) {
    while host.pool() != (1, 1) {
        tokio::time::sleep(POOL_POLL).await;
    }
}

/// Waits until what was written before is on disk: it would be in the way of what is measured.
async fn settle() -> anyhow::Result<()> {
    program::run("sync", &[], SYNC_DEADLINE).await.map(drop)
}

/// What a directory takes on disk, holes and further names of a file left out.
async fn disk_mb(dir: &str) -> anyhow::Result<f64> {
    let said = program::run("du", &["--summarize", "--block-size=1", dir], program::SHORT).await?;
    let bytes = said.split_whitespace().next().context("du said nothing")?;
    Ok(machine::megabytes(bytes.parse()?))
}
