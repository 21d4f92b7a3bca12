//! Orders to the owner of a sandbox, and its answers.

use std::time::Duration;

use tokio::sync::oneshot;

use super::state::{Refusal, Request};
use crate::exec::{ExecError, Signal};

/// What a client asks of a sandbox, for its owner to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Pause,
    Resume,
    Stop(StopOrder),
    /// Stops the sandbox because its host ends: its restart policy stays in force.
    Close(Duration),
    /// Sends the main program a signal.
    Signal(Signal),
    Start,
    /// Makes the files of a stopped sandbox readable.
    Read,
    Destroy,
}

/// How a sandbox is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StopOrder {
    /// Signal that asks the main program to end; `None`: that of its description or image.
    pub(crate) signal: Option<Signal>,
    /// Time until the main program is killed; with zero, it is killed at once.
    pub(crate) grace: Duration,
}

impl Order {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
            Self::Stop(_) | Self::Close(_) => Request::Stop,
            Self::Signal(_) => Request::Use,
            Self::Start => Request::Start,
            Self::Read => Request::Read,
            Self::Destroy => Request::Destroy,
        }
    }
}

/// Why an order was not carried out.
///
/// ```no_run
/// use bouvet_host::{ControlError, Refusal};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.pause().await {
///     Ok(()) | Err(ControlError::Refused(Refusal::Paused)) => println!("it stands still"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The sandbox cannot take it in its state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// The same with the error of the main program, for orders that concern it.
#[derive(Debug)]
pub(crate) enum OrderError {
    Control(ControlError),
    Program(ExecError),
}

impl From<Refusal> for OrderError {
    fn from(refusal: Refusal) -> Self {
        Self::Control(refusal.into())
    }
}

impl From<OrderError> for ControlError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Control(error) => error,
            OrderError::Program(ExecError::Refused(refusal)) => Self::Refused(refusal),
            OrderError::Program(error) => Self::Failed(crate::chain(&error)),
        }
    }
}

impl From<OrderError> for ExecError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Control(ControlError::Refused(refusal)) => Self::Refused(refusal),
            OrderError::Control(ControlError::Failed(reason)) => Self::Link(reason),
            OrderError::Program(error) => error,
        }
    }
}

/// Where the answer to an order goes. The caller may have gone.
pub(crate) type Answer = oneshot::Sender<Result<(), OrderError>>;
