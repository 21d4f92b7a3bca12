//! The soak: sandboxes are created, used and destroyed, many times and several at once, and nothing may be
//! left.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use procfs::process::Process;

use super::session::{Agent, Server, share_out, sort_out};
use super::{Run, machine};

const CYCLES: u32 = 1000;
const CONCURRENCY: u32 = 1;
/// What is held only for a while is given back within this time: threads for blocking work end after 10 s
/// idle.
const SETTLE: Duration = Duration::from_secs(60);
/// Cycles of each client before the first look, which fill caches that are meant to stay.
const WARM_CYCLES: usize = 2;
/// The allocator keeps pages for the next burst, in an arena per thread. 1000 cycles that lose 32 KiB each
/// show.
const MAX_RSS_GROWTH_MB: f64 = 32.0;
/// Other programs of the machine count in. 1000 cycles that lose 512 KiB each show.
const MAX_MACHINE_GROWTH_MB: f64 = 512.0;
/// Runtimes start a thread or two when they like.
const MAX_THREAD_GROWTH: usize = 4;

/// Runs the cycles between two looks at what the server holds.
pub(super) async fn soak(run: &mut Run) -> anyhow::Result<()> {
    let cycles = run.line.cycles.unwrap_or(CYCLES) as usize;
    let concurrency = run.line.concurrency.unwrap_or(CONCURRENCY) as usize;
    let chroot = tempfile::tempdir().context("could not make a directory for the server")?;
    let path = chroot.path().to_string_lossy();
    // Templates are kept where they were, so that they need not be made again.
    let templates = run.config.host.templates.as_ref().map(|dir| dir.to_string_lossy().into_owned());
    let templates = ("BOUVET_TEMPLATES", templates.as_deref().unwrap_or("off"));
    let server = run.server(&[("BOUVET_CHROOT", &path), templates]).await?;
    let agents = server.agents(concurrency).await?;

    run.say("soak: the first cycles".to_owned());
    let warm = share_out(&agents, concurrency * WARM_CYCLES, |agent, _| cycle(&agents[agent])).await;
    if let (_, Some(failures)) = sort_out(warm) {
        anyhow::bail!(failures);
    }
    let before = Held::now(&server, chroot.path()).await?;
    let started = Instant::now();
    let results = share_out(&agents, cycles, |agent, job| {
        run.say(format!("soak: cycle {} of {cycles}", job + 1));
        cycle(&agents[agent])
    });
    let (done, failures) = sort_out(results.await);
    let total = started.elapsed();
    let name = format!("{cycles} cycles, {concurrency} at once");
    run.failed(&name, failures);
    for (part, id, what) in [
        (0, "soak-create", "create_sandbox"),
        (1, "soak-python", "print(1)"),
        (2, "soak-destroy", "destroy_sandbox"),
    ] {
        let times: Vec<Duration> = done.iter().map(|times| times[part]).collect();
        run.report.add_times(id, &format!("{name}: {what}"), &times);
    }
    run.report.add_times("soak-total", &format!("{name}: all"), &[total]);
    run.say("soak: what is left".to_owned());
    look_for_leaks(run, &server, chroot.path(), before, concurrency).await?;
    server.end().await
}

/// How long each of its three steps took.
async fn cycle(agent: &Agent) -> anyhow::Result<[Duration; 3]> {
    let started = Instant::now();
    let sandbox = agent.create().await?;
    let created = started.elapsed();
    agent.python(&sandbox).await?;
    let answered = started.elapsed();
    agent.destroy(&sandbox).await?;
    Ok([created, answered - created, started.elapsed() - answered])
}

async fn look_for_leaks(
    run: &mut Run,
    server: &Server,
    chroot: &Path,
    before: Option<Held>,
    concurrency: usize,
) -> anyhow::Result<()> {
    let Some(before) = before else {
        run.report.skip("what is left after the soak", "the server is not ours");
        return Ok(());
    };
    let deadline = Instant::now() + SETTLE;
    loop {
        let Some(after) = Held::now(server, chroot).await? else { return Ok(()) };
        let leaks = after.more_than(&before, concurrency);
        if leaks.is_empty() || Instant::now() >= deadline {
            run.report.notes.push(format!("before the soak: {before}"));
            run.report.notes.push(format!("after the soak: {after}"));
            run.report.failures.extend(leaks.into_iter().map(|leak| format!("leak: {leak}")));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What a server holds, and what the machine has.
#[derive(Debug, Clone, Default)]
struct Held {
    /// Processes that the server started; all are VMs once the pool is full.
    processes: usize,
    descriptors: usize,
    threads: usize,
    rss_mb: f64,
    /// `None` where VMs have none.
    cgroups: Option<usize>,
    /// What is in the server's directory.
    files: usize,
    machine_mb: f64,
}

impl Held {
    /// Once the pool is full. `None` for a server that is not ours.
    async fn now(server: &Server, chroot: &Path) -> anyhow::Result<Option<Self>> {
        server.quiet().await?;
        let Some(process) = &server.process else { return Ok(None) };
        let machine_mb = machine::available_mb().await?;
        let pid = process.pid();
        let server = Process::new(i32::try_from(pid).context("process id")?)?;
        let status = server.status()?;
        Ok(Some(Self {
            processes: machine::children(pid)?.len(),
            descriptors: server.fd_count()?,
            threads: server.tasks()?.count(),
            rss_mb: machine::megabytes(status.vmrss.context("VmRSS")? * 1024),
            cgroups: machine::cgroup_of_vms(pid)?.map(|dir| machine::count_entries(&dir, true)),
            files: machine::count_entries(chroot, false),
            machine_mb,
        }))
    }

    /// What is held that was not before, but for what comes and goes with connections and threads.
    fn more_than(&self, before: &Self, concurrency: usize) -> Vec<String> {
        let counts = [
            ("processes", self.processes, before.processes, 0),
            ("descriptors", self.descriptors, before.descriptors, concurrency),
            ("threads", self.threads, before.threads, MAX_THREAD_GROWTH),
            ("cgroups", self.cgroups.unwrap_or(0), before.cgroups.unwrap_or(0), 0),
            ("files", self.files, before.files, 0),
        ];
        let more = counts.into_iter().filter(|(_, after, before, allowed)| *after > before + allowed);
        let mut leaks: Vec<_> =
            more.map(|(name, after, before, _)| format!("{after} {name}, {before} before")).collect();
        let sizes = [
            ("MB of the server's memory", self.rss_mb - before.rss_mb, MAX_RSS_GROWTH_MB),
            ("MB of the machine's memory", before.machine_mb - self.machine_mb, MAX_MACHINE_GROWTH_MB),
        ];
        let more = sizes.into_iter().filter(|(_, growth, allowed)| growth > allowed);
        leaks.extend(
            more.map(|(name, growth, allowed)| format!("{growth:.0} {name}, of {allowed:.0} allowed")),
        );
        leaks
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes, descriptors, threads, rss_mb, files, machine_mb, .. } = self;
        let cgroups = self.cgroups.map_or_else(|| "no".to_owned(), |count| count.to_string());
        write!(f, "{processes} VM processes, {cgroups} cgroups, {files} files; the server: {rss_mb:.1} MB ")?;
        write!(f, "resident, {descriptors} descriptors, {threads} threads; {machine_mb:.0} MB available")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            processes: 3,
            descriptors: 60,
            threads: 8,
            rss_mb: 30.0,
            cgroups: Some(3),
            files: 12,
            machine_mb: 20_000.0,
        }
    }

    #[test]
    fn what_comes_and_goes_is_no_leak() {
        let after = Held { descriptors: 68, threads: 12, rss_mb: 62.0, machine_mb: 19_488.0, ..held() };
        assert_eq!(after.more_than(&held(), 8), Vec::<String>::new());
        let fewer = Held { processes: 2, descriptors: 50, rss_mb: 20.0, machine_mb: 21_000.0, ..held() };
        assert_eq!(fewer.more_than(&held(), 8), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_leak_is_found() {
        let leaky = [
            (Held { processes: 4, ..held() }, "4 processes, 3 before"),
            (Held { descriptors: 69, ..held() }, "69 descriptors, 60 before"),
            (Held { threads: 13, ..held() }, "13 threads, 8 before"),
            (Held { cgroups: Some(4), ..held() }, "4 cgroups, 3 before"),
            (Held { files: 13, ..held() }, "13 files, 12 before"),
            (Held { rss_mb: 63.0, ..held() }, "33 MB of the server's memory, of 32 allowed"),
            (Held { machine_mb: 19_487.0, ..held() }, "513 MB of the machine's memory, of 512 allowed"),
        ];
        for (after, leak) in leaky {
            assert_eq!(after.more_than(&held(), 8), [leak]);
        }
    }
}
