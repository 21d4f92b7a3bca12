//! Failures to make a sandbox, to find one, and to change what it is.

use axum::http::StatusCode as Status;
use bouvet_host::attest::AttestError;
use bouvet_host::{
    CacheError, ControlError, CreateError, ExecError, FindError, ImageError, LoadError, LoginError,
    NamedNetworkError, NetworkError, PolicyError, PortError, PullCause, RegistryError, SaveError, chain,
};

use super::{Failure, Kind};

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
            ImageError::Base { .. } => (Status::CONFLICT, Kind::NoBaseImage),
            ImageError::Cache(CacheError::Unknown(_)) => (Status::NOT_FOUND, Kind::NoImage),
            ImageError::Cache(CacheError::InUse(_) | CacheError::Damaged { .. }) => {
                (Status::CONFLICT, Kind::Conflict)
            }
            ImageError::Cache(CacheError::Ambiguous(_) | CacheError::NoTag(_)) => {
                (Status::BAD_REQUEST, Kind::Invalid)
            }
            ImageError::Save(SaveError::Cache(CacheError::Unknown(_))) => (Status::NOT_FOUND, Kind::NoImage),
            ImageError::Cache(CacheError::Full { .. })
            | ImageError::Load(LoadError::Image {
                source: PullCause::Cache(CacheError::Full { .. }), ..
            }) => (Status::INSUFFICIENT_STORAGE, Kind::Full),
            ImageError::Cache(_) | ImageError::Open(_) | ImageError::Save(_) => {
                (Status::INTERNAL_SERVER_ERROR, Kind::Failed)
            }
            ImageError::InUse(_) => (Status::INTERNAL_SERVER_ERROR, Kind::Failed),
            ImageError::Pull(error)
                if matches!(error.cause, PullCause::Registry(RegistryError::Denied { .. })) =>
            {
                (Status::FORBIDDEN, Kind::Denied)
            }
            ImageError::Pull(_) => (Status::BAD_GATEWAY, Kind::Failed),
            ImageError::Load(LoadError::NoCache) => (Status::CONFLICT, Kind::Conflict),
            ImageError::Load(_) => (Status::BAD_REQUEST, Kind::Failed),
            ImageError::Login(LoginError::Name(_) | LoginError::User) => (Status::BAD_REQUEST, Kind::Invalid),
            ImageError::Login(LoginError::Refused(_)) => (Status::FORBIDDEN, Kind::Failed),
            ImageError::Login(LoginError::Registry(_)) => (Status::BAD_GATEWAY, Kind::Failed),
            ImageError::Login(_) => (Status::INTERNAL_SERVER_ERROR, Kind::Failed),
        };
        let hint = match &error {
            ImageError::Base { .. } => {
                "The server's operator makes it with `make rootfs BASE=full` and puts it beside BOUVET_ROOTFS."
            }
            ImageError::InUse(_) => {
                "The server's operator restores this sandbox's box.json from a backup, or moves its directory away."
            }
            ImageError::Cache(CacheError::Damaged { .. }) => {
                "Remove the sandboxes that use it, then pull or load the image again."
            }
            ImageError::Cache(CacheError::Full { .. })
            | ImageError::Load(LoadError::Image {
                source: PullCause::Cache(CacheError::Full { .. }), ..
            }) => "Remove loaded or tagged images first.",
            _ => {
                "Check the image's name, the server's network, and that the server's user may read the image."
            }
        };
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
            CreateError::Destroyed => Self::new(Status::CONFLICT, error, "Create another one."),
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
