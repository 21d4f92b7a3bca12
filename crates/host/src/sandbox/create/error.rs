//! Why a VM did not become a sandbox.

use crate::disk::DiskError;
use crate::engine::EngineError;
use crate::exec::ExecError;
use crate::link::LinkError;
use crate::volume::VolumeError;

/// Why a VM did not become a sandbox.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, BringUpError, CreateError};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.create(BoxConfig { cmd: vec!["serve".into()], ..BoxConfig::default() }).await {
///     Ok(sandbox) => println!("{}", sandbox.id()),
///     Err(CreateError::BringUp(BringUpError::Main(why))) => println!("there is no such program: {why}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// Its directory could not be made.
    #[error("could not make the sandbox's directory")]
    Directory(#[source] std::io::Error),
    /// Its disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its VM could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its host shuts down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Its VM ended before it was up.
    #[error("the VM did not come up: {0}")]
    Ended(String),
    /// Its guest did not come up.
    #[error("could not link up with the guest")]
    Link(#[from] LinkError),
    /// Its guest could not run the first programs.
    #[error("the guest could not be warmed: {0}")]
    Warm(String),
    /// Its guest would not become this sandbox's own.
    #[error("the guest could not be made this sandbox's own: {0}")]
    Personalise(String),
    /// Its guest could not be made what its description says.
    #[error("the sandbox could not be furnished: {0}")]
    Furnish(String),
    /// It could not be given its network.
    #[error("could not give it its network: {0}")]
    Network(String),
    /// One of its volumes could not be mounted.
    #[error("could not mount its volumes")]
    Volume(#[source] VolumeError),
    /// Its sidecar could not be started.
    #[error("the sidecar could not be started")]
    Sidecar(#[source] ExecError),
    /// Its main program could not be started.
    #[error("the main program could not be started")]
    Main(#[source] ExecError),
}

impl BringUpError {
    /// Whether another VM would fail in the same way.
    pub(crate) fn is_of_the_description(&self) -> bool {
        let furnishing = matches!(self, Self::Furnish(_) | Self::Volume(_) | Self::Network(_));
        furnishing || matches!(self, Self::Sidecar(_) | Self::Main(_))
    }
}
