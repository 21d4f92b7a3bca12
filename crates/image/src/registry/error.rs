//! How a registry can fail us.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::names::NoAddress;
use super::{MAX_ATTEMPTS, MAX_SILENT_ATTEMPTS};
use crate::credentials::CredentialsError;
use crate::digest::Digest;

/// Why a registry did not give what was asked for.
///
/// ```no_run
/// use bouvet_image::pull::PullCause;
/// use bouvet_image::registry::RegistryError;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// if let Err(error) = images.pull(&"ghcr.io/org/app:1".parse()?, |_| ()).await
///     && let PullCause::Registry(RegistryError::Denied { registry, .. }) = error.cause
/// {
///     println!("log in to {registry} first");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A certificate cannot be used.
    #[error("could not use the certificates in `{path}`")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The client of HTTP could not be made.
    #[error("could not prepare for speaking with registries")]
    Client(#[source] reqwest::Error),
    /// Credentials could not be had.
    #[error("could not find the credentials for the registry `{registry}`")]
    Credentials {
        /// The registry.
        registry: String,
        /// The cause.
        #[source]
        source: CredentialsError,
    },
    /// There is no connection, or it broke too often.
    #[error("could not speak with the registry `{registry}`")]
    Connection {
        /// The registry.
        registry: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// It accepts connections, or seems to, and sends nothing.
    #[error("the registry `{registry}` does not answer")]
    Silent {
        /// The registry.
        registry: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// The name system has no address for the registry's name.
    #[error("no such name: {0} (DNS). Is this machine connected?")]
    NoName(String),
    /// It takes too long.
    #[error("the registry `{registry}` took more than {deadline:?}")]
    Deadline {
        /// The registry.
        registry: String,
        /// The limit.
        deadline: Duration,
    },
    /// Registries say this of what does not exist, too.
    #[error("the registry `{registry}` does not let us read `{what}`, or does not have it: {message}")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        message: String,
    },
    /// It is not there.
    #[error("the registry `{registry}` does not have `{what}`")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Another answer than the specification has for us.
    #[error("the registry `{registry}` answered {status}: {message}")]
    Status {
        /// The registry.
        registry: String,
        /// The status of HTTP.
        status: u16,
        /// Its words.
        message: String,
        /// The wait that it asks for, if that may help.
        retry_after: Option<Duration>,
    },
    /// A document that no image needs.
    #[error("the registry `{registry}` answered with more than the limit of {max_bytes} bytes")]
    TooLarge {
        /// The registry.
        registry: String,
        /// The limit.
        max_bytes: u64,
    },
    /// It asks for credentials in a way that is not known, or that would show them to others.
    #[error("the registry `{registry}` asks for credentials in a way that is not supported: {reason}")]
    Challenge {
        /// The registry.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// What came is not what was asked for.
    #[error("the registry `{registry}` sent `{found}` for `{expected}`")]
    Digest {
        /// The registry.
        registry: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: String,
    },
    /// What came cannot be written.
    #[error("could not store what the registry `{registry}` sent")]
    Store {
        /// The registry.
        registry: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl RegistryError {
    /// A connection to `registry` failed.
    pub(super) fn connection(registry: &str, error: reqwest::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(found) = cause {
            if let Some(NoAddress(host)) = found.downcast_ref() {
                // The default registry answers under another name than people know.
                let is_default = host == crate::reference::DEFAULT_REGISTRY_HOST;
                return Self::NoName(if is_default { registry.to_owned() } else { host.clone() });
            }
            cause = found.source();
        }
        // The address may be one that was signed for us alone.
        let (registry, source) = (registry.to_owned(), error.without_url());
        match source.is_timeout() {
            true => Self::Silent { registry, source },
            false => Self::Connection { registry, source },
        }
    }

    /// Attempts one after the other that may fail so.
    pub(super) fn max_attempts(&self) -> u32 {
        if matches!(self, Self::Silent { .. }) { MAX_SILENT_ATTEMPTS } else { MAX_ATTEMPTS }
    }

    /// Whether another attempt may succeed, and how long to wait for that at least.
    pub(super) fn transient(&self) -> Option<Duration> {
        match self {
            Self::Connection { source, .. } => {
                (!source.is_builder() && !source.is_redirect()).then_some(Duration::ZERO)
            }
            // A resolver may have been busy.
            Self::NoName(_) | Self::Silent { .. } => Some(Duration::ZERO),
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
