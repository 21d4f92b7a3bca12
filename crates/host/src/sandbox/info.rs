//! What a sandbox is to those who ask: its id, where it is in its life, what it uses, and its main program.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::state::State;
use crate::boxconfig::BoxConfig;
use crate::exec::ExecControl;
use crate::journal::LogReader;
use crate::ports::MappedPort;

/// Names one sandbox. Random, so that nobody finds another's by guessing.
///
/// ```
/// use bouvet_host::SandboxId;
///
/// let id: SandboxId = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap();
/// assert_eq!(id.to_string(), "67e55044-10b1-426f-9247-bb680e5fe0c8");
/// assert!("67e55044".parse::<SandboxId>().is_err(), "the beginning of one is for `Host::find`");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(Uuid);

impl SandboxId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The first eight digits: enough to tell sandboxes of one host apart for a person.
    pub(crate) fn short(self) -> String {
        self.0.simple().to_string()[..8].to_owned()
    }

    /// The machine-id(5) of its guest. Not the id itself, by which callers name the sandbox.
    pub(crate) fn machine_id(self) -> String {
        let digest = Sha256::digest(self.0.as_bytes());
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SandboxId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text.trim()).map(Self)
    }
}

/// What is known of a sandbox.
///
/// ```no_run
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// for info in host.list() {
///     println!("{} {} of {:?}", info.id, info.state.name(), info.config.image);
///     if let Some(expires_at) = info.expires_at {
///         println!("until {expires_at:?}");
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SandboxInfo {
    /// Its name.
    pub id: SandboxId,
    /// Where it is in its life.
    pub state: State,
    /// When it was asked for.
    pub created_at: SystemTime,
    /// When it will be destroyed if nobody does it before.
    pub expires_at: Option<SystemTime>,
    /// What it was asked to be.
    pub config: BoxConfig,
    /// Ports of the host that lead into it.
    pub ports: Vec<MappedPort>,
    /// When it was up last.
    pub started_at: Option<SystemTime>,
    /// When it came down last.
    pub finished_at: Option<SystemTime>,
    /// Starts by its restart policy since somebody started it.
    pub restarts: u32,
    /// Whether it waits to be started again by itself.
    pub is_restarting: bool,
}

/// What the programs of a sandbox use now.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let stats = sandbox.stats().await?;
/// println!("{} of {} MiB", stats.memory_bytes >> 20, stats.memory_limit_bytes >> 20);
/// println!("{} of {} processes", stats.pids, stats.pids_limit);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// CPU time that they have had.
    pub cpu_us: u64,
    /// Memory that they use, and may use.
    pub memory_bytes: u64,
    /// See [`Stats::memory_bytes`].
    pub memory_limit_bytes: u64,
    /// Processes and threads that they have, and may have.
    pub pids: u64,
    /// See [`Stats::pids`].
    pub pids_limit: u64,
}

/// The main program of a sandbox, to those who attach to it: all that it has printed and still prints, and what speaks
/// to it. The program waits for who is attached and does not read.
///
/// ```no_run
/// use bouvet_host::Attachment;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let Attachment { mut output, control } = sandbox.attach()?;
/// control.write("status\n".into()).await?;
/// while let Some(record) = output.next().await {
///     print!("{}", String::from_utf8_lossy(&record.data));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Attachment {
    /// What it prints.
    pub output: LogReader,
    /// What speaks to it.
    pub control: ExecControl,
}
