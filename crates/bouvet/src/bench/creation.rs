//! Creation of sandboxes, each way that there is, and the time to the first result.

use std::time::Instant;

use super::Run;

/// A way to make a sandbox, and what a server is told to have only that.
struct Way {
    id: &'static str,
    name: &'static str,
    variables: &'static [(&'static str, &'static str)],
}

const WAYS: [Way; 3] = [
    Way { id: "-boot", name: ", booted", variables: &[("BOUVET_TEMPLATES", "off")] },
    Way { id: "-clone", name: ", cloned", variables: &[("BOUVET_POOL_ENABLED", "false")] },
    Way { id: "-pool", name: ", from the pool", variables: &[("BOUVET_POOL_ENABLED", "true")] },
];
/// However the server that we were sent to does it.
const ANY: [Way; 1] = [Way { id: "", name: "", variables: &[] }];

/// Creates sandboxes one after the other, each when the server has made ready what it makes ready, and runs a
/// first program in each.
pub(super) async fn creation(run: &mut Run) -> anyhow::Result<()> {
    let ways = if run.line.url.is_some() { &ANY[..] } else { &WAYS[..] };
    for Way { id, name, variables } in ways {
        let server = run.server(variables).await?;
        run.say(format!("create_sandbox{name}: the first"));
        server.warm().await?;
        let (mut creates, mut results) = (Vec::new(), Vec::new());
        for time in 1..=run.line.repeat {
            run.say(format!("create_sandbox{name}: {time} of {}", run.line.repeat));
            server.quiet().await?;
            let started = Instant::now();
            let sandbox = server.agent.create().await?;
            creates.push(started.elapsed());
            server.agent.python(&sandbox).await?;
            results.push(started.elapsed());
            server.agent.destroy(&sandbox).await?;
        }
        server.end().await?;
        run.report.add_times(&format!("create{id}"), &format!("create_sandbox{name}"), &creates);
        let scenario = format!("create_sandbox and the first print(1){name}");
        run.report.add_times(&format!("first-result{id}"), &scenario, &results);
    }
    Ok(())
}
