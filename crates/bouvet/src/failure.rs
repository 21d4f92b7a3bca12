//! What clients read when something fails. This alone maps errors to their words, and to the status of HTTP.
//!
//! The reader is most often a model: each text says the fact, the limit where there is one, and what to call
//! next. For people at a command line the same facts come with other advice: see [`Kind`].

mod inside;
mod kind;
mod sandbox;

use std::fmt::Display;

use axum::http::StatusCode as Status;
use axum::response::{IntoResponse, Json, Response};
use bouvet_host::{InvalidConfig, Refusal};

pub(crate) use self::kind::Kind;
use crate::api::shape::FailureView;
use crate::bounded::bounded;

/// Why a call failed, as its caller reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: Status,
    text: String,
    /// The fact alone, in the words of the library.
    fact: String,
    kind: Kind,
}

/// A failure as the API answers it: the fact, a word for programs, and advice for people.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Failure);

impl Answer {
    /// What is said of it.
    pub(crate) fn view(&self) -> FailureView {
        let Failure { fact, kind, .. } = &self.0;
        FailureView { error: fact.clone(), kind: kind.name().into(), hint: kind.advice().into() }
    }
}

impl<E: Into<Failure>> From<E> for Answer {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.0.status, Json(self.view())).into_response()
    }
}

impl Failure {
    fn new(status: Status, fact: impl Display, hint: impl Display) -> Self {
        let (fact, hint) = (bounded(&fact.to_string()), bounded(&hint.to_string()));
        let end = if fact.ends_with(['.', '?', '!']) { "" } else { "." };
        Self { status, text: format!("{fact}{end} {hint}"), fact, kind: Kind::of(status) }
    }

    /// One that only the API knows.
    pub(crate) fn api(status: Status, kind: Kind, fact: impl Display) -> Self {
        Self { kind, ..Self::new(status, fact, "") }
    }

    fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
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

    /// The sandbox that was named has no network.
    pub(crate) fn no_network() -> Self {
        let hint = "Networks are given to sandboxes when they are created: call create_sandbox with `network`: \"tsi\".";
        Self::new(Status::CONFLICT, "the sandbox has no network", hint).of_kind(Kind::NoNetwork)
    }

    /// What the sandbox that was named reaches is not for clients to change.
    pub(crate) fn unbounded() -> Self {
        let fact =
            "what this sandbox can reach is for its owner to change, who did not make it by create_sandbox";
        let hint = "Call create_sandbox with `allow` for one of your own, or ask the server's operator, who has \
                    `bouvet network policy`.";
        Self::new(Status::FORBIDDEN, fact, hint)
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

    /// Ports are not exposed here.
    pub(crate) fn unexposed() -> Self {
        let hint = "Its operator sets BOUVET_EXPOSE_ADDRESS. Use the server from within the sandbox, with run_command.";
        Self::new(Status::FORBIDDEN, "this server exposes no ports", hint)
    }

    /// `language` is none that we run.
    pub(crate) fn unknown_language(language: &str) -> Self {
        let fact = format!("the language `{}` is not known", clip(language));
        Self::new(
            Status::BAD_REQUEST,
            fact,
            "Use python (python3, py), node (nodejs, javascript, js), bash (shell, sh) or rust (rs); for others, \
             run_command.",
        )
    }

    /// There are no contexts of `language`.
    pub(crate) fn no_context_language(language: &str) -> Self {
        let fact = format!("there are no contexts of the language `{}`", clip(language));
        let hint = "Use python (python3, py) or node (nodejs, javascript, js); for others, execute_code or run_command.";
        Self::new(Status::BAD_REQUEST, fact, hint)
    }

    /// The caller cancelled the call, or went away.
    pub(crate) fn cancelled() -> Self {
        Self::new(
            Status::GONE,
            "this call was cancelled, and what it ran or made was ended",
            "Call again to repeat it.",
        )
    }

    /// An argument that is wrong by itself.
    pub(crate) fn argument(fact: impl Display) -> Self {
        Self::new(Status::BAD_REQUEST, fact, "Correct the argument and call again; nothing was changed.")
    }
}

/// There is no tool that starts a sandbox.
const STARTED_ELSEWHERE: &str =
    "Call create_sandbox for a new one. No tool starts this one: the server's operator has `bouvet start`.";
/// There is no tool that resumes a sandbox.
const RESUMED_ELSEWHERE: &str =
    "Call create_sandbox for a new one. No tool resumes this one: the server's operator has `bouvet resume`.";

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
        let (status, kind, hint) = match refusal {
            Refusal::Starting | Refusal::Stopping | Refusal::Restarting => {
                (Status::CONFLICT, Kind::Starting, "Call again in a moment.")
            }
            Refusal::Created => (Status::CONFLICT, Kind::Stopped, STARTED_ELSEWHERE),
            Refusal::Running => (Status::CONFLICT, Kind::Running, "It need not be started or resumed."),
            Refusal::Paused => (Status::CONFLICT, Kind::Paused, RESUMED_ELSEWHERE),
            Refusal::Stopped(_) => (Status::CONFLICT, Kind::Stopped, STARTED_ELSEWHERE),
            Refusal::NoMain => (Status::CONFLICT, Kind::NoMain, "Run a program in it, and speak to that."),
            Refusal::Failed(_) => (
                Status::GONE,
                Kind::Gone,
                "Its files are lost. Call create_sandbox for a new one, and destroy_sandbox to forget this one.",
            ),
            Refusal::Destroyed => (Status::GONE, Kind::NotFound, "Call create_sandbox for a new one."),
        };
        Self::new(status, refusal, hint).of_kind(kind)
    }
}

impl From<InvalidConfig> for Failure {
    fn from(mut error: InvalidConfig) -> Self {
        let fact = error.to_string();
        // The core calls a few things by other names than the tools do.
        error.field = match error.field {
            "resources.memory_mb" => "memory_mib",
            "resources.vcpus" => "vcpu_count",
            "resources.disk_mb" => "disk_mib",
            "resources.timeout" => "timeout_secs",
            "extra_env" => "env",
            "timeout" => "timeout_ms",
            field => field,
        };
        let hint = match error.field {
            "code" | "command" => {
                "Write it to a file in parts with write_file (append) and run that file with run_command."
            }
            "content" => "Write it in parts: the first as usual, the rest with append.",
            "stdin" => "Write it to a file with write_file and redirect the program's input from that.",
            _ => return Self { fact, ..Self::argument(error) },
        };
        Self { fact, ..Self::new(Status::BAD_REQUEST, error, hint) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bouvet_host::{ExecError, FileError};

    use super::*;

    #[test]
    fn people_read_the_fact_in_the_librarys_words_and_advice_of_their_own() {
        let error = InvalidConfig {
            field: "resources.memory_mb",
            value: "1 MiB".into(),
            allowed: "128 to 1048576 MiB are allowed".into(),
        };
        assert!(Failure::from(error.clone()).text.starts_with("`memory_mib` is 1 MiB"));
        assert!(Answer::from(error).view().error.starts_with("`resources.memory_mb` is 1 MiB"));
        let paused = Answer::from(Refusal::Paused).view();
        assert_eq!((paused.kind.as_str(), paused.hint.as_str()), ("paused", "`bouvet resume` lets it go on"));
        let missing = Answer::from(ExecError::NoProgram("there is no `x`".into())).view();
        assert_eq!((missing.kind.as_str(), missing.error.as_str()), ("no_program", "there is no `x`"));
    }

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
