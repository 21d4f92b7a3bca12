//! Many sandboxes: alive at the same time, and asked for at the same moment.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::report::{Unit, ms};
use super::session::{Server, share_out, sort_out};
use super::{Run, machine};

const ALIVE: u32 = 100;
const BURST: u32 = 50;
/// Clients that make the sandboxes which are to be alive, and use them.
const AT_ONCE: usize = 8;

/// Creates sandboxes, keeps all, then has each run a program.
pub(super) async fn alive(run: &mut Run) -> anyhow::Result<()> {
    let count = run.line.sandboxes.unwrap_or(ALIVE);
    let server = run.server(&[("BOUVET_MAX_SANDBOXES", &count.to_string())]).await?;
    server.warm().await?;
    let agents = server.agents(AT_ONCE.min(count as usize)).await?;
    let at_once = agents.len();
    let before = machine::available_mb().await?;

    run.say(format!("{count} sandboxes alive at once"));
    let started = Instant::now();
    let created = share_out(&agents, count as usize, |agent, _| agents[agent].create()).await;
    let (sandboxes, refused) = sort_out(created);
    let creation = started.elapsed();
    server.quiet().await?;

    let answers = share_out(&agents, sandboxes.len(), |agent, job| {
        let (agent, sandbox) = (&agents[agent], &sandboxes[job]);
        run.say(format!("{count} sandboxes alive at once: Python in number {}", job + 1));
        async move {
            let started = Instant::now();
            agent.python(sandbox).await?;
            Ok(started.elapsed())
        }
    });
    let (answers, silent) = sort_out(answers.await);
    let taken = (before - machine::available_mb().await?) / f64::from(count);
    leave(server, agents, &sandboxes).await?;

    let name = format!("{count} alive at once");
    let share = percent(answers.len(), count);
    run.report.add("alive-answers", &format!("{name}: answer"), Unit::Percent, vec![share]);
    run.report.add_times("alive-create", &format!("{name}: to create all, {at_once} at a time"), &[creation]);
    run.report.add_times("alive-python", &format!("{name}: print(1) in each, {at_once} at a time"), &answers);
    match run.line.url {
        None => run.report.add("alive-memory", &format!("{name}: memory of each"), Unit::Mb, vec![taken]),
        Some(_) => run.report.skip(&format!("{name}: memory"), "the server is not ours"),
    }
    run.failed(&name, refused.or(silent));
    Ok(())
}

/// The burst, with the pool as it is by default, and with one that is as large as the burst.
pub(super) async fn burst(run: &mut Run) -> anyhow::Result<()> {
    let count = run.line.sandboxes.unwrap_or(BURST);
    let size = count.to_string();
    let most = ("BOUVET_MAX_SANDBOXES", size.as_str());
    if run.line.url.is_some() {
        let server = run.server(&[]).await?;
        return burst_on(run, server, "burst", count, "the server's pool").await;
    }
    let pool = run.config.host.pool.as_ref().map_or(0, |pool| pool.size);
    let server = run.server(&[most]).await?;
    burst_on(run, server, "burst-default", count, &format!("a pool of {pool}")).await?;
    let server =
        run.server(&[most, ("BOUVET_POOL_ENABLED", "true"), ("BOUVET_POOL_MIN_SIZE", &size)]).await?;
    burst_on(run, server, "burst-full", count, &format!("a pool of {count}")).await
}

async fn burst_on(run: &mut Run, server: Server, id: &str, count: u32, pool: &str) -> anyhow::Result<()> {
    let name = format!("burst of {count}, {pool}");
    run.say(format!("{name}: to begin with, the pool"));
    server.warm().await?;
    // A client each: what one client does at once, it sends through one session.
    let agents = server.agents(count as usize).await?;
    run.say(name.clone());
    let started = Instant::now();
    let results = share_out(&agents, count as usize, |agent, _| {
        let agent = &agents[agent];
        async move {
            let sandbox = agent.create().await?;
            let created = started.elapsed();
            agent.python(&sandbox).await?;
            Ok((sandbox, created, started.elapsed()))
        }
    });
    let (done, failures) = sort_out(results.await);
    let total = started.elapsed();
    let sandboxes: Vec<String> = done.iter().map(|(sandbox, ..)| sandbox.clone()).collect();
    leave(server, agents, &sandboxes).await?;

    let created: Vec<Duration> = done.iter().map(|(_, created, _)| *created).collect();
    let results: Vec<Duration> = done.iter().map(|(.., result)| *result).collect();
    run.report.add_times(&format!("{id}-create"), &format!("{name}: create_sandbox"), &created);
    run.report.add_times(id, &format!("{name}: create_sandbox and print(1)"), &results);
    run.report.add_times(&format!("{id}-total"), &format!("{name}: until the last"), &[total]);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = done.len() as f64 * 1000.0 / ms(total);
    run.report.add(&format!("{id}-rate"), &format!("{name}: sandboxes"), Unit::PerSecond, vec![rate]);
    let share = percent(done.len(), count);
    run.report.add(&format!("{id}-answers"), &format!("{name}: answer"), Unit::Percent, vec![share]);
    run.failed(&name, failures);
    Ok(())
}

/// Destroys the sandboxes, so that a server which is not ours is as before.
async fn leave(
    server: Server,
    agents: Vec<super::session::Agent>,
    sandboxes: &[String],
) -> anyhow::Result<()> {
    let destroyed = share_out(&agents, sandboxes.len(), |agent, job| agents[agent].destroy(&sandboxes[job]));
    let (_, failures) = sort_out(destroyed.await);
    join_all(agents.into_iter().map(super::session::Agent::close)).await;
    server.end().await?;
    failures.map_or(Ok(()), |failures| Err(anyhow::anyhow!("destroy_sandbox: {failures}")))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn percent(part: usize, whole: u32) -> f64 {
    100.0 * part as f64 / f64::from(whole)
}
