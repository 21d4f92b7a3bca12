//! Kinds of failures, for programs, and what people at a command line may do about them.

use axum::http::StatusCode as Status;

/// What a program that calls the API may want to tell apart, and people get advice on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Invalid,
    NotFound,
    NoImage,
    NoBaseImage,
    Denied,
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
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::NoImage => "no_image",
            Self::NoBaseImage => "no_base_image",
            Self::Denied => "denied",
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
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::NotFound => "`bouvet ps -a` lists the sandboxes that exist",
            Self::NoImage => {
                "`bouvet images` lists those that are here, `bouvet pull` and `bouvet load` get others"
            }
            Self::NoBaseImage => {
                "`make rootfs BASE=full` makes it; put it beside the file that BOUVET_ROOTFS names"
            }
            Self::Denied => "`bouvet login REGISTRY` keeps a password for it",
            Self::Starting => "try again in a moment",
            Self::Paused => "`bouvet resume` lets it go on",
            Self::Stopped => "`bouvet start` starts it",
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
            Self::Full => "`bouvet rm` removes sandboxes that are not needed, `bouvet rmi` images",
            Self::Unavailable => "try again; if that fails too, the server's log says more",
            Self::Invalid
            | Self::Running
            | Self::NoFile
            | Self::NotThat
            | Self::Conflict
            | Self::NoProgram
            | Self::NotExecutable
            | Self::NotStarted
            | Self::Failed => "",
        }
    }

    pub(super) fn of(status: Status) -> Self {
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
