//! The core of Bouvet, without a face: it knows no MCP, HTTP, command line or environment.
//!
//! [`Host::start`] prepares one directory and one engine; [`Host::create`] makes a [`Sandbox`] from a
//! [`BoxConfig`]. Each sandbox is owned by one task, which does every transition of its state; everybody
//! else holds a handle that asks that task and watches.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use bouvet_host::{BoxConfig, ExecRequest, Host, HostOptions};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let host = Host::start(HostOptions::new("/var/lib/agents", "vmlinux", "debian-devbox.ext4")).await?;
//!     let sandbox = host.create(BoxConfig { image: "nginx:alpine".into(), ..BoxConfig::default() }).await?;
//!     let result = sandbox.exec(ExecRequest::arguments(["nginx", "-t"])?).await?.finish().await?;
//!     println!("exit code {}: {}", result.exit.exit_code, result.stderr.text());
//!     sandbox.stop(Duration::from_secs(10)).await?;
//!     sandbox.destroy().await;
//!     host.shut_down().await;
//!     Ok(())
//! }
//! ```
//!
//! Programs to run are in `examples/`; what a sandbox can be asked to be is in `docs/BOXES.md`.

pub mod attest;
mod blueprint;
mod boxconfig;
mod boxes;
mod cgroup;
mod confine;
mod context;
mod descriptors;
mod disk;
mod engine;
mod event;
mod exec;
mod files;
mod handover;
mod host;
pub mod images;
mod instance;
mod journal;
mod kvm;
mod link;
mod lock;
mod network;
mod pool;
mod ports;
mod resting;
mod results;
mod sandbox;
mod seccomp;
mod sparse;
mod template;
mod tunnel;
mod undo;
mod volume;

pub use bouvet_image::cache::{CacheError, Pruned as PrunedImages};
pub use bouvet_image::images::OpenError;
pub use bouvet_image::load::{LoadError, LoadedImage};
pub use bouvet_image::login::LoginError;
pub use bouvet_image::pull::{PullCause, PullError};
pub use bouvet_image::reference::ReferenceError;
pub use bouvet_image::registry::RegistryError;
pub use bouvet_image::save::SaveError;
pub use bouvet_image::{
    Digest, Image, ImageConfig, ImageInfo, ImagesOptions, Limits as ImageLimits, PullEvent, Reference,
    RegistryOptions,
};
/// What a sandbox may reach, and what was refused it.
pub use bouvet_net::{
    Counts as NetworkCounts, Flow, Name, Policy, Protocol, Refusal as NetworkRefusal, Refused, Rule,
    RuleError,
};
pub use boxconfig::size::parse as parse_size;
pub use boxconfig::{
    BoxConfig, CacheConfig, InvalidConfig, LogLevel, MAX_LIFETIME_SECS, NetworkLimits, NetworkMode,
    PoolConfig, PortProtocol, PortSpec, ResourceConfig, ResourceLimits, ScalingPolicy, SecretConfig,
    SecretValue, SevSnpGeneration, SidecarConfig, TeeConfig,
};
pub use boxes::KeepError;
pub use cgroup::{CgroupChoice, CgroupError};
pub use confine::ToolError;
pub use context::{Context, ContextError, ContextId, ContextRequest, ContextState, Death};
pub use disk::{DiskError, check_mke2fs};
pub use engine::firecracker::FirecrackerOptions;
pub use engine::qemu::tsc::measure_khz as measure_tsc_khz;
pub use engine::{Acceleration, EngineChoice, EngineError, EngineFacts, Layer};
pub use event::{EventWatch, Happening, HostEvent, Watched};
pub use exec::{
    Captured, Exec, ExecControl, ExecError, ExecEvent, ExecExit, ExecRequest, ExecResult, ExecStream,
    ParseSignalError, Program, Signal, StreamEvent, WindowSize,
};
pub use files::archive::{FileStat, PackPart, PackReader, SkippedFile, Unpacked};
pub use files::transfer::FileReader;
pub use files::{FileContent, FileError, ListEntry, Listing, MAX_CONTENT_BYTES};
pub use host::{
    BASE_IMAGE, CreateError, FULL_BASE_IMAGE, FindError, Host, HostFacts, HostOptions, ImageError,
    ImageOptions, NetworkInfo, StartError, is_base_image,
};
pub use instance::ClaimError;
pub use journal::{LogOptions, LogReader, LogRecord, LogStream};
pub use kvm::Kvm;
pub use link::LinkError;
pub use network::{NamedNetworkError, NetworkControl, NetworkError, PolicyError};
pub use pool::PoolOptions;
pub use ports::{MappedPort, PortError};
pub use results::{Form, ResultLimits, RichOutput};
pub use sandbox::create::BringUpError;
pub use sandbox::order::ControlError;
pub use sandbox::state::{Refusal, State, Stop};
pub use sandbox::{Attachment, Sandbox, SandboxId, SandboxInfo, Stats};
pub use template::StoreError;
pub use tunnel::{ConnectError, Tunnel};
pub use volume::{ConfineError, VolumeError, VolumeSpec, Volumes};

/// An error and its causes in one line: `could not do this: because of that`.
///
/// ```
/// use bouvet_host::{StartError, chain};
///
/// let full = std::io::Error::other("the disk is full");
/// let error = StartError::Directory("/var/lib/agents".into(), full);
/// assert_eq!(chain(&error), "could not make `/var/lib/agents`: the disk is full");
/// ```
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
