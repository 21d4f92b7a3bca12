//! Why a port could not be had.

use std::io;

use crate::boxconfig::{InvalidConfig, PortSpec};
use crate::sandbox::state::Refusal;

/// Why a port of the host does not lead into a sandbox.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, CreateError, PortError};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let config = BoxConfig { port_map: vec!["8080:80".into()], ..BoxConfig::default() };
/// match host.create(config).await {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(CreateError::Port(PortError::InUse { port, .. })) => println!("{} is in use", port.host),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// It is not a port.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// The sandbox cannot have any more.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The sandbox has as many as it may.
    #[error("the sandbox has {0} ports, which is the limit")]
    TooMany(usize),
    /// Something else listens there.
    #[error("could not have the port `{port}`: {} is in use{}", .port.host, by(.holder.as_deref()))]
    InUse {
        /// What was asked for.
        port: PortSpec,
        /// The sandbox that has it, if one has.
        holder: Option<String>,
    },
    /// The host may not listen there.
    #[error("could not have the port `{port}`: this process may not listen on {}", .port.host)]
    NotPermitted {
        /// What was asked for.
        port: PortSpec,
    },
    /// No interface of the host has that address.
    #[error("could not have the port `{port}`: this machine has no address {}", .port.host.ip())]
    NoAddress {
        /// What was asked for.
        port: PortSpec,
    },
    /// Something else is in the way.
    #[error("could not have the port `{port}`")]
    Listen {
        /// What was asked for.
        port: PortSpec,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No port of the host leads there.
    #[error("no port of the host leads to the port {guest}/{protocol} of the sandbox")]
    NotExposed {
        /// Where to.
        guest: u16,
        /// What it would carry.
        protocol: &'static str,
    },
}

fn by(holder: Option<&str>) -> String {
    holder.map_or(String::new(), |holder| format!(", by the sandbox `{holder}`"))
}

impl PortError {
    /// Of the system's answer to whoever wanted `port`.
    pub(super) fn of(port: PortSpec, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { port, holder: None },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { port },
            io::ErrorKind::AddrNotAvailable => Self::NoAddress { port },
            _ => Self::Listen { port, source },
        }
    }

    /// The same, with who has it.
    pub(crate) fn held(self, holder: impl FnOnce(PortSpec) -> Option<String>) -> Self {
        match self {
            Self::InUse { port, .. } => Self::InUse { port, holder: holder(port) },
            error => error,
        }
    }
}
