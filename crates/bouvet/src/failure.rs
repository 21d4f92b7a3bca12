//! What clients read when something fails. This alone maps errors to their words, and to the status of HTTP.
//!
//! The reader is most often a model: each text says the fact, the limit where there is one, and what to call
//! next.

use std::fmt::Display;

use axum::http::StatusCode as Status;
use axum::response::{IntoResponse, Json, Response};
use bouvet_host::{ContextError, CreateError, ExecError, FileError, InvalidConfig, Refusal, chain};

/// Why a call failed, as its caller reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: Status,
    text: String,
}

impl Failure {
    fn new(status: Status, fact: impl Display, hint: impl Display) -> Self {
        Self { status, text: format!("{fact}. {hint}") }
    }

    /// `id` names no sandbox.
    pub(crate) fn unknown_sandbox(id: &str) -> Self {
        let fact = format!("there is no sandbox `{}`: it was destroyed, or never existed", clip(id));
        Self::new(
            Status::NOT_FOUND,
            fact,
            "Call list_sandboxes to see those that exist, or create_sandbox for a new one.",
        )
    }

    /// `id` names no context.
    pub(crate) fn unknown_context(id: &str) -> Self {
        Self::no_context(format!("there is no context `{}` in the sandbox", clip(id)))
    }

    fn no_context(fact: impl Display) -> Self {
        Self::new(
            Status::NOT_FOUND,
            fact,
            "Call list_contexts to see those that exist, or create_context for a new one.",
        )
    }

    /// `language` is none that we run.
    pub(crate) fn unknown_language(language: &str) -> Self {
        let fact = format!("the language `{}` is not known", clip(language));
        Self::new(
            Status::BAD_REQUEST,
            fact,
            "Use python, node (or javascript), bash (or shell, sh) or rust; for others, run_command.",
        )
    }

    /// An argument that is wrong by itself.
    pub(crate) fn argument(fact: impl Display) -> Self {
        Self::new(Status::BAD_REQUEST, fact, "Correct the argument and call again; nothing was changed.")
    }
}

/// As much of a caller's own text as helps it recognise it.
fn clip(text: &str) -> String {
    let clipped: String = text.chars().take(64).collect();
    clipped.escape_debug().to_string()
}

impl rmcp::model::IntoContents for Failure {
    fn into_contents(self) -> Vec<rmcp::model::ContentBlock> {
        self.text.into_contents()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(serde_json::json!({ "error": self.text }))).into_response()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (status, hint) = match refusal {
            Refusal::Starting | Refusal::Stopping => (Status::CONFLICT, "Call again in a moment."),
            Refusal::Running => (Status::CONFLICT, "It need not be started or resumed."),
            Refusal::Paused => (Status::CONFLICT, "Resume it first."),
            Refusal::Stopped(_) => (Status::CONFLICT, "Start it again first, or create another."),
            Refusal::NoMain => (Status::CONFLICT, "Run a program in it, and speak to that."),
            Refusal::Failed(_) => (
                Status::GONE,
                "Its files are lost. Call create_sandbox for a new one, and destroy_sandbox to forget this one.",
            ),
            Refusal::Destroyed => (Status::GONE, "Call create_sandbox for a new one."),
        };
        Self::new(status, refusal, hint)
    }
}

impl From<InvalidConfig> for Failure {
    fn from(mut error: InvalidConfig) -> Self {
        // The core calls a few things by other names than the tools do.
        error.field = match error.field {
            "resources.memory_mb" => "memory_mib",
            "resources.vcpus" => "vcpu_count",
            "timeout" => "timeout_ms",
            field => field,
        };
        let hint = match error.field {
            "code" | "command" => {
                "Write it to a file in parts with write_file (append) and run that file with run_command."
            }
            "content" => "Write it in parts: the first as usual, the rest with append.",
            "stdin" => "Write it to a file with write_file and redirect the program's input from that.",
            _ => return Self::argument(error),
        };
        Self::new(Status::BAD_REQUEST, error, hint)
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Invalid(error) => error.into(),
            CreateError::AtCapacity(_) => Self::new(
                Status::TOO_MANY_REQUESTS,
                error,
                "Destroy one that is not needed (list_sandboxes, destroy_sandbox), or retry after 30 s.",
            ),
            CreateError::NoHardware(_) => Self::new(
                Status::CONFLICT,
                error,
                "Create it without requiring hardware, or on another host.",
            ),
            CreateError::ShuttingDown => {
                Self::new(Status::SERVICE_UNAVAILABLE, error, "Retry after it has restarted.")
            }
            CreateError::Busy(_) => Self::new(
                Status::SERVICE_UNAVAILABLE,
                error,
                "This machine is at capacity: retry after 10 s.",
            ),
            CreateError::NoPool(_) => Self::new(Status::CONFLICT, error, "Create it without a pool."),
            CreateError::NameTaken(_) => {
                Self::new(Status::CONFLICT, error, "Choose another name, or destroy that sandbox first.")
            }
            CreateError::Image(_) => Self::new(
                Status::BAD_GATEWAY,
                chain(&error),
                "Check its name, the network, and that whoever runs the server may read it.",
            ),
            CreateError::NoStore => Self::new(
                Status::CONFLICT,
                error,
                "Create it without `persistent`, or on a host that has such a directory.",
            ),
            CreateError::BringUp(_) | CreateError::Templates(_) | CreateError::Store(_) => Self::new(
                Status::INTERNAL_SERVER_ERROR,
                chain(&error),
                "Retry once; if it fails again, the server's log tells its operator more.",
            ),
        }
    }
}

impl From<ExecError> for Failure {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Refused(refusal) => refusal.into(),
            ExecError::Invalid(error) => error.into(),
            ExecError::TooMany(_) => {
                Self::new(Status::TOO_MANY_REQUESTS, error, "Wait until one of them has ended.")
            }
            ExecError::NotStarted(_) | ExecError::NoProgram(_) | ExecError::NotExecutable(_) => Self::new(
                Status::UNPROCESSABLE_ENTITY,
                error,
                "Check that the directory and the interpreter exist, with list_directory or run_command.",
            ),
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
            ExecError::Deadline(_) | ExecError::Link(_) => Self::new(
                Status::BAD_GATEWAY,
                error,
                "If the next call fails too, destroy the sandbox and create another.",
            ),
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
            ContextError::Deadline | ContextError::Link(_) => Self::new(
                Status::BAD_GATEWAY,
                error,
                "If the next call fails too, destroy the sandbox and create another.",
            ),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Refused(refusal) => refusal.into(),
            FileError::Invalid(error) => error.into(),
            FileError::NotFound(_) => {
                Self::new(Status::NOT_FOUND, error, "Use list_directory to see what is there.")
            }
            FileError::WrongKind(_) => {
                Self::new(Status::BAD_REQUEST, error, "Use list_directory to see what is there.")
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
            FileError::Deadline | FileError::Link(_) => Self::new(
                Status::BAD_GATEWAY,
                error,
                "If the next call fails too, destroy the sandbox and create another.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn statuses_say_whose_fault_it_is() {
        let text = String::new;
        let content = |kind: io::ErrorKind| FileError::Content(kind.into());
        let cases = [
            (FileError::NotFound(text()), 404),
            (FileError::WrongKind(text()), 400),
            (FileError::Failed(text()), 403),
            (FileError::DiskFull(text()), 507),
            (FileError::TooMany(8), 429),
            (content(io::ErrorKind::ConnectionReset), 400),
            (content(io::ErrorKind::TimedOut), 408),
            (FileError::Deadline, 502),
            (FileError::Link(text()), 502),
            (FileError::Refused(Refusal::Starting), 409),
            (FileError::Refused(Refusal::Destroyed), 410),
        ];
        for (error, status) in cases {
            let said = format!("{error:?}");
            assert_eq!(Failure::from(error).into_response().status(), status, "{said}");
        }
    }
}
