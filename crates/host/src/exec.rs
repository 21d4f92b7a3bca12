//! Programs in a sandbox: what is asked, what comes back, and the bounds that hold whatever the guest says.

mod outcome;
mod request;
mod signal;
mod stream;

use std::time::Duration;

use bouvet_wire::limits::MAX_OUTPUT_PART_BYTES;
use bouvet_wire::v1::{self, exec_output::Output};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

pub use self::outcome::{Captured, ExecExit, ExecResult};
pub(crate) use self::request::check_environment;
pub use self::request::{ExecRequest, Program, WindowSize};
pub use self::signal::{ParseSignalError, Signal};
pub(crate) use self::stream::Role;
pub use self::stream::{ExecControl, ExecStream, StreamEvent};
use crate::boxconfig::InvalidConfig;
use crate::context::{ContextId, Death};
use crate::link::Client;
use crate::results::Results;
use crate::sandbox::post_mortem;
use crate::sandbox::state::{Refusal, State};

/// What the guest gets beyond a program's own deadline: to kill it, and to send what it had printed.
const GRACE: Duration = Duration::from_secs(15);
/// What is kept of the beginning, and of the end, of each output stream.
const OUTPUT_PART_BYTES: u32 = 512 * 1024;

const _: () = assert!(OUTPUT_PART_BYTES as usize <= MAX_OUTPUT_PART_BYTES);

/// Why a program could not be run, or its end is not known.
///
/// ```no_run
/// use bouvet_host::{ExecError, ExecRequest};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.exec_stream(ExecRequest::arguments(["gdb", "--version"])?).await {
///     Ok(mut program) => while program.next().await?.is_some() {},
///     Err(ExecError::NoProgram(why)) => println!("it must be installed first: {why}"),
///     Err(ExecError::Refused(why)) => println!("not now: {why}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
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
    /// There is no such program.
    #[error("{0}")]
    NoProgram(String),
    /// There is one, and it may not be run or is no program.
    #[error("{0}")]
    NotExecutable(String),
    /// It has ended.
    #[error("the program has ended")]
    Ended,
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
    #[error("no answer from the sandbox for {seconds} s", seconds = .0.as_secs())]
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
            Code::NotFound if from_guest => Self::NoProgram(status.message().to_owned()),
            Code::PermissionDenied if from_guest => Self::NotExecutable(status.message().to_owned()),
            Code::InvalidArgument | Code::FailedPrecondition | Code::Internal if from_guest => {
                Self::NotStarted(status.message().to_owned())
            }
            _ => Self::Link(crate::link::said(&status)),
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

/// What a running program does.
///
/// ```no_run
/// use bouvet_host::{ExecEvent, ExecRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut program = sandbox.exec(ExecRequest::new(Program::Command, "make")).await?;
/// while let Some(event) = program.next().await? {
///     match event {
///         ExecEvent::Stdout(data) | ExecEvent::Stderr(data) => print!("{}", String::from_utf8_lossy(&data)),
///         ExecEvent::Exit(result) => println!("exit code {}", result.exit.exit_code),
///     }
/// }
/// # Ok(()) }
/// ```
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
///
/// ```no_run
/// use std::time::Duration;
///
/// use bouvet_host::{ExecRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let program = sandbox.exec(ExecRequest::new(Program::Command, "sleep 1000")).await?;
/// if tokio::time::timeout(Duration::from_secs(1), program.finish()).await.is_err() {
///     println!("it was dropped, and so it was killed");
/// }
/// # Ok(()) }
/// ```
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
    place: Option<Place>,
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
            place: None,
        })
    }

    pub(crate) fn at(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// What the program does next; `None` after its exit.
    ///
    /// ```no_run
    /// use bouvet_host::{ExecEvent, ExecRequest, Program};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut program = sandbox.exec(ExecRequest::new(Program::Command, "make")).await?;
    /// while let Some(event) = program.next().await? {
    ///     if let ExecEvent::Stdout(data) = event {
    ///         print!("{}", String::from_utf8_lossy(&data));
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ExecError> {
        let received = self.receive().await;
        Place::explained(self.place.as_ref(), received).await
    }

    async fn receive(&mut self) -> Result<Option<ExecEvent>, ExecError> {
        while !self.ended {
            let message = tokio::time::timeout_at(self.deadline, self.outputs.next()).await;
            let message = message.map_err(|_| ExecError::Deadline(self.patience))?.transpose();
            let message = message.map_err(|status| ExecError::in_context(status, self.context))?;
            match message.and_then(|message| message.output) {
                Some(Output::Started(_)) => self.started = true,
                Some(Output::Result(_) | Output::ClearResults(_)) if self.context.is_none() => {
                    return Err(ExecError::Link("it sent a result of a program that has no context".into()));
                }
                Some(Output::Result(result)) => self.results.take(result).map_err(ExecError::Link)?,
                Some(Output::ClearResults(_)) => self.results.clear(),
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
    ///
    /// ```no_run
    /// use bouvet_host::{ExecRequest, Program};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let result = sandbox.exec(ExecRequest::new(Program::Python, "print(6 * 7)")).await?.finish().await?;
    /// assert_eq!((result.exit.exit_code, result.stdout.text().as_str()), (0, "42\n"));
    /// # Ok(()) }
    /// ```
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
    let v1::OutputTail { tail: data, dropped_bytes, earlier_bytes, earlier_dropped_bytes } =
        tail.unwrap_or_default();
    let mut tail = Vec::new();
    bounded(&mut tail, &data)?;
    let head = std::mem::take(head);
    let earlier_bytes = earlier_bytes.min(head.len() as u64);
    Ok(Captured { head, dropped_bytes, tail, earlier_bytes, earlier_dropped_bytes })
}

/// A program's place among those that run in its sandbox.
#[derive(Debug)]
pub(crate) struct Place {
    sandbox: watch::Receiver<State>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(crate) fn new(sandbox: watch::Receiver<State>, permit: OwnedSemaphorePermit) -> Self {
        Self { sandbox, _permit: permit }
    }

    /// What a call came to. Why the VM died says more than that its link broke.
    pub(crate) async fn explained<T>(
        place: Option<&Self>,
        result: Result<T, ExecError>,
    ) -> Result<T, ExecError> {
        match (result, place) {
            (Err(ExecError::Link(fact)), Some(place)) => {
                let reason = post_mortem::reason(place.sandbox.clone()).await;
                Err(reason.map_or(ExecError::Link(fact), ExecError::Refused))
            }
            (result, _) => result,
        }
    }
}

/// Keeps `data`, as long as the guest keeps to the limit that it was given.
fn bounded(kept: &mut Vec<u8>, data: &[u8]) -> Result<(), ExecError> {
    if kept.len() + data.len() > OUTPUT_PART_BYTES as usize {
        return Err(ExecError::Link("it sent more output than was asked for".into()));
    }
    kept.extend_from_slice(data);
    Ok(())
}
