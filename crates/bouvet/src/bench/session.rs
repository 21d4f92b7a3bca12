//! A server under measurement, and the clients that use it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};

use crate::client::{self, Client, ServerProcess};

/// No call takes longer: the first may build a template, the last of a crowd waits for all others.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(300);

/// An MCP client, each of whose calls has a deadline.
#[derive(Debug)]
pub(super) struct Agent(Client);

impl Agent {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let connecting = tokio::time::timeout(Duration::from_secs(30), Client::connect(url));
        Ok(Self(connecting.await.with_context(|| format!("{url} did not answer"))??))
    }

    pub(super) async fn call(&self, tool: &'static str, arguments: Value) -> anyhow::Result<Value> {
        let call = tokio::time::timeout(CALL_DEADLINE, self.0.call(tool, arguments));
        call.await.with_context(|| format!("{tool} took longer than {CALL_DEADLINE:?}"))?
    }

    pub(super) async fn create(&self) -> anyhow::Result<String> {
        let created = self.call("create_sandbox", json!({})).await?;
        created["sandbox_id"].as_str().map(str::to_owned).context("no sandbox was created")
    }

    pub(super) async fn destroy(&self, sandbox: &str) -> anyhow::Result<()> {
        self.call("destroy_sandbox", json!({ "sandbox_id": sandbox })).await.map(drop)
    }

    /// Runs the least Python program, and checks what it prints.
    pub(super) async fn python(&self, sandbox: &str) -> anyhow::Result<()> {
        let arguments = json!({ "sandbox_id": sandbox, "language": "python", "code": "print(1)" });
        let outcome = self.call("execute_code", arguments).await?;
        ensure!(outcome["stdout"] == "1\n", "print(1) came to {outcome}");
        Ok(())
    }

    pub(super) async fn close(self) {
        self.0.close().await;
    }
}

/// A server, and a client of it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) agent: Agent,
    /// The process, if it is ours.
    pub(super) process: Option<ServerProcess>,
    url: String,
}

impl Server {
    /// Connects to a server that runs already.
    pub(super) async fn attach(url: &str) -> anyhow::Result<Self> {
        Ok(Self { agent: Agent::connect(url).await?, process: None, url: url.to_owned() })
    }

    /// Starts a server with these variables.
    pub(super) async fn start(variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let process = ServerProcess::start(variables).await?;
        let url = process.url();
        Ok(Self { agent: Agent::connect(&url).await?, process: Some(process), url })
    }

    /// Where a file of a sandbox is as a plain body.
    pub(super) fn file_url(&self, sandbox: &str, path: &str) -> String {
        let root = self.url.trim_end_matches("/mcp");
        format!("{root}/sandboxes/{sandbox}/file?path={path}")
    }

    /// What it says of itself; nothing if it will not say.
    pub(super) async fn health(&self) -> Option<Value> {
        let authority = self.url.strip_prefix("http://")?.split('/').next()?;
        client::health(authority).await.ok()
    }

    /// Waits until the server has made ready what it makes ready; what it makes takes the processor from what
    /// is measured. What a server that is not ours makes ready is its own affair.
    pub(super) async fn quiet(&self) -> anyhow::Result<()> {
        match &self.process {
            Some(process) => process.wait_until_pooled().await,
            None => Ok(()),
        }
    }

    /// Further clients, each with a connection of its own.
    pub(super) async fn agents(&self, count: usize) -> anyhow::Result<Vec<Agent>> {
        try_join_all((0..count).map(|_| Agent::connect(&self.url))).await
    }

    /// A sandbox is created, used and destroyed, so that the server has its template in memory.
    pub(super) async fn warm(&self) -> anyhow::Result<()> {
        let sandbox = self.agent.create().await?;
        self.agent.python(&sandbox).await?;
        self.agent.destroy(&sandbox).await?;
        self.quiet().await
    }

    pub(super) async fn end(self) -> anyhow::Result<()> {
        self.agent.close().await;
        match self.process {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }
}

/// Has `agents` do `work`, `count` times in all and each as soon as it has done what it did before. A failure
/// ends it: what is under way is finished, and nothing more begun.
pub(super) async fn share_out<T, F: Future<Output = anyhow::Result<T>>>(
    agents: &[Agent],
    count: usize,
    work: impl Fn(usize, usize) -> F,
) -> Vec<anyhow::Result<T>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = |agent: usize| {
        let (next, failed, work) = (&next, &failed, &work);
        async move {
            let mut results = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let job = next.fetch_add(1, Ordering::Relaxed);
                if job >= count {
                    break;
                }
                let result = work(agent, job).await;
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results.push(result);
            }
            results
        }
    };
    join_all((0..agents.len()).map(worker)).await.into_iter().flatten().collect()
}

/// What came of it, and the failures in a sentence if there are any.
pub(super) fn sort_out<T>(results: Vec<anyhow::Result<T>>) -> (Vec<T>, Option<String>) {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(error) => failures.push(error),
        }
    }
    let first = failures.first().map(|error| format!("{} failed, the first: {error:#}", failures.len()));
    (done, first)
}
