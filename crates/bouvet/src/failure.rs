//! What clients read when something fails. This alone maps errors to their words, and to the status of HTTP.
//!
//! The reader is most often a model: each text says the fact, the limit where there is one, and what to call
//! next. For people at a command line the same facts come with other advice: see [`Answer`].

use std::fmt::Display;

use axum::http::StatusCode as Status;
use axum::response::{IntoResponse, Json, Response};
use bouvet_host::attest::AttestError;
use bouvet_host::{
    CacheError, ConnectError, ContextError, ControlError, CreateError, ExecError, FileError, FindError,
    ImageError, InvalidConfig, NamedNetworkError, NetworkError, PolicyError, PortError, Refusal, chain,
};

use crate::api::shape::FailureView;

/// Why a call failed, as its caller reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: Status,
    text: String,
    /// The fact alone, in the words of the library.
    fact: String,
    kind: Kind,
}

/// What a program that calls the API may want to tell apart, and people get advice on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Invalid,
    NotFound,
    NoImage,
    NoFile,
    NotThat,
    Conflict,
    Starting,
    Running,
    Paused,
    Stopped,
    NoMain,
    NoSidecar,
    NoNetwork,
    NoNamedNetwork,
    NetworkInUse,
    NotListening,
    NotMeasured,
    Gone,
    NameTaken,
    PortInUse,
    NotExposed,
    Full,
    NoProgram,
    NotExecutable,
    NotStarted,
    Unavailable,
    Failed,
}

impl Kind {
    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::NoImage => "no_image",
            Self::NoFile => "no_file",
            Self::NotThat => "wrong_kind",
            Self::Conflict => "conflict",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::NoMain => "no_main",
            Self::NoSidecar => "no_sidecar",
            Self::NoNetwork => "no_network",
            Self::NoNamedNetwork => "no_named_network",
            Self::NetworkInUse => "network_in_use",
            Self::NotListening => "not_listening",
            Self::NotMeasured => "not_measured",
            Self::Gone => "gone",
            Self::NameTaken => "name_taken",
            Self::PortInUse => "port_in_use",
            Self::NotExposed => "not_exposed",
            Self::Full => "full",
            Self::NoProgram => "no_program",
            Self::NotExecutable => "not_executable",
            Self::NotStarted => "not_started",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }

    /// What somebody at a command line may do; empty where the fact says all.
    fn advice(self) -> &'static str {
        match self {
            Self::NotFound => "`bouvet ps -a` lists the sandboxes that exist",
            Self::NoImage => "`bouvet images` lists those that are here, `bouvet pull` gets others",
            Self::Starting => "try again in a moment",
            Self::Paused => "`bouvet resume` lets it go on",
            Self::Stopped => "`bouvet start` starts it again",
            Self::Running => "stop it first, or remove it with `bouvet rm --force`",
            Self::NoMain => "`bouvet exec` runs a program in it",
            Self::NoSidecar => "`bouvet run --sidecar` makes a sandbox with one",
            Self::NoNetwork => "`bouvet run --network` makes a sandbox with one",
            Self::NoNamedNetwork => {
                "`bouvet network create` makes one, `bouvet network ls` lists those that are here"
            }
            Self::NetworkInUse => "remove its sandboxes first, with `bouvet rm --force`",
            Self::NotListening => "it may not be ready yet; `bouvet logs --sidecar` shows what it says",
            Self::NotMeasured => "`bouvet run --tee` makes a sandbox whose launch is measured",
            Self::Gone => "`bouvet rm` removes what is known of it",
            Self::NameTaken => "remove the other with `bouvet rm`, or choose another name",
            Self::PortInUse => {
                "choose another port, 0 for any that is free, or remove what has it (`bouvet ps -a` shows ports)"
            }
            Self::NotExposed => "`bouvet run -p` makes a sandbox with one",
            Self::Full => "`bouvet rm` removes what is not needed",
            Self::Unavailable => "try again; if that fails too, the server's log says more",
            Self::Invalid
            | Self::NoFile
            | Self::NotThat
            | Self::Conflict
            | Self::NoProgram
            | Self::NotExecutable
            | Self::NotStarted
            | Self::Failed => "",
        }
    }

    fn of(status: Status) -> Self {
        match status {
            Status::BAD_REQUEST => Self::Invalid,
            Status::NOT_FOUND => Self::NotFound,
            Status::CONFLICT => Self::Conflict,
            Status::GONE => Self::Gone,
            Status::TOO_MANY_REQUESTS | Status::INSUFFICIENT_STORAGE => Self::Full,
            Status::SERVICE_UNAVAILABLE | Status::BAD_GATEWAY => Self::Unavailable,
            _ => Self::Failed,
        }
    }
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
        let fact = fact.to_string();
        Self { status, text: format!("{fact}. {hint}"), fact, kind: Kind::of(status) }
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
        let hint = "Create one with `network`: it is given to sandboxes when they are made.";
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
        let (status, kind, hint) = match refusal {
            Refusal::Starting | Refusal::Stopping => {
                (Status::CONFLICT, Kind::Starting, "Call again in a moment.")
            }
            Refusal::Running => (Status::CONFLICT, Kind::Running, "It need not be started or resumed."),
            Refusal::Paused => (Status::CONFLICT, Kind::Paused, "Resume it first."),
            Refusal::Stopped(_) => {
                (Status::CONFLICT, Kind::Stopped, "Start it again first, or create another.")
            }
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

impl From<FindError> for Failure {
    fn from(error: FindError) -> Self {
        match error {
            FindError::None(_) => {
                Self::new(Status::NOT_FOUND, error, "Call list_sandboxes to see those that exist.")
            }
            FindError::Ambiguous(_) => Self::new(Status::BAD_REQUEST, error, "Use more of the id."),
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(refusal) => refusal.into(),
            ControlError::Failed(_) => Self::new(
                Status::INTERNAL_SERVER_ERROR,
                error,
                "Retry once; if it fails again, the server's log tells its operator more.",
            ),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let (status, kind) = match &error {
            ImageError::Reference(_) => (Status::BAD_REQUEST, Kind::Invalid),
            ImageError::NoCache | ImageError::Gone { .. } => (Status::CONFLICT, Kind::Conflict),
            ImageError::Cache(CacheError::Unknown(_)) => (Status::NOT_FOUND, Kind::NoImage),
            ImageError::Cache(CacheError::InUse(_)) => (Status::CONFLICT, Kind::Conflict),
            ImageError::Cache(CacheError::Ambiguous(_)) => (Status::BAD_REQUEST, Kind::Invalid),
            ImageError::Cache(_) | ImageError::Open(_) => (Status::INTERNAL_SERVER_ERROR, Kind::Failed),
            ImageError::Pull(_) => (Status::BAD_GATEWAY, Kind::Failed),
        };
        let hint = "Check its name, the network, and that whoever runs the server may read it.";
        Self::new(status, chain(&error), hint).of_kind(kind)
    }
}

/// The program that could not be started, if that is what `error` comes down to.
fn program_error(error: &CreateError) -> Option<(&ExecError, Kind)> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        match error.downcast_ref::<ExecError>() {
            Some(exec @ ExecError::NoProgram(_)) => return Some((exec, Kind::NoProgram)),
            Some(exec @ ExecError::NotExecutable(_)) => return Some((exec, Kind::NotExecutable)),
            Some(exec @ ExecError::NotStarted(_)) => return Some((exec, Kind::NotStarted)),
            _ => cause = error.source(),
        }
    }
    None
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        if let Some((exec, kind)) = program_error(&error) {
            let hint = "Check the program's name, and that it is in the image.";
            return Self::new(Status::UNPROCESSABLE_ENTITY, exec, hint).of_kind(kind);
        }
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
            CreateError::NoTee { .. } => {
                Self::new(Status::CONFLICT, error, "Create it without `tee`, or on another host.")
            }
            CreateError::Network(NetworkError::Named(error)) => error.into(),
            CreateError::Network(_) => Self::new(
                Status::CONFLICT,
                chain(&error),
                "Create it without `secrets`, or on a host that has certificates of authorities.",
            ),
            CreateError::NoPool(_) => Self::new(Status::CONFLICT, error, "Create it without a pool."),
            CreateError::NameTaken(_) => {
                Self::new(Status::CONFLICT, error, "Choose another name, or destroy that sandbox first.")
                    .of_kind(Kind::NameTaken)
            }
            CreateError::Port(error) => error.into(),
            CreateError::Image(error) => error.into(),
            CreateError::NoStore => Self::new(
                Status::CONFLICT,
                error,
                "Create it without `persistent`, or on a host that has such a directory.",
            ),
            CreateError::BringUp(_)
            | CreateError::Measure(_)
            | CreateError::Templates(_)
            | CreateError::Store(_) => Self::new(
                Status::INTERNAL_SERVER_ERROR,
                chain(&error),
                "Retry once; if it fails again, the server's log tells its operator more.",
            ),
        }
    }
}

impl From<NamedNetworkError> for Failure {
    fn from(error: NamedNetworkError) -> Self {
        let text = chain(&error);
        match error {
            NamedNetworkError::Invalid(error) => error.into(),
            NamedNetworkError::None(_) => {
                Self::new(Status::NOT_FOUND, text, "Make it first, or choose another.")
                    .of_kind(Kind::NoNamedNetwork)
            }
            NamedNetworkError::Taken(_) => {
                Self::new(Status::CONFLICT, text, "Use it, or choose another name.").of_kind(Kind::Conflict)
            }
            NamedNetworkError::InUse { .. } => {
                Self::new(Status::CONFLICT, text, "Destroy its sandboxes first.").of_kind(Kind::NetworkInUse)
            }
            NamedNetworkError::TooMany | NamedNetworkError::Crowded(_) => Self::new(
                Status::TOO_MANY_REQUESTS,
                text,
                "Remove what is not needed, or use another network.",
            )
            .of_kind(Kind::Full),
            NamedNetworkError::NoStore => Self::new(
                Status::CONFLICT,
                text,
                "Create it without a named network, or on a host that has such a directory.",
            ),
            NamedNetworkError::Store { .. } => Self::new(
                Status::INTERNAL_SERVER_ERROR,
                text,
                "Retry once; if it fails again, the server's log tells its operator more.",
            ),
        }
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Invalid(error) => error.into(),
            PolicyError::Keep(_) => Self::new(
                Status::INTERNAL_SERVER_ERROR,
                chain(&error),
                "The policy is as it was; the server's log tells its operator more.",
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
            ExecError::NotStarted(_) | ExecError::NoProgram(_) | ExecError::NotExecutable(_) => {
                let kind = match error {
                    ExecError::NoProgram(_) => Kind::NoProgram,
                    ExecError::NotExecutable(_) => Kind::NotExecutable,
                    _ => Kind::NotStarted,
                };
                let hint =
                    "Check that the directory and the interpreter exist, with list_directory or run_command.";
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
            ExecError::Deadline(_) | ExecError::Link(_) => Self::new(
                Status::BAD_GATEWAY,
                error,
                "If the next call fails too, destroy the sandbox and create another.",
            ),
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
            ConnectError::Deadline(_) | ConnectError::Link(_) => Self::new(
                Status::BAD_GATEWAY,
                error,
                "If the next call fails too, destroy the sandbox and create another.",
            ),
        }
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        let another = "Choose another port, or port 0 of the host for any that is free.";
        match error {
            PortError::Invalid(error) => error.into(),
            PortError::Refused(refusal) => refusal.into(),
            PortError::TooMany(_) => {
                Self::new(Status::TOO_MANY_REQUESTS, error, "Use one that it has already.")
            }
            PortError::InUse { .. } => Self::new(Status::CONFLICT, error, another).of_kind(Kind::PortInUse),
            PortError::NotPermitted { .. } | PortError::NoAddress { .. } => {
                Self::new(Status::CONFLICT, error, another)
            }
            PortError::Listen { .. } => Self::new(
                Status::INTERNAL_SERVER_ERROR,
                chain(&error),
                "Retry once; if it fails again, the server's log tells its operator more.",
            ),
            PortError::NotExposed { .. } => {
                Self::new(Status::NOT_FOUND, error, "Expose it first.").of_kind(Kind::NotExposed)
            }
        }
    }
}

impl From<AttestError> for Failure {
    fn from(error: AttestError) -> Self {
        match error {
            AttestError::Refused(refusal) => refusal.into(),
            AttestError::NotMeasured => {
                Self::new(Status::CONFLICT, error, "Make the sandbox with `tee` in its description.")
                    .of_kind(Kind::NotMeasured)
            }
            AttestError::TooMuchData(_) => Self::argument(error),
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
