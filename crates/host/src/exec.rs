//! Programs in a sandbox: what is asked, what comes back, and the bounds that hold whatever the guest says.

use std::collections::BTreeMap;
use std::time::Duration;

use bouvet_wire::limits::{CHUNK_BYTES, MAX_OUTPUT_PART_BYTES, MAX_PROGRAM_BYTES};
use bouvet_wire::v1::{self, exec_input::Input, exec_output::Output};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::boxconfig::{InvalidConfig, check_env};
use crate::context::{ContextId, Death};
use crate::link::Client;
use crate::results::{Results, RichOutput};
use crate::sandbox::post_mortem;
use crate::sandbox::state::{Refusal, State};

/// The longest shell command.
const MAX_COMMAND_BYTES: usize = 1024 * 1024;
/// The most that may be fed to a program.
const MAX_STDIN_BYTES: usize = 10 * 1024 * 1024;
const MAX_ENV_BYTES: usize = 64 * 1024;
/// How long a program may be allowed to run.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// What the guest gets beyond a program's own deadline: to kill it, and to send what it had printed.
const GRACE: Duration = Duration::from_secs(15);
/// What is kept of the beginning, and of the end, of each output stream.
const OUTPUT_PART_BYTES: u32 = 512 * 1024;

const _: () = assert!(OUTPUT_PART_BYTES as usize <= MAX_OUTPUT_PART_BYTES);
const _: () = assert!(MAX_COMMAND_BYTES <= MAX_PROGRAM_BYTES);

/// The kinds of program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// A shell command line of at most 1 MiB.
    Command,
    /// Python 3.
    Python,
    /// JavaScript for Node.js, as a script or an ES module.
    Node,
    /// A Bash script.
    Bash,
    /// A Rust program: compiled, then run.
    Rust,
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// What `source` is.
    pub program: Program,
    /// The command line or source code, at most 10 MiB.
    pub source: Bytes,
    /// Environment variables, beside the sandbox's own.
    pub env: BTreeMap<String, String>,
    /// The working directory; empty for the home directory.
    pub cwd: String,
    /// What the program reads from its standard input, at most 10 MiB.
    pub stdin: Bytes,
    /// When the program and all that it started is killed: 1 ms to 24 h. In a context: when it is interrupted.
    pub timeout: Duration,
    /// The context that it runs in. It has an environment and a directory already, and that of Node.js no input.
    pub context: Option<ContextId>,
}

impl ExecRequest {
    /// Runs `source` in the home directory, with no input, for at most a minute.
    pub fn new(program: Program, source: impl Into<Bytes>) -> Self {
        Self {
            program,
            source: source.into(),
            env: BTreeMap::new(),
            cwd: String::new(),
            stdin: Bytes::new(),
            timeout: Duration::from_secs(60),
            context: None,
        }
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        let at_most = |field, bytes: usize, limit: usize| {
            let (value, allowed) = (format!("{bytes} bytes long"), format!("{limit} bytes are allowed"));
            if bytes > limit { Err(InvalidConfig { field, value, allowed }) } else { Ok(()) }
        };
        match self.program {
            Program::Command => at_most("command", self.source.len(), MAX_COMMAND_BYTES)?,
            _ => at_most("code", self.source.len(), MAX_PROGRAM_BYTES)?,
        }
        at_most("stdin", self.stdin.len(), MAX_STDIN_BYTES)?;
        at_most("cwd", self.cwd.len(), bouvet_wire::limits::MAX_PATH_BYTES)?;
        check_environment(&self.env)?;
        if self.program == Program::Command && self.source.contains(&0) {
            let allowed = "a command may not contain one".into();
            return Err(InvalidConfig { field: "command", value: "text with a NUL byte".into(), allowed });
        }
        if self.timeout < Duration::from_millis(1) || self.timeout > MAX_TIMEOUT {
            let (value, allowed) = (format!("{:?}", self.timeout), "1 ms to 24 h are allowed".into());
            return Err(InvalidConfig { field: "timeout", value, allowed });
        }
        if self.context.is_some() { self.validate_in_context() } else { Ok(()) }
    }

    fn validate_in_context(&self) -> Result<(), InvalidConfig> {
        let is_node = self.program == Program::Node;
        for (field, is_given, allowed) in [
            ("env", !self.env.is_empty(), "a context keeps the environment that it was created with"),
            ("cwd", !self.cwd.is_empty(), "a context keeps the directory that it was created in"),
            ("stdin", is_node && !self.stdin.is_empty(), "a context of Node.js reads no input"),
        ] {
            if is_given {
                return Err(InvalidConfig { field, value: "set".into(), allowed: allowed.into() });
            }
        }
        Ok(())
    }

    fn into_messages(self) -> impl Iterator<Item = v1::ExecInput> {
        let start = v1::ExecStart {
            program: v1::Program::from(self.program).into(),
            program_bytes: self.source.len() as u64,
            env: self.env.into_iter().collect(),
            cwd: self.cwd,
            timeout_ms: u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX),
            head_limit_bytes: OUTPUT_PART_BYTES,
            tail_limit_bytes: OUTPUT_PART_BYTES,
            context_id: self.context.map(|id| id.to_string()).unwrap_or_default(),
        };
        let inputs = std::iter::once(Input::Start(start))
            .chain(chunks(self.source).map(Input::Program))
            .chain(chunks(self.stdin).map(Input::Stdin))
            .chain(std::iter::once(Input::CloseStdin(v1::CloseStdin {})));
        inputs.map(|input| v1::ExecInput { input: Some(input) })
    }
}

impl From<Program> for v1::Program {
    fn from(program: Program) -> Self {
        match program {
            Program::Command => Self::Command,
            Program::Python => Self::Python,
            Program::Node => Self::Node,
            Program::Bash => Self::Bash,
            Program::Rust => Self::Rust,
        }
    }
}

/// Whether a call may bring these variables.
pub(crate) fn check_environment(env: &BTreeMap<String, String>) -> Result<(), InvalidConfig> {
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_ENV_BYTES {
        let (value, allowed) = (format!("{bytes} bytes long"), format!("{MAX_ENV_BYTES} bytes are allowed"));
        return Err(InvalidConfig { field: "env", value, allowed });
    }
    env.iter().try_for_each(|(name, value)| check_env("env", name, value))
}

/// `bytes` in pieces that fit into messages.
pub(crate) fn chunks(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(CHUNK_BYTES))))
}

/// Why a program could not be run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The sandbox cannot take it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It asks for what cannot be had.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// As many programs as may be are running.
    #[error("{0} programs are running in the sandbox, which is the limit")]
    TooMany(usize),
    /// The guest says that it cannot be started: an interpreter or a directory is missing.
    #[error("the program could not be started: {0}")]
    NotStarted(String),
    /// The context was destroyed, or never existed.
    #[error("there is no context `{0}` in the sandbox")]
    NoContext(ContextId),
    /// The context is for programs of another kind.
    #[error("the context `{0}` is for another language")]
    OtherProgram(ContextId),
    /// The context had died before.
    #[error("the context `{0}` died: {1}")]
    ContextDied(ContextId, Death),
    /// Other programs ran in the context until this one's time was over.
    #[error("the context `{0}` was busy for all of the call's time")]
    ContextBusy(ContextId),
    /// The guest did not keep its own deadline.
    #[error("the sandbox did not answer within {0:?}")]
    Deadline(Duration),
    /// The link broke, or the guest broke its rules.
    #[error("the sandbox failed while the program ran: {0}")]
    Link(String),
}

impl From<Status> for ExecError {
    fn from(status: Status) -> Self {
        // With a cause it comes from our end of the link, not from the guest.
        let from_guest = std::error::Error::source(&status).is_none();
        match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::Internal
                if from_guest =>
            {
                Self::NotStarted(status.message().to_owned())
            }
            _ => Self::Link(crate::chain(&status)),
        }
    }
}

impl ExecError {
    /// What a guest that was called with a context means by `status`.
    fn in_context(status: Status, context: Option<ContextId>) -> Self {
        let from_guest = std::error::Error::source(&status).is_none();
        match (context.filter(|_| from_guest), status.code()) {
            (Some(id), Code::NotFound) => Self::NoContext(id),
            (Some(id), Code::InvalidArgument) => Self::OtherProgram(id),
            (Some(id), Code::DeadlineExceeded) => Self::ContextBusy(id),
            _ => status.into(),
        }
    }
}

/// One stream of a program's output: its beginning, and its end if there was more than fits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes.
    pub head: Vec<u8>,
    /// Bytes left out between the head and the tail.
    pub dropped_bytes: u64,
    /// The last bytes.
    pub tail: Vec<u8>,
}

impl Captured {
    /// The same with at most `part_bytes` of its beginning and of its end.
    pub fn clipped(mut self, part_bytes: usize) -> Self {
        if self.head.len() + self.tail.len() <= 2 * part_bytes {
            return self;
        }
        let rest = self.head.split_off(self.head.len().min(part_bytes));
        if self.dropped_bytes == 0 {
            // There is no gap between the two: the end may begin in what was the head.
            self.tail.splice(..0, rest);
        } else {
            self.dropped_bytes += rest.len() as u64;
        }
        let over = self.tail.len().saturating_sub(part_bytes);
        self.tail.drain(..over);
        self.dropped_bytes += over as u64;
        self
    }

    /// The output as text, with a line that says what was left out.
    pub fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.dropped_bytes == 0 {
            // The boundary may fall into a character.
            return String::from_utf8_lossy(&[&self.head[..], &self.tail[..]].concat()).into_owned();
        }
        text.push_str(&format!("\n[… {} bytes left out …]\n", self.dropped_bytes));
        text.push_str(&String::from_utf8_lossy(&self.tail));
        text
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecExit {
    /// Its exit code; 128 + the signal's number when a signal ended it.
    pub exit_code: i32,
    /// Whether its deadline ended it.
    pub timed_out: bool,
    /// Whether the kernel killed any of its processes for lack of memory.
    pub out_of_memory: bool,
    /// How long it ran, by the guest's clock.
    pub duration: Duration,
    /// How its context died, if that did not outlive it.
    pub context_death: Option<Death>,
}

/// All of a program's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// How it ended.
    pub exit: ExecExit,
    /// What it printed.
    pub stdout: Captured,
    /// What it printed as errors.
    pub stderr: Captured,
    /// What it showed, in a context.
    pub results: Vec<RichOutput>,
    /// Results beyond the limits.
    pub omitted_results: u32,
}

impl ExecResult {
    /// Whether some output was left out.
    pub fn truncated(&self) -> bool {
        self.stdout.dropped_bytes > 0 || self.stderr.dropped_bytes > 0
    }
}

/// What a running program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It printed.
    Stdout(Bytes),
    /// It printed errors.
    Stderr(Bytes),
    /// It ended. Always the last. Carries what of the output had not been reported.
    Exit(Box<ExecResult>),
}

/// A running program. Dropping it kills the program and all that it started.
#[derive(Debug)]
pub struct Exec {
    outputs: Streaming<v1::ExecOutput>,
    deadline: Instant,
    patience: Duration,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    results: Results,
    context: Option<ContextId>,
    started: bool,
    ended: bool,
    /// The state of its sandbox, and its place among the programs that run there.
    sandbox: Option<(watch::Receiver<State>, OwnedSemaphorePermit)>,
}

impl Exec {
    pub(crate) async fn start(mut client: Client, request: ExecRequest) -> Result<Self, ExecError> {
        request.validate()?;
        let patience = request.timeout + GRACE;
        let deadline = Instant::now() + patience;
        let context = request.context;
        let call = client.exec(tokio_stream::iter(request.into_messages()));
        let answer = tokio::time::timeout_at(deadline, call).await;
        let answer = answer.map_err(|_| ExecError::Deadline(patience))?;
        let outputs = answer.map_err(|status| ExecError::in_context(status, context))?.into_inner();
        Ok(Self {
            outputs,
            deadline,
            patience,
            stdout: Vec::new(),
            stderr: Vec::new(),
            results: Results::default(),
            context,
            started: false,
            ended: false,
            sandbox: None,
        })
    }

    pub(crate) fn belongs_to(
        mut self,
        sandbox: watch::Receiver<State>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        self.sandbox = Some((sandbox, permit));
        self
    }

    /// What the program does next; `None` after its exit.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ExecError> {
        match (self.receive().await, &self.sandbox) {
            // Why the VM died says more than that its link broke.
            (Err(ExecError::Link(fact)), Some((sandbox, _))) => Err(explained(sandbox.clone(), fact).await),
            (event, _) => event,
        }
    }

    async fn receive(&mut self) -> Result<Option<ExecEvent>, ExecError> {
        while !self.ended {
            let message = tokio::time::timeout_at(self.deadline, self.outputs.next()).await;
            let message = message.map_err(|_| ExecError::Deadline(self.patience))?.transpose();
            let message = message.map_err(|status| ExecError::in_context(status, self.context))?;
            match message.and_then(|message| message.output) {
                Some(Output::Started(_)) => self.started = true,
                Some(Output::Result(_)) if self.context.is_none() => {
                    return Err(ExecError::Link("it sent a result of a program that has no context".into()));
                }
                Some(Output::Result(result)) => self.results.take(result).map_err(ExecError::Link)?,
                Some(Output::Stdout(data)) => {
                    return bounded(&mut self.stdout, &data).map(|()| Some(ExecEvent::Stdout(data)));
                }
                Some(Output::Stderr(data)) => {
                    return bounded(&mut self.stderr, &data).map(|()| Some(ExecEvent::Stderr(data)));
                }
                Some(Output::Exit(exit)) => {
                    self.ended = true;
                    return self.result(exit).map(|result| Some(ExecEvent::Exit(Box::new(result))));
                }
                None => return Err(ExecError::Link("it ended the call without an exit".into())),
            }
        }
        Ok(None)
    }

    /// Runs the program to its end.
    pub async fn finish(mut self) -> Result<ExecResult, ExecError> {
        loop {
            match self.next().await? {
                Some(ExecEvent::Exit(result)) => return Ok(*result),
                Some(_) => {}
                None => return Err(ExecError::Link("it was asked for its exit twice".into())),
            }
        }
    }

    fn result(&mut self, exit: v1::ExecExit) -> Result<ExecResult, ExecError> {
        let context_death = exit.context_death.filter(|_| self.context.is_some()).map(Death::from);
        if let (Some(death), Some(id), false) = (context_death, self.context, self.started) {
            return Err(ExecError::ContextDied(id, death));
        }
        Ok(ExecResult {
            results: std::mem::take(&mut self.results).into(),
            omitted_results: exit.omitted_results,
            stdout: captured(&mut self.stdout, exit.stdout)?,
            stderr: captured(&mut self.stderr, exit.stderr)?,
            exit: ExecExit {
                exit_code: exit.exit_code,
                timed_out: exit.timed_out,
                out_of_memory: exit.out_of_memory,
                duration: Duration::from_micros(exit.duration_us),
                context_death,
            },
        })
    }
}

fn captured(head: &mut Vec<u8>, tail: Option<v1::OutputTail>) -> Result<Captured, ExecError> {
    let v1::OutputTail { tail: data, dropped_bytes } = tail.unwrap_or_default();
    let mut tail = Vec::new();
    bounded(&mut tail, &data)?;
    Ok(Captured { head: std::mem::take(head), dropped_bytes, tail })
}

/// The error of a call whose link broke.
pub(crate) async fn explained(sandbox: watch::Receiver<State>, fact: String) -> ExecError {
    post_mortem::reason(sandbox).await.map_or(ExecError::Link(fact), ExecError::Refused)
}

/// Keeps `data`, as long as the guest keeps to the limit that it was given.
fn bounded(kept: &mut Vec<u8>, data: &[u8]) -> Result<(), ExecError> {
    if kept.len() + data.len() > OUTPUT_PART_BYTES as usize {
        return Err(ExecError::Link("it sent more output than was asked for".into()));
    }
    kept.extend_from_slice(data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_hold_at_the_limit_and_not_past_it() {
        let of = |program, bytes| ExecRequest::new(program, vec![b'#'; bytes]).validate();
        assert!(of(Program::Command, MAX_COMMAND_BYTES).is_ok());
        assert!(of(Program::Command, MAX_COMMAND_BYTES + 1).is_err());
        assert!(of(Program::Python, MAX_PROGRAM_BYTES).is_ok());
        assert!(of(Program::Python, MAX_PROGRAM_BYTES + 1).is_err());
        let mut request = ExecRequest::new(Program::Bash, "true");
        request.timeout = MAX_TIMEOUT;
        assert!(request.validate().is_ok());
        request.timeout += Duration::from_millis(1);
        assert!(request.validate().is_err());
        request.timeout = Duration::from_micros(1);
        assert!(request.validate().is_err());
        let with_env = |value: &str| {
            let mut request = ExecRequest::new(Program::Bash, "true");
            request.env.insert("A".into(), value.into());
            request.validate()
        };
        assert!(with_env(&"x".repeat(MAX_ENV_BYTES - 1)).is_ok());
        assert!(with_env(&"x".repeat(MAX_ENV_BYTES)).is_err());
    }

    #[test]
    fn clipping_keeps_both_ends_and_counts_what_lies_between() {
        let of = |head: &[u8], dropped_bytes, tail: &[u8]| Captured {
            head: head.to_vec(),
            dropped_bytes,
            tail: tail.to_vec(),
        };
        assert_eq!(of(b"abc", 0, b"d").clipped(2), of(b"abc", 0, b"d"), "it fits");
        assert_eq!(of(b"abcdefg", 0, b"").clipped(2), of(b"ab", 3, b"fg"));
        assert_eq!(of(b"abcd", 0, b"e").clipped(2), of(b"ab", 1, b"de"));
        assert_eq!(of(b"abcd", 7, b"wxyz").clipped(2), of(b"ab", 11, b"yz"));
        assert_eq!(of(b"abcd", 7, b"z").clipped(2), of(b"ab", 9, b"z"));
    }

    #[test]
    fn text_joins_head_and_tail_across_a_character() {
        let captured = Captured { head: b"gr\xc3".to_vec(), dropped_bytes: 0, tail: b"\xbcn".to_vec() };
        assert_eq!(captured.text(), "grün");
        let captured = Captured { head: b"a".to_vec(), dropped_bytes: 7, tail: b"z".to_vec() };
        assert_eq!(captured.text(), "a\n[… 7 bytes left out …]\nz");
    }
}
