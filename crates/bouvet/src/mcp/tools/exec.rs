//! What `execute_code` and `run_command` share: the optional arguments, the run, the result.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bouvet_host::{Captured, Exec, ExecEvent, ExecRequest, ExecResult, NetworkMode, Sandbox};
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
/// Bytes of a stream that is not UTF-8, in base64 too: of both streams, twice in one result, 256 KiB.
const MAX_BASE64_BYTES: usize = 48 * 1024;
const MAX_UTF8_BYTES: usize = char::MAX.len_utf8();

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
    /// Whether stdout or stderr was not UTF-8: U+FFFD is in the place of each byte that was not.
    not_utf8: bool,
    /// If stdout was not UTF-8: its first 48 KiB in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    stdout_base64: Option<String>,
    /// If stderr was not UTF-8: its first 48 KiB in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    stderr_base64: Option<String>,
    /// What may help where the program did not do what it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(super) hint: Option<String>,
}

/// How resolvers and programs name a failure to resolve a name: glibc, musl's wget, curl, Node.js, apt, and Rust.
const UNRESOLVED: [&str; 7] = [
    "Temporary failure in name resolution",
    "Temporary failure resolving",
    "Name or service not known",
    "Could not resolve host",
    "bad address '",
    "getaddrinfo EAI_AGAIN",
    "failed to lookup address information",
];

impl Outcome {
    /// A hint where a program failed to resolve a name in a sandbox without a network. `may_have` states whether
    /// clients of this server can have networks.
    fn network_hint(&self, may_have: bool) -> Option<&'static str> {
        let is_unresolved = |text: &String| UNRESOLVED.iter().any(|words| text.contains(words));
        let is_failed = self.exit_code != 0 && [&self.stdout, &self.stderr].into_iter().any(is_unresolved);
        is_failed.then_some(match may_have {
            true => {
                "the sandbox has no network: networks are given to sandboxes when they are created, by create_sandbox \
                 with `network`: \"tsi\""
            }
            false => "the sandbox has no network, and this server gives none: its operator sets BOUVET_ALLOWED_EGRESS",
        })
    }
}

/// The beginning of `output` in base64, if it is not UTF-8. It may be cut within a character where some was left out.
fn bytes_of(output: &Captured) -> Option<String> {
    let Captured { head, tail, dropped_bytes, .. } = output;
    let is_text = match dropped_bytes {
        0 if output.earlier_dropped_bytes > 0 => is_part_of_text(&[&head[..], &tail[..]].concat()),
        0 => std::str::from_utf8(&[&head[..], &tail[..]].concat()).is_ok(),
        _ => is_part_of_text(head) && is_part_of_text(tail),
    };
    if is_text {
        return None;
    }
    let whole = if *dropped_bytes == 0 { [&head[..], &tail[..]].concat() } else { head.clone() };
    Some(BASE64.encode(&whole[..whole.len().min(MAX_BASE64_BYTES)]))
}

/// Whether `bytes` are UTF-8 but for characters that are cut at their ends.
fn is_part_of_text(bytes: &[u8]) -> bool {
    let is_continuation = |byte: &u8| byte & 0xc0 == 0x80;
    let cut = bytes.iter().take(MAX_UTF8_BYTES - 1).take_while(|byte| is_continuation(byte)).count();
    // An error without a length is a character that the end cuts.
    std::str::from_utf8(&bytes[cut..]).map_or_else(|error| error.error_len().is_none(), |_| true)
}

impl Server {
    /// Runs a program to its end. Dropping the call kills the program.
    pub(super) async fn run(
        &self,
        sandbox_id: &str,
        mut request: ExecRequest,
        options: Options,
        context: &RequestContext<RoleServer>,
    ) -> Result<(ExecResult, Sandbox), Failure> {
        let sandbox = self.find(sandbox_id)?;
        request.timeout = Duration::from_millis(options.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS));
        request.env = options.env;
        request.cwd = options.cwd;
        request.stdin = options.stdin.into();
        let exec = sandbox.exec(request).await?;
        Ok((watch(exec, Progress::new(context)).await?, sandbox))
    }

    /// Adds a hint to `outcome` of a program in `sandbox`.
    pub(super) fn advise(&self, outcome: &mut Outcome, sandbox: &Sandbox) {
        let hint = match sandbox.info().config.network {
            NetworkMode::None => outcome.network_hint(self.grants.egress.is_some()),
            _ => None,
        };
        if let Some(hint) = hint {
            outcome.hint = Some(hint.to_owned());
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
        let (stdout_base64, stderr_base64) = (bytes_of(&stdout), bytes_of(&stderr));
        Self {
            exit_code: exit.exit_code,
            truncated: stdout.truncated() || stderr.truncated(),
            not_utf8: stdout_base64.is_some() || stderr_base64.is_some(),
            stdout_base64,
            stderr_base64,
            stdout: stdout.text(),
            stderr: stderr.text(),
            duration_ms: u64::try_from(exit.duration.as_millis()).unwrap_or(u64::MAX),
            hint: None,
            timed_out: exit.timed_out,
            out_of_memory: exit.out_of_memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use bouvet_host::ExecExit;

    use super::*;

    fn captured(head: &[u8], tail: &[u8], dropped_bytes: u64) -> Captured {
        Captured { head: head.to_vec(), tail: tail.to_vec(), dropped_bytes, ..Captured::default() }
    }

    #[test]
    fn output_that_is_not_utf8_comes_in_base64() {
        assert_eq!(bytes_of(&captured("grüß 😀".as_bytes(), b"", 0)), None);
        assert_eq!(bytes_of(&captured(b"", b"", 0)), None);
        assert_eq!(bytes_of(&captured(b"\xff\x00", b"", 0)).unwrap(), "/wA=");
        assert_eq!(
            bytes_of(&captured(b"\xf0\x9f", b"\x98\x80", 0)),
            None,
            "head and tail meet in a character"
        );
        assert_eq!(bytes_of(&captured(b"\xf0\x9f", b"\x98\x80", 1)), None, "what is left out cuts two");
        assert_eq!(
            bytes_of(&captured(b"\xf0\x9f", b"", 0)).unwrap(),
            "8J8=",
            "a character is cut by its end"
        );
        assert_eq!(bytes_of(&captured(b"a", b"\x80\x80\x80\x80", 1)).unwrap(), "YQ==");
        for (bytes, kept) in [(MAX_BASE64_BYTES, MAX_BASE64_BYTES), (MAX_BASE64_BYTES + 1, MAX_BASE64_BYTES)]
        {
            let encoded = bytes_of(&captured(&vec![0xff; bytes], b"", 0)).unwrap();
            assert_eq!(BASE64.decode(encoded).unwrap().len(), kept);
        }
    }

    #[test]
    fn unresolved_names_hint_at_the_network() {
        let outcome = |exit_code, stderr: &str| {
            let exit = ExecExit {
                exit_code,
                timed_out: false,
                out_of_memory: false,
                duration: Duration::ZERO,
                context_death: None,
            };
            let stderr = captured(stderr.as_bytes(), b"", 0);
            let stdout = Captured::default();
            Outcome::from(ExecResult { exit, stdout, stderr, results: Vec::new(), omitted_results: 0 })
        };
        for words in UNRESOLVED {
            let failed = outcome(1, &format!("error: {words}x"));
            assert!(failed.network_hint(true).unwrap().contains("create_sandbox"), "{words}");
            assert!(failed.network_hint(false).unwrap().contains("BOUVET_ALLOWED_EGRESS"), "{words}");
        }
        assert_eq!(outcome(0, UNRESOLVED[0]).network_hint(true), None);
        assert_eq!(outcome(1, "connection refused").network_hint(true), None);
    }

    #[test]
    fn parts_of_text_are_recognised_at_any_cut() {
        let text = "a€😀ü".repeat(3);
        for start in 0..text.len() {
            for end in start..=text.len() {
                assert!(is_part_of_text(&text.as_bytes()[start..end]), "{start}..{end}");
            }
        }
    }
}
