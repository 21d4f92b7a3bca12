//! Memory of sandboxes, by what the whole machine has less; and what those that wait take of the processor.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use procfs::process::Process;

use super::report::{Unit, ms};
use super::session::{Server, share_out, sort_out};
use super::{Run, machine};

const SANDBOXES: u32 = 50;
/// How long the pool is watched for use of the processor.
const WATCH: Duration = Duration::from_secs(5);
/// Programs run at once while every sandbox gets its first.
const AT_ONCE: usize = 4;

/// What waits in the pool, then clones that are made one after the other, before and after they did something.
pub(super) async fn memory(run: &mut Run) -> anyhow::Result<()> {
    pooled(run).await?;
    let count = run.line.sandboxes.unwrap_or(SANDBOXES);
    let most = count.to_string();
    let server = run.server(&[("BOUVET_POOL_ENABLED", "false"), ("BOUVET_MAX_SANDBOXES", &most)]).await?;
    let pid = server.process.as_ref().context("the server is not ours")?.pid();
    server.warm().await?;

    let before = machine::available_mb().await?;
    let mut sandboxes = Vec::new();
    for number in 1..=count {
        run.say(format!("memory: sandbox {number} of {count}"));
        sandboxes.push(server.agent.create().await?);
    }
    account(run, "memory-fresh", "fresh", pid, before, count).await?;
    run.say("memory: a first Python program in each".to_owned());
    first_programs(&server, &sandboxes).await?;
    account(run, "memory-python", "after its first Python program", pid, before, count).await?;
    server.end().await
}

async fn pooled(run: &mut Run) -> anyhow::Result<()> {
    let server = run.server(&[("BOUVET_POOL_ENABLED", "true")]).await?;
    server.warm().await?;
    run.say("what waits in the pool".to_owned());
    let vms = machine::children(server.process.as_ref().context("the server is not ours")?.pid())?;
    let (before, started) = (machine::cpu_time(&vms)?, Instant::now());
    tokio::time::sleep(WATCH).await;
    let used = machine::cpu_time(&vms)? - before;
    let percent = 100.0 * ms(used) / ms(started.elapsed());
    let scenario = format!("processor time of the pool, {} VMs, of one core", vms.len());
    run.report.add("pooled-cpu", &scenario, Unit::Percent, vec![percent]);
    private(run, "memory-pooled", "waiting in the pool", &vms)?;
    server.end().await
}

async fn first_programs(server: &Server, sandboxes: &[String]) -> anyhow::Result<()> {
    let agents = server.agents(AT_ONCE).await?;
    let results =
        share_out(&agents, sandboxes.len(), |agent, job| agents[agent].python(&sandboxes[job])).await;
    match sort_out(results) {
        (_, None) => Ok(()),
        (_, Some(failures)) => anyhow::bail!(failures),
    }
}

/// Reports what each sandbox took since the machine had `before_mb`.
async fn account(
    run: &mut Run,
    id: &str,
    state: &str,
    server: u32,
    before_mb: f64,
    count: u32,
) -> anyhow::Result<()> {
    let each = (before_mb - machine::available_mb().await?) / f64::from(count);
    let scenario = format!("memory of a sandbox, {state}, over {count}");
    run.report.add(id, &scenario, Unit::Mb, vec![each]);
    private(run, id, state, &machine::children(server)?)
}

fn private(run: &mut Run, id: &str, state: &str, vms: &[Process]) -> anyhow::Result<()> {
    let each = vms.iter().map(machine::private_mb).collect::<Result<_, _>>()?;
    let scenario = format!("memory that a VM's process shares with nobody, {state}");
    run.report.add(&format!("{id}-private"), &scenario, Unit::Mb, each);
    Ok(())
}
