//! What `execute_code` and `run_command` share: the optional arguments, the run, the result.

use std::collections::BTreeMap;
use std::time::Duration;

use bouvet_host::{Exec, ExecEvent, ExecRequest, ExecResult};
use rmcp::RoleServer;
use rmcp::service::RequestContext;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::mcp::Server;
use crate::mcp::progress::Progress;

/// What either tool may be told beyond its program.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Options {
    /// When the program and all that it started is killed, in milliseconds; 60000 if left out.
    #[schemars(with = "u64", range(min = 1, max = 86_400_000))]
    pub(super) timeout_ms: Option<u64>,
    /// Environment variables for the program.
    pub(super) env: BTreeMap<String, String>,
    /// Its working directory; the home directory if left out.
    pub(super) cwd: String,
    /// What it reads from its standard input.
    pub(super) stdin: String,
}

/// How a program went.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Outcome {
    /// 0 for success; 128 + the signal's number when a signal ended it.
    exit_code: i32,
    /// What it printed: at most the first and the last 512 KiB.
    stdout: String,
    /// What it printed as errors: at most the first and the last 512 KiB.
    stderr: String,
    /// How long it ran, in milliseconds.
    duration_ms: u64,
    /// Whether it was killed because its time was over.
    timed_out: bool,
    /// Whether some of its output was left out.
    truncated: bool,
    /// Whether processes of it were killed because the sandbox's memory was used up.
    out_of_memory: bool,
}

impl Server {
    /// Runs a program to its end, or until its caller cancels the call or goes away.
    pub(super) async fn run(
        &self,
        sandbox_id: &str,
        mut request: ExecRequest,
        options: Options,
        context: &RequestContext<RoleServer>,
    ) -> Result<Outcome, Failure> {
        let sandbox = self.find(sandbox_id)?;
        if let Some(timeout_ms) = options.timeout_ms {
            request.timeout = Duration::from_millis(timeout_ms);
        }
        request.env = options.env;
        request.cwd = options.cwd;
        request.stdin = options.stdin.into();
        let exec = sandbox.exec(request).await?;
        tokio::select! {
            // Dropping the run kills the program.
            () = context.ct.cancelled() => Err(Failure::argument("the call was cancelled, and its program killed")),
            result = watch(exec, Progress::new(context)) => Ok(result?.into()),
        }
    }
}

async fn watch(mut exec: Exec, mut progress: Progress) -> Result<ExecResult, bouvet_host::ExecError> {
    loop {
        tokio::select! {
            event = exec.next() => match event? {
                Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => progress.output(&bytes),
                Some(ExecEvent::Exit(result)) => return Ok(*result),
                None => return exec.finish().await,
            },
            () = until(progress.due()) => progress.send().await,
        }
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl From<ExecResult> for Outcome {
    fn from(result: ExecResult) -> Self {
        Self {
            exit_code: result.exit.exit_code,
            stdout: result.stdout.text(),
            stderr: result.stderr.text(),
            duration_ms: u64::try_from(result.exit.duration.as_millis()).unwrap_or(u64::MAX),
            timed_out: result.exit.timed_out,
            truncated: result.truncated(),
            out_of_memory: result.exit.out_of_memory,
        }
    }
}
