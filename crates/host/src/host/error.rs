//! Why a host could not start, and why it did not make or find a sandbox.

use std::io;
use std::path::PathBuf;

use super::ImageError;
use crate::attest::MeasureError;
use crate::boxconfig::InvalidConfig;
use crate::boxes::KeepError;
use crate::cgroup::CgroupError;
use crate::engine::EngineError;
use crate::instance::ClaimError;
use crate::network::NetworkError;
use crate::ports::PortError;
use crate::sandbox::create::BringUpError;
use crate::template::StoreError;
use crate::volume::VolumeError;

/// Why a host could not start.
///
/// ```no_run
/// use bouvet_host::{EngineError, Host, HostOptions, StartError};
///
/// # async fn example(options: HostOptions) {
/// match Host::start(options).await {
///     Ok(host) => println!("on {}", host.engine()),
///     Err(StartError::Engine(EngineError::Missing { what, path, .. })) => {
///         eprintln!("there is no {what} at {}", path.display());
///     }
///     Err(error) => eprintln!("{}", bouvet_host::chain(&error)),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no place for it.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Something in its directory could not be made.
    #[error("could not make `{0}`")]
    Directory(PathBuf, #[source] io::Error),
    /// VMs cannot be bounded.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// VMs cannot be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Templates cannot be kept.
    #[error(transparent)]
    Templates(#[from] StoreError),
    /// Persistent sandboxes cannot be kept, or read.
    #[error(transparent)]
    Boxes(#[from] KeepError),
    /// A thread could not be started.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
}

/// Why a sandbox could not be made.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, CreateError};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.create(BoxConfig { name: "db".into(), ..BoxConfig::default() }).await {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(CreateError::NameTaken(name)) => host.find(&name)?.start().await?,
///     Err(CreateError::AtCapacity(limit)) => println!("one of the {limit} must go first"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It asks for what cannot be had anywhere.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// It demands hardware virtualization.
    #[error("hardware virtualization was required, and this host has none: it runs on {0}")]
    NoHardware(&'static str),
    /// There are as many as may be.
    #[error("there are {0} sandboxes, which is the limit")]
    AtCapacity(u32),
    /// It asks for a pool that cannot be had.
    #[error("`pool` is enabled, and cannot be: {0}")]
    NoPool(&'static str),
    /// It asks for confidential computing, which this host does not have.
    #[error(
        "`tee` asks for {technology}, which this host does not have: {why}; with `simulate` it is simulated"
    )]
    NoTee {
        /// Whose.
        technology: &'static str,
        /// What is missing.
        why: String,
    },
    /// What it begins with could not be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// It could not have its network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Another has its name.
    #[error("there is a sandbox called `{0}` already")]
    NameTaken(String),
    /// It is to be kept, and this host keeps none.
    #[error("this host has no directory for sandboxes that are persistent")]
    NoStore,
    /// A port of its could not be had.
    #[error(transparent)]
    Port(#[from] PortError),
    /// An image of it could not be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What is kept of it could not be written.
    #[error(transparent)]
    Store(#[from] KeepError),
    /// More are asked for than this machine keeps up with.
    #[error("{0} sandboxes wait to be made, which is the limit")]
    Busy(usize),
    /// It was destroyed, or its caller went away.
    #[error("the sandbox was destroyed while it was made")]
    Destroyed,
    /// The host is ending.
    #[error("the host is shutting down")]
    ShuttingDown,
    /// It did not come up.
    #[error(transparent)]
    BringUp(BringUpError),
    /// Its template could not be kept or read.
    #[error(transparent)]
    Templates(#[from] StoreError),
}

impl CreateError {
    /// The error for the log: without words of the description, in which a client may have written code, a command or a
    /// variable. The caller reads them in the error itself.
    pub(crate) fn logged(&self) -> String {
        match self {
            Self::Invalid(error) => format!("`{}` is not as it must be", error.field),
            Self::BringUp(BringUpError::Personalise(_) | BringUpError::Furnish(_)) => {
                "the guest could not be made what the description says".into()
            }
            Self::BringUp(error @ (BringUpError::Main(_) | BringUpError::Sidecar(_))) => error.to_string(),
            error => crate::chain(error),
        }
    }
}

impl From<BringUpError> for CreateError {
    fn from(error: BringUpError) -> Self {
        match error {
            BringUpError::ShuttingDown => Self::ShuttingDown,
            BringUpError::Volume(VolumeError::Invalid(error)) => Self::Invalid(error),
            error => Self::BringUp(error),
        }
    }
}

/// Why a text names no sandbox.
///
/// ```no_run
/// use bouvet_host::FindError;
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.find("67e5") {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(FindError::Ambiguous(text)) => println!("there are several that begin with {text}"),
///     Err(error @ FindError::None(_)) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("there is no sandbox `{0}`")]
    None(String),
    /// There are several.
    #[error("`{0}` is the beginning of several sandboxes' ids")]
    Ambiguous(String),
}
