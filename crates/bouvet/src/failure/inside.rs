//! Failures of what is done in a sandbox: programs, contexts, files and connections.

use axum::http::StatusCode as Status;
use bouvet_host::{ConnectError, ContextError, ExecError, FileError, chain};

use super::{Failure, Kind};

/// Advice about a sandbox that did not answer.
const OVERLOADED: &str = "It may be overloaded: call it once more, then create another.";

impl From<ExecError> for Failure {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Refused(refusal) => refusal.into(),
            ExecError::Invalid(error) => error.into(),
            ExecError::TooMany(_) => {
                Self::new(Status::TOO_MANY_REQUESTS, error, "Wait until one of them has ended.")
            }
            ExecError::NotStarted(_) | ExecError::NoProgram(_) | ExecError::NotExecutable(_) => {
                let kind = match error {
                    ExecError::NoProgram(_) => Kind::NoProgram,
                    ExecError::NotExecutable(_) => Kind::NotExecutable,
                    _ => Kind::NotStarted,
                };
                let hint = "Check that the directory and the interpreter exist, with list_directory or run_command, which \
                     uses sh where there is no Bash.";
                Self::new(Status::UNPROCESSABLE_ENTITY, error, hint).of_kind(kind)
            }
            ExecError::Ended => Self::new(Status::GONE, error, "Run it again."),
            ExecError::NoContext(_) => Self::no_context(error),
            ExecError::OtherProgram(_) => Self::new(
                Status::BAD_REQUEST,
                error,
                "Pass the language that it was created with (list_contexts), or create another.",
            ),
            ExecError::ContextDied(..) => Self::new(
                Status::GONE,
                error,
                "Its variables are lost. Create another with create_context, and forget it with destroy_context.",
            ),
            ExecError::ContextBusy(_) => Self::new(
                Status::CONFLICT,
                error,
                "Call again when the other call has ended, or with a longer timeout_ms.",
            ),
            ExecError::Deadline(_) | ExecError::Link(_) => Self::new(Status::BAD_GATEWAY, error, OVERLOADED),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(refusal) => refusal.into(),
            ConnectError::NoSidecar => {
                Self::new(Status::CONFLICT, error, "Make the sandbox with one: `sidecar` in its description.")
                    .of_kind(Kind::NoSidecar)
            }
            ConnectError::TooMany(_) => {
                Self::new(Status::TOO_MANY_REQUESTS, error, "Close one of them first.")
            }
            ConnectError::NotListening(_) => Self::new(
                Status::BAD_GATEWAY,
                error,
                "The sidecar may not be ready yet, or listens on another port.",
            )
            .of_kind(Kind::NotListening),
            ConnectError::Deadline(_) | ConnectError::Link(_) => {
                Self::new(Status::BAD_GATEWAY, error, OVERLOADED)
            }
        }
    }
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Self {
        match error {
            ContextError::Refused(refusal) => refusal.into(),
            ContextError::Invalid(error) => error.into(),
            ContextError::Unknown(_) => Self::no_context(error),
            ContextError::TooMany(_) => Self::new(
                Status::TOO_MANY_REQUESTS,
                error,
                "Destroy one that is not needed (list_contexts, destroy_context).",
            ),
            ContextError::NotStarted(_) => Self::new(
                Status::UNPROCESSABLE_ENTITY,
                error,
                "Check that the directory and the interpreter exist, with list_directory or run_command.",
            ),
            ContextError::Deadline | ContextError::Link(_) => {
                Self::new(Status::BAD_GATEWAY, error, OVERLOADED)
            }
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Refused(refusal) => refusal.into(),
            FileError::Invalid(error) => error.into(),
            FileError::NotFound(_) => {
                // Sandboxes that are there are not what is missing.
                Self::new(Status::NOT_FOUND, error, "Use list_directory to see what is there.")
                    .of_kind(Kind::NoFile)
            }
            FileError::WrongKind(_) => {
                Self::new(Status::BAD_REQUEST, error, "Use list_directory to see what is there.")
                    .of_kind(Kind::NotThat)
            }
            FileError::DiskFull(_) => Self::new(
                Status::INSUFFICIENT_STORAGE,
                error,
                "Remove files that are not needed with run_command, then retry.",
            ),
            FileError::Failed(_) => Self::new(Status::FORBIDDEN, error, "Look at it with run_command."),
            FileError::TooMany(_) => {
                Self::new(Status::TOO_MANY_REQUESTS, error, "Wait until one of them has ended.")
            }
            FileError::Content(ref cause) => {
                let timed_out = cause.kind() == std::io::ErrorKind::TimedOut;
                let status = if timed_out { Status::REQUEST_TIMEOUT } else { Status::BAD_REQUEST };
                Self::new(status, chain(&error), "Send it again; unless it was appended, nothing was kept.")
            }
            FileError::Deadline | FileError::Link(_) => Self::new(Status::BAD_GATEWAY, error, OVERLOADED),
        }
    }
}
