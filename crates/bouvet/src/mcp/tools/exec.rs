//! What `execute_code` and `run_command` share: the optional arguments, the run, the result.

use std::collections::BTreeMap;
use std::time::Duration;

use bouvet_host::{Exec, ExecEvent, ExecRequest, ExecResult};
use rmcp::RoleServer;
use rmcp::service::RequestContext;
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;
use crate::mcp::Server;
use crate::mcp::progress::Progress;

/// What is kept of the beginning, and of the end, of each output stream. A model reads no more with profit,
/// and both streams, twice in one result, still fit into the 1 MiB that clients take as one event.
const OUTPUT_PART_BYTES: usize = 64 * 1024;
const DEFAULT_TIMEOUT_MS: u64 = 60_000;

/// What either tool may be told beyond its program. Their arguments repeat these fields: serde cannot refuse unknown
/// ones (`deny_unknown_fields`) in a structure that another is flattened into.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) timeout_ms: Option<u64>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: String,
    pub(super) stdin: String,
}

/// How a program went.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Outcome {
    /// 0 for success; 128 + the signal's number when a signal ended it.
    exit_code: i32,
    /// What it printed: at most the first and the last 64 KiB.
    stdout: String,
    /// What it printed as errors: at most the first and the last 64 KiB.
    stderr: String,
    /// How long it ran, in milliseconds.
    duration_ms: u64,
    /// Whether it was killed, or in a context interrupted, because its time was over.
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
    ) -> Result<ExecResult, Failure> {
        let sandbox = self.find(sandbox_id)?;
        request.timeout = Duration::from_millis(options.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS));
        request.env = options.env;
        request.cwd = options.cwd;
        request.stdin = options.stdin.into();
        let exec = sandbox.exec(request).await?;
        tokio::select! {
            // Dropping the run kills the program.
            () = context.ct.cancelled() => Err(Failure::argument("the call was cancelled, and its program killed")),
            result = watch(exec, Progress::new(context)) => Ok(result?),
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
        let ExecResult { exit, stdout, stderr, .. } = result;
        let (stdout, stderr) = (stdout.clipped(OUTPUT_PART_BYTES), stderr.clipped(OUTPUT_PART_BYTES));
        Self {
            exit_code: exit.exit_code,
            truncated: stdout.dropped_bytes > 0 || stderr.dropped_bytes > 0,
            stdout: stdout.text(),
            stderr: stderr.text(),
            duration_ms: u64::try_from(exit.duration.as_millis()).unwrap_or(u64::MAX),
            timed_out: exit.timed_out,
            out_of_memory: exit.out_of_memory,
        }
    }
}
