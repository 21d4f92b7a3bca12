//! Contexts: interpreters in a sandbox that keep their variables from one program to the next.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bouvet_wire::limits::{MAX_CONTEXTS, MAX_PATH_BYTES};
use bouvet_wire::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::boxconfig::InvalidConfig;
use crate::exec::{Program, check_environment};
use crate::link::Client;
use crate::sandbox::state::Refusal;

/// How long the guest may take to start an interpreter, and to list and end them. Beyond its own deadline.
const DEADLINE: Duration = Duration::from_secs(180);

/// Names one context of a sandbox.
///
/// ```
/// use bouvet_host::ContextId;
///
/// let id: ContextId = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap();
/// assert_eq!(id.to_string(), "67e55044-10b1-426f-9247-bb680e5fe0c8");
/// assert!("the first one".parse::<ContextId>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextId(Uuid);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ContextId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text.trim()).map(Self)
    }
}

/// A context to create.
///
/// ```no_run
/// use bouvet_host::{ContextRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut request = ContextRequest { cwd: "/srv".into(), ..ContextRequest::new(Program::Node) };
/// request.env.insert("NODE_ENV".into(), "production".into());
/// let context = sandbox.create_context(request).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct ContextRequest {
    /// What runs in it: [`Program::Python`] or [`Program::Node`].
    pub program: Program,
    /// Environment variables, beside the sandbox's own, at most 64 KiB.
    pub env: BTreeMap<String, String>,
    /// The working directory, relative to the sandbox's.
    pub cwd: String,
}

impl ContextRequest {
    /// A context in the sandbox's working directory.
    ///
    /// ```
    /// use bouvet_host::{ContextRequest, Program};
    ///
    /// let request = ContextRequest::new(Program::Python);
    /// assert!(request.cwd.is_empty() && request.env.is_empty());
    /// ```
    pub fn new(program: Program) -> Self {
        Self { program, env: BTreeMap::new(), cwd: String::new() }
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        if !matches!(self.program, Program::Python | Program::Node) {
            let (value, allowed) = (format!("{:?}", self.program), "contexts are for Python and Node".into());
            return Err(InvalidConfig { field: "language", value, allowed });
        }
        if self.cwd.len() > MAX_PATH_BYTES || self.cwd.contains('\0') {
            let value = format!("{} bytes long", self.cwd.len());
            let allowed = format!("{MAX_PATH_BYTES} bytes without NUL are allowed");
            return Err(InvalidConfig { field: "cwd", value, allowed });
        }
        check_environment(&self.env)
    }
}

/// What is known of a context.
///
/// ```no_run
/// use bouvet_host::{ContextState, Death};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// for context in sandbox.contexts().await? {
///     if let ContextState::Dead(death) = context.state {
///         println!("{} of {:?}: {death}", context.id, context.program);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its name.
    pub id: ContextId,
    /// What runs in it.
    pub program: Program,
    /// When it was created.
    pub created_at: SystemTime,
    /// What it does.
    pub state: ContextState,
}

/// What a context does.
///
/// ```no_run
/// use bouvet_host::ContextState;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let contexts = sandbox.contexts().await?;
/// let idle = contexts.iter().find(|context| context.state == ContextState::Idle);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextState {
    /// It waits for a program.
    Idle,
    /// A program runs in it.
    Busy,
    /// It died, and is of no more use.
    Dead(Death),
}

/// How a context died.
///
/// ```
/// use bouvet_host::Death;
///
/// assert_eq!(Death::Exited(3).to_string(), "its process ended with exit code 3");
/// assert_eq!(Death::OutOfMemory.to_string(), "it used up the sandbox's memory and was killed");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its process ended, with this exit code.
    Exited(i32),
    /// This signal ended it.
    Signal(u32),
    /// The kernel killed it for lack of memory.
    OutOfMemory,
    /// It was killed, as an interrupt did not end its program.
    Stubborn,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "its process ended with exit code {code}"),
            Self::Signal(6) => write!(f, "its process was aborted (signal 6)"),
            Self::Signal(9) => write!(f, "its process was killed (signal 9)"),
            Self::Signal(11) => write!(f, "its process broke down with a segmentation fault (signal 11)"),
            Self::Signal(signal) => write!(f, "signal {signal} ended its process"),
            Self::OutOfMemory => write!(f, "it used up the sandbox's memory and was killed"),
            Self::Stubborn => write!(f, "its program went on after it was interrupted, and was killed"),
        }
    }
}

impl From<v1::ContextDeath> for Death {
    fn from(death: v1::ContextDeath) -> Self {
        match death {
            v1::ContextDeath { stubborn: true, .. } => Self::Stubborn,
            v1::ContextDeath { out_of_memory: true, .. } => Self::OutOfMemory,
            v1::ContextDeath { signal: 0, exit_code, .. } => Self::Exited(exit_code),
            v1::ContextDeath { signal, .. } => Self::Signal(signal),
        }
    }
}

/// Why something could not be done to a context.
///
/// ```no_run
/// use bouvet_host::{ContextError, ContextRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.create_context(ContextRequest::new(Program::Python)).await {
///     Ok(context) => println!("{}", context.id),
///     Err(ContextError::TooMany(limit)) => println!("one of the {limit} must be destroyed first"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The sandbox cannot take it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It asks for what cannot be had.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// There are as many as may be, dead ones among them.
    #[error("the sandbox has {0} contexts, which is the limit")]
    TooMany(usize),
    /// It was destroyed, or never existed.
    #[error("there is no context `{0}` in the sandbox")]
    Unknown(ContextId),
    /// The guest says that it cannot be started: an interpreter or a directory is missing.
    #[error("the context could not be started: {0}")]
    NotStarted(String),
    /// The guest did not answer.
    #[error("no answer from the sandbox for {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline,
    /// The link broke, or the guest broke its rules.
    #[error("the sandbox failed: {0}")]
    Link(String),
}

impl From<Status> for ContextError {
    fn from(status: Status) -> Self {
        // With a cause it comes from our end of the link, not from the guest.
        let from_guest = std::error::Error::source(&status).is_none();
        match status.code() {
            Code::ResourceExhausted if from_guest => Self::TooMany(MAX_CONTEXTS),
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::Internal
                if from_guest =>
            {
                Self::NotStarted(status.message().to_owned())
            }
            _ => Self::Link(crate::link::said(&status)),
        }
    }
}

async fn within_deadline<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, ContextError> {
    Ok(tokio::time::timeout(DEADLINE, call).await.map_err(|_| ContextError::Deadline)??)
}

/// Starts a context, and returns when it takes programs.
pub(crate) async fn create(mut client: Client, request: ContextRequest) -> Result<Context, ContextError> {
    request.validate()?;
    let (id, program) = (ContextId(Uuid::new_v4()), request.program);
    let request = v1::CreateContextRequest {
        id: id.to_string(),
        program: v1::Program::from(program).into(),
        env: request.env.into_iter().collect(),
        cwd: request.cwd,
    };
    within_deadline(client.create_context(request)).await?;
    Ok(Context { id, program, created_at: SystemTime::now(), state: ContextState::Idle })
}

/// All contexts, oldest first.
pub(crate) async fn list(mut client: Client) -> Result<Vec<Context>, ContextError> {
    let reply = within_deadline(client.list_contexts(v1::ListContextsRequest {})).await?.into_inner();
    if reply.contexts.len() > MAX_CONTEXTS {
        return Err(ContextError::Link("it listed more contexts than there may be".into()));
    }
    reply.contexts.iter().map(known).collect()
}

fn known(info: &v1::ContextInfo) -> Result<Context, ContextError> {
    let program = match info.program() {
        v1::Program::Python => Some(Program::Python),
        v1::Program::Node => Some(Program::Node),
        _ => None,
    };
    let created_at = SystemTime::now().checked_sub(Duration::from_millis(info.age_ms));
    let created_at = created_at.filter(|created_at| *created_at > SystemTime::UNIX_EPOCH);
    let (Ok(id), Some(program), Some(created_at)) = (info.id.parse(), program, created_at) else {
        return Err(ContextError::Link("it listed a context that is none".into()));
    };
    let state = match info.death {
        Some(death) => ContextState::Dead(death.into()),
        None if info.busy => ContextState::Busy,
        None => ContextState::Idle,
    };
    Ok(Context { id, program, created_at, state })
}

/// Kills a context with all that it started, and forgets it.
pub(crate) async fn destroy(mut client: Client, id: ContextId) -> Result<(), ContextError> {
    let destroyed = client.destroy_context(v1::DestroyContextRequest { id: id.to_string() });
    match tokio::time::timeout(DEADLINE, destroyed).await.map_err(|_| ContextError::Deadline)? {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Err(ContextError::Unknown(id)),
        Err(status) => Err(status.into()),
    }
}
