//! The same work with containers, where they are installed: podman, with each runtime that there is.
//!
//! A container gets our own rootfs, without a copy: an overlay over the image, as our VMs have it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::podman::{Podman, Storage};
use super::report::Unit;
use super::{Run, machine, podman};

const RUNTIMES: [&str; 2] = ["crun", "runsc"];
/// Containers whose memory is measured, at most: each takes a part of a second to start.
const MAX_CONTAINERS: u32 = 20;

/// Measures each rival, or says why not.
pub(super) async fn rivals(run: &mut Run) -> anyhow::Result<()> {
    for runtime in RUNTIMES {
        let name = format!("podman with {runtime}");
        if let Some(reason) = missing(runtime, &run.config.host.rootfs) {
            run.report.skip(&name, reason);
            continue;
        }
        let podman = Podman::prepare(runtime, Storage::Copies).await.context(name.clone())?;
        let measured = measure(run, &podman, &name).await;
        let ended = podman.end().await;
        measured.and(ended).context(name)?;
    }
    Ok(())
}

fn missing(runtime: &str, rootfs: &Path) -> Option<String> {
    podman::missing(runtime)
        .or_else(|| (!rootfs.is_file()).then(|| format!("there is no rootfs `{}`", rootfs.display())))
}

async fn measure(run: &mut Run, podman: &Podman, name: &str) -> anyhow::Result<()> {
    let runtime = podman.runtime;
    let rootfs = podman.mount(&run.config.host.rootfs).await?;
    let rootfs = rootfs.each_ref().map(String::as_str);
    let waiting = podman.start(&rootfs).await?;
    let work: [(&str, &str, &[&str], &str); 2] = [
        ("true", "true", &["true"], ""),
        ("python", "python3 -c 'print(1)'", &["python3", "-c", "print(1)"], "1\n"),
    ];
    for (id, what, program, prints) in work {
        let (id, title) = (format!("podman-{runtime}-run-{id}"), format!("{name}: run --rm {what}"));
        repeat(run, &id, &title, prints, || podman.run_container(&rootfs, program)).await?;
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
        podman.start(&rootfs).await?;
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
