//! What is asked of a program to be run, and the limits of that.

use std::collections::BTreeMap;
use std::time::Duration;

use bouvet_wire::limits::{CHUNK_BYTES, MAX_PROGRAM_BYTES};
use bouvet_wire::v1::{self, exec_input::Input};
use bytes::Bytes;

use super::OUTPUT_PART_BYTES;
use crate::boxconfig::{InvalidConfig, check_env, check_user};
use crate::context::ContextId;
use crate::results::ResultLimits;

/// The longest shell command.
const MAX_COMMAND_BYTES: usize = 1024 * 1024;
/// The most that may be fed to a program.
const MAX_STDIN_BYTES: usize = 10 * 1024 * 1024;
const MAX_ENV_BYTES: usize = 64 * 1024;
/// How long a program may be allowed to run.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

const _: () = assert!(MAX_COMMAND_BYTES <= MAX_PROGRAM_BYTES);

/// The kinds of program.
///
/// ```
/// use bouvet_host::{ExecRequest, Program};
///
/// let script = ExecRequest::new(Program::Bash, "for n in 1 2 3; do echo $n; done");
/// let command = ExecRequest::arguments(["git", "status"])?;
/// assert_eq!((script.program, command.program), (Program::Bash, Program::Arguments));
/// # Ok::<(), bouvet_host::InvalidConfig>(())
/// ```
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
    /// An executable and its arguments, with a NUL between two: see [`ExecRequest::arguments`]. At most 1 MiB.
    Arguments,
}

/// The size of a terminal, in characters.
///
/// ```
/// use bouvet_host::{ExecRequest, WindowSize};
///
/// let terminal = WindowSize { columns: 132, ..WindowSize::default() };
/// assert_eq!(terminal.rows, 24);
/// let shell = ExecRequest { terminal: Some(terminal), ..ExecRequest::arguments(["bash", "-i"])? };
/// # Ok::<(), bouvet_host::InvalidConfig>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

impl Default for WindowSize {
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}

impl From<WindowSize> for v1::WindowSize {
    fn from(size: WindowSize) -> Self {
        Self { rows: size.rows.into(), columns: size.columns.into() }
    }
}

/// A program to run.
///
/// ```
/// use std::time::Duration;
///
/// use bouvet_host::{ExecRequest, Program};
///
/// let mut request = ExecRequest {
///     stdin: "1 2 3\n".into(),
///     cwd: "/srv".into(),
///     timeout: Duration::from_secs(5),
///     ..ExecRequest::new(Program::Python, "print(sum(map(int, input().split())))")
/// };
/// request.env.insert("LANG".into(), "C.UTF-8".into());
/// assert!(request.user.is_empty(), "whom the sandbox says");
/// ```
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// What `source` is.
    pub program: Program,
    /// The command line or source code, at most 10 MiB.
    pub source: Bytes,
    /// Environment variables, beside the sandbox's own.
    pub env: BTreeMap<String, String>,
    /// The working directory, relative to the sandbox's.
    pub cwd: String,
    /// What the program reads from its standard input, at most 10 MiB.
    pub stdin: Bytes,
    /// When the program and all that it started is killed: 1 ms to 24 h. In a context: when it is interrupted. Of a
    /// program whose caller is attached, zero means never.
    pub timeout: Duration,
    /// Who it runs as: `user`, `uid`, `user:group`, `uid:gid`. Empty: whom the sandbox says.
    pub user: String,
    /// Gives it a terminal of this size, all of whose output is standard output.
    pub terminal: Option<WindowSize>,
    /// The context that it runs in. It has an environment and a directory already, and that of Node.js no input.
    pub context: Option<ContextId>,
    /// Limits of results, in a context.
    pub result_limits: ResultLimits,
}

impl ExecRequest {
    /// Runs `source` in the sandbox's working directory, with no input, for at most a minute.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bouvet_host::{ExecRequest, Program};
    ///
    /// let request = ExecRequest::new(Program::Command, "make && make test");
    /// assert_eq!((request.timeout, request.terminal), (Duration::from_secs(60), None));
    /// ```
    pub fn new(program: Program, source: impl Into<Bytes>) -> Self {
        Self {
            program,
            source: source.into(),
            env: BTreeMap::new(),
            cwd: String::new(),
            stdin: Bytes::new(),
            timeout: Duration::from_secs(60),
            context: None,
            result_limits: ResultLimits::default(),
            user: String::new(),
            terminal: None,
        }
    }

    /// Runs the executable that is the first of `words` with the others, as [`ExecRequest::new`] does.
    ///
    /// ```
    /// use bouvet_host::ExecRequest;
    ///
    /// assert!(ExecRequest::arguments(["ls", "-l"]).is_ok());
    /// assert!(ExecRequest::arguments([""]).is_err());
    /// ```
    pub fn arguments<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Result<Self, InvalidConfig> {
        let words: Vec<String> = words.into_iter().map(Into::into).collect();
        if words.first().is_none_or(String::is_empty) {
            return Err(InvalidConfig::text("command", "", "the name of a program is needed"));
        }
        if let Some(word) = words.iter().find(|word| word.contains('\0')) {
            return Err(InvalidConfig::text("command", word, "an argument may not contain NUL"));
        }
        Ok(Self::new(Program::Arguments, words.join("\0")))
    }

    /// Whether it can be run for somebody who waits for its end.
    pub(super) fn validate(&self) -> Result<(), InvalidConfig> {
        if self.timeout < Duration::from_millis(1) {
            let (value, allowed) = (format!("{:?}", self.timeout), "1 ms to 24 h are allowed".into());
            return Err(InvalidConfig { field: "timeout", value, allowed });
        }
        self.validate_attached()
    }

    /// Whether it can be run for somebody who is attached to it.
    pub(super) fn validate_attached(&self) -> Result<(), InvalidConfig> {
        let at_most = |field, bytes: usize, limit: usize| {
            let (value, allowed) = (format!("{bytes} bytes long"), format!("{limit} bytes are allowed"));
            if bytes > limit { Err(InvalidConfig { field, value, allowed }) } else { Ok(()) }
        };
        match self.program {
            Program::Command | Program::Arguments => {
                at_most("command", self.source.len(), MAX_COMMAND_BYTES)?
            }
            _ => at_most("code", self.source.len(), MAX_PROGRAM_BYTES)?,
        }
        at_most("stdin", self.stdin.len(), MAX_STDIN_BYTES)?;
        at_most("cwd", self.cwd.len(), bouvet_wire::limits::MAX_PATH_BYTES)?;
        check_environment(&self.env)?;
        if self.program == Program::Command && self.source.contains(&0) {
            let allowed = "a command may not contain one".into();
            return Err(InvalidConfig { field: "command", value: "text with a NUL byte".into(), allowed });
        }
        if self.timeout > MAX_TIMEOUT {
            let (value, allowed) = (format!("{:?}", self.timeout), "1 ms to 24 h are allowed".into());
            return Err(InvalidConfig { field: "timeout", value, allowed });
        }
        check_user("user", &self.user)?;
        if self.context.is_some() { self.validate_in_context() } else { Ok(()) }
    }

    fn validate_in_context(&self) -> Result<(), InvalidConfig> {
        self.result_limits.validate()?;
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

    /// All that a program is told that has no other input.
    pub(super) fn into_messages(self) -> impl Iterator<Item = v1::ExecInput> {
        let (begin, stdin) = self.into_parts(&v1::ExecStart {
            head_limit_bytes: OUTPUT_PART_BYTES,
            tail_limit_bytes: OUTPUT_PART_BYTES,
            ..v1::ExecStart::default()
        });
        begin.chain(stdin).chain(std::iter::once(message(Input::CloseStdin(v1::CloseStdin {}))))
    }

    /// What a program is told that goes on to be told: `start` with all that is said here, and then its first input.
    pub(super) fn into_parts(
        self,
        start: &v1::ExecStart,
    ) -> (impl Iterator<Item = v1::ExecInput> + use<>, impl Iterator<Item = v1::ExecInput> + use<>) {
        let start = v1::ExecStart {
            program: v1::Program::from(self.program).into(),
            program_bytes: self.source.len() as u64,
            env: self.env.into_iter().collect(),
            cwd: self.cwd,
            timeout_ms: u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX),
            context_id: self.context.map(|id| id.to_string()).unwrap_or_default(),
            result_limits: self.context.map(|_| self.result_limits.into()),
            user: self.user,
            terminal: self.terminal.map(v1::WindowSize::from),
            ..start.clone()
        };
        let program = chunks(self.source).map(Input::Program).map(message);
        let begin = std::iter::once(message(Input::Start(start))).chain(program);
        (begin, chunks(self.stdin).map(Input::Stdin).map(message))
    }
}

pub(super) fn message(input: Input) -> v1::ExecInput {
    v1::ExecInput { input: Some(input) }
}

impl From<Program> for v1::Program {
    fn from(program: Program) -> Self {
        match program {
            Program::Command => Self::Command,
            Program::Python => Self::Python,
            Program::Node => Self::Node,
            Program::Bash => Self::Bash,
            Program::Rust => Self::Rust,
            Program::Arguments => Self::Arguments,
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
pub(super) fn chunks(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(CHUNK_BYTES))))
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
}
