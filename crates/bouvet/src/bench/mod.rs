//! `bouvet bench`: what sandboxes cost, as an MCP client over HTTP sees it, and what they should.
//!
//! A scenario is a file: it starts the servers that it needs, and adds rows to the report. [`targets`] holds
//! the rows against each other; [`report`] and [`chart`] show them.

mod calls;
mod chart;
mod creation;
mod crowd;
mod files;
mod images;
mod line;
mod machine;
mod memory;
mod network;
mod output;
mod podman;
mod ports;
mod program;
mod registry;
mod report;
mod rivals;
mod sample;
mod session;
mod soak;
mod targets;
mod user_network;

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;

pub(crate) use self::line::Line;
use self::line::Scenario;
use self::output::Outputs;
use self::report::Report;
use self::session::Server;
use crate::config::Config;

/// What is under way.
struct Run {
    line: Line,
    /// That of the servers which are started, but for what a scenario needs otherwise.
    config: Config,
    report: Report,
    progress: indicatif::ProgressBar,
}

/// Runs the scenarios that `line` asks for. Its [`Line::scenarios`] must have been found sound. A scenario
/// that fails does not keep the others from running; the end is an error then.
pub(crate) async fn run(line: Line, config: Config) -> anyhow::Result<()> {
    let scenarios = line.scenarios()?;
    let outputs = Outputs::check(&line)?;
    let progress = indicatif::ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut run = Run { line, config, report: Report::default(), progress };
    run.report.machine = machine::Machine::look().await;
    for scenario in scenarios {
        let deadline = scenario.deadline(&run.line);
        let outcome = tokio::time::timeout(deadline, run.scenario(scenario)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {deadline:?}")));
        run.failed(scenario.name(), outcome.err().map(|error| format!("{error:#}")));
    }
    run.progress.finish_and_clear();
    targets::judge(&mut run.report.rows);
    let tables = run.report.markdown();
    std::io::stdout().write_all(tables.as_bytes()).context("could not print")?;
    outputs.write(&run.report, &tables)?;
    let failures = &run.report.failures;
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

impl Run {
    async fn scenario(&mut self, scenario: Scenario) -> anyhow::Result<()> {
        match scenario {
            Scenario::Creation => creation::creation(self).await,
            Scenario::Rivals => rivals::rivals(self).await,
            Scenario::Calls => calls::calls(self).await,
            Scenario::Files => files::files(self).await,
            Scenario::Ports => ports::ports(self).await,
            Scenario::Network => network::network(self).await,
            Scenario::Memory => memory::memory(self).await,
            Scenario::Alive => crowd::alive(self).await,
            Scenario::Burst => crowd::burst(self).await,
            Scenario::Images => images::images(self).await,
            Scenario::Soak => soak::soak(self).await,
        }
    }

    /// A server of our own with these variables, or the one that we were sent to.
    async fn server(&mut self, variables: &[(&str, &str)]) -> anyhow::Result<Server> {
        let server = match &self.line.url {
            Some(url) => Server::attach(url).await?,
            None => Server::start(variables).await?,
        };
        if let Some(health) = server.health().await {
            self.report.machine.learn(&health);
        }
        Ok(server)
    }

    /// Shows people what takes its time.
    fn say(&self, what: String) {
        self.progress.set_message(what);
    }

    /// Takes down that `what` went wrong, if it did.
    fn failed(&mut self, what: &str, failure: Option<String>) {
        self.report.failures.extend(failure.map(|failure| format!("{what}: {failure}")));
    }
}
