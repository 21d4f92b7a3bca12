//! What is said over the API, as JSON: the same types on both sides.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use bouvet_host::{
    ImageInfo, MappedPort, NetworkCounts, NetworkMode, Policy, PullEvent, Refused, Rule, SandboxInfo,
    SkippedFile, State, Stop,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::calendar;

/// A sandbox, in lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxView {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Empty for the base image.
    pub(crate) image: String,
    /// What was asked to run instead of the image's own program.
    pub(crate) command: Vec<String>,
    /// Whether it runs no program.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) idle: bool,
    pub(crate) state: String,
    /// Of one that is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) out_of_memory: bool,
    /// Of one that has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
    pub(crate) persistent: bool,
    pub(crate) tty: bool,
    pub(crate) stdin_open: bool,
    pub(crate) ports: Vec<PortView>,
    /// When it was up last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<String>,
    /// When it came down last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) finished_at: Option<String>,
    /// Starts by its restart policy since somebody started it.
    #[serde(default)]
    pub(crate) restarts: u32,
    /// Whether it waits to be started again by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) restarting: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    /// `tsi`, `none`, or the name of a network.
    #[serde(default)]
    pub(crate) network: String,
}

impl From<&SandboxInfo> for SandboxView {
    fn from(info: &SandboxInfo) -> Self {
        let config = &info.config;
        let (stop, reason) = match &info.state {
            State::Stopped(stop) => (Some(*stop), None),
            State::Failed(reason) => (None, Some(reason.clone())),
            _ => (None, None),
        };
        let entrypoint = config.entrypoint_override.iter().flatten();
        Self {
            id: info.id.to_string(),
            name: config.name.clone(),
            image: config.image.clone(),
            command: entrypoint.chain(&config.cmd).cloned().collect(),
            idle: config.idle,
            state: info.state.name().to_owned(),
            exit_code: stop.map(|stop| stop.exit_code),
            out_of_memory: stop.is_some_and(|stop| stop.out_of_memory),
            reason,
            created_at: calendar::seconds(info.created_at),
            expires_at: info.expires_at.map(calendar::seconds),
            persistent: config.persistent,
            tty: config.tty,
            stdin_open: config.stdin_open,
            ports: info.ports.iter().map(PortView::from).collect(),
            started_at: info.started_at.map(calendar::seconds),
            finished_at: info.finished_at.map(calendar::seconds),
            restarts: info.restarts,
            restarting: info.is_restarting,
            labels: config.labels.clone(),
            network: match &config.network {
                NetworkMode::None => "none".into(),
                NetworkMode::Tsi => "tsi".into(),
                NetworkMode::Bridge { network } => network.clone(),
            },
        }
    }
}

impl SandboxView {
    /// Whether it holds a VM, or will at once.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state.as_str(), "starting" | "running" | "paused" | "stopping")
    }

    /// What people see of its id.
    pub(crate) fn short_id(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

/// Facts about the server and its sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InfoView {
    pub(crate) version: String,
    pub(crate) engine: String,
    pub(crate) engine_version: String,
    /// `hardware` or what stands in for it.
    pub(crate) acceleration: String,
    /// Kernel of the server's machine.
    pub(crate) kernel_version: String,
    pub(crate) operating_system: String,
    pub(crate) architecture: String,
    pub(crate) name: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) sandboxes: usize,
    pub(crate) sandboxes_running: usize,
    pub(crate) sandboxes_paused: usize,
    pub(crate) sandboxes_stopped: usize,
    pub(crate) max_sandboxes: u32,
    pub(crate) images: usize,
    pub(crate) pool_ready: usize,
    pub(crate) pool_size: usize,
    /// Where the server works.
    pub(crate) directory: String,
    /// Where persistent sandboxes are kept; empty: there can be none.
    pub(crate) persistent_directory: String,
}

/// A port of the host that leads into a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortView {
    /// Where the host listens.
    pub(crate) host: String,
    /// See [`PortView::host`].
    pub(crate) host_port: u16,
    /// Where it leads.
    pub(crate) guest_port: u16,
    /// `tcp` or `udp`.
    pub(crate) protocol: String,
    /// Why the host does not listen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl From<&MappedPort> for PortView {
    fn from(port: &MappedPort) -> Self {
        Self {
            host: port.host.ip().to_string(),
            host_port: port.host.port(),
            guest_port: port.guest,
            protocol: port.protocol.name().to_owned(),
            error: port.error.clone(),
        }
    }
}

impl PortView {
    /// Where the host listens, as people write it.
    pub(crate) fn host(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.host_port),
            false => format!("{}:{}", self.host, self.host_port),
        }
    }

    /// Where it leads, as people write it.
    pub(crate) fn guest(&self) -> String {
        format!("{}/{}", self.guest_port, self.protocol)
    }
}

/// A port that is to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExposeView {
    /// As in a description's `port_map`.
    pub(crate) port: String,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitView {
    pub(crate) exit_code: i32,
    #[serde(default)]
    pub(crate) out_of_memory: bool,
    #[serde(default)]
    pub(crate) timed_out: bool,
}

impl From<Stop> for ExitView {
    fn from(stop: Stop) -> Self {
        Self { exit_code: stop.exit_code, out_of_memory: stop.out_of_memory, timed_out: false }
    }
}

/// What a sandbox may reach, as rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicyView {
    /// Empty: all that is public.
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
}

impl From<Policy> for PolicyView {
    fn from(policy: Policy) -> Self {
        let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
        Self { allow: texts(&policy.allow), deny: texts(&policy.deny) }
    }
}

/// The network of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkView {
    /// Its own, of IPv4 and IPv6.
    pub(crate) addresses: Vec<String>,
    pub(crate) policy: PolicyView,
    pub(crate) counts: NetworkCounts,
    /// What was refused last, the oldest first.
    pub(crate) refusals: Vec<Refused>,
}

/// A named network that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewNetworkView {
    pub(crate) name: String,
    /// A private block of IPv4; one that is free, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subnet: Option<String>,
}

/// A named network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedNetworkView {
    pub(crate) name: String,
    /// Its addresses: `10.213.0.0/24`.
    pub(crate) ipv4: String,
    /// See [`NamedNetworkView::ipv4`].
    pub(crate) ipv6: String,
    pub(crate) created_at: String,
    /// Who is on it.
    pub(crate) sandboxes: Vec<MemberView>,
}

/// A sandbox on a named network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberView {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Of IPv4 and IPv6.
    pub(crate) addresses: Vec<String>,
}

/// A program to be run in a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ExecView {
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Empty: the sandbox's.
    pub(crate) user: String,
    /// Empty: the sandbox's.
    pub(crate) working_dir: String,
    /// Gives it a terminal of so many rows and columns.
    pub(crate) terminal: Option<(u16, u16)>,
    /// When it is killed; 0 for never.
    pub(crate) timeout_secs: u64,
    /// Lets it run without its caller.
    pub(crate) detach: bool,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailureView {
    /// What could not be done, with the facts.
    pub(crate) error: String,
    /// A word for programs: `no_program`, `not_found`…
    #[serde(default)]
    pub(crate) kind: String,
    /// What to do about it; empty where nobody knows.
    #[serde(default)]
    pub(crate) hint: String,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryView {
    pub(crate) name: String,
    /// `file`, `directory`, `symlink` or `other`: of the entry itself.
    pub(crate) kind: String,
    /// Whether it is a directory, or a link to one.
    pub(crate) is_dir: bool,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) link_target: String,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListingView {
    pub(crate) entries: Vec<EntryView>,
    /// Whether there are more than fit.
    pub(crate) truncated: bool,
}

/// The file at a path of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatView {
    /// `file`, `directory`, `symlink` or `other`: of the entry itself.
    pub(crate) kind: String,
    /// The same of what a link leads to at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target_kind: Option<String>,
    /// Path of that, without links; empty: nothing.
    pub(crate) target: String,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified_unix_s: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) link_target: String,
}

/// A file that was left out of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SkippedView {
    pub(crate) path: String,
    /// A sentence's end: `is a socket`.
    pub(crate) reason: String,
}

impl From<SkippedFile> for SkippedView {
    fn from(file: SkippedFile) -> Self {
        Self { path: file.path, reason: file.reason }
    }
}

/// Files that were unpacked and skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnpackedView {
    pub(crate) entries: u64,
    /// The first of those that were left out.
    pub(crate) skipped: Vec<SkippedView>,
    pub(crate) skipped_count: u64,
}

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageView {
    pub(crate) id: String,
    pub(crate) references: Vec<String>,
    pub(crate) size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    /// Not known of the base image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_used: Option<String>,
    pub(crate) in_use: bool,
    /// Damage to the copy in the cache, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) damaged: Option<String>,
}

/// Unused things that were removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PrunedView {
    pub(crate) removed: Vec<ImageView>,
    pub(crate) freed_bytes: u64,
}

/// A registry whose password was forgotten.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LogoutView {
    pub(crate) registry: String,
    pub(crate) was_known: bool,
}

impl From<ImageInfo> for ImageView {
    fn from(info: ImageInfo) -> Self {
        Self {
            id: info.id.to_string(),
            references: info.references,
            size_bytes: info.size_bytes,
            created: info.created,
            // Not known of an image that was set aside.
            last_used: (info.last_used > UNIX_EPOCH).then(|| calendar::seconds(info.last_used)),
            in_use: info.in_use,
            damaged: info.damaged,
        }
    }
}

/// A line of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum PullLine {
    /// A registry is asked for the image.
    Asking { registry: String },
    /// Which image the reference means now.
    Resolved { id: String, layers: Vec<LayerView> },
    /// Somebody else pulls it already.
    Waiting,
    /// A layer comes.
    Layer { digest: String, done_bytes: u64, total_bytes: u64 },
    /// Its root file system is written.
    Converting { done_bytes: u64, total_bytes: u64 },
    /// An archive's image is there.
    Loaded { id: String, references: Vec<String> },
    /// All of an archive's images are there. Always the last.
    Finished,
    /// It is there. Always the last.
    Done { id: String, size_bytes: u64 },
    /// It is not, and why. Always the last.
    Failed(FailureView),
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerView {
    pub(crate) digest: String,
    pub(crate) size_bytes: u64,
}

impl From<PullEvent> for PullLine {
    fn from(event: PullEvent) -> Self {
        match event {
            PullEvent::Asking { registry } => Self::Asking { registry },
            PullEvent::Resolved { id, layers } => Self::Resolved {
                id: id.to_string(),
                layers: layers
                    .into_iter()
                    .map(|(digest, size_bytes)| LayerView { digest: digest.to_string(), size_bytes })
                    .collect(),
            },
            PullEvent::Waiting => Self::Waiting,
            PullEvent::Layer { digest, done_bytes, total_bytes } => {
                Self::Layer { digest: digest.to_string(), done_bytes, total_bytes }
            }
            PullEvent::Converting { done_bytes, total_bytes } => Self::Converting { done_bytes, total_bytes },
        }
    }
}

/// Something that happened to a sandbox, or how many such things nobody looked at in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventView {
    pub(crate) time: String,
    /// Empty where events were missed.
    pub(crate) sandbox: String,
    /// `event`, and what belongs to it.
    #[serde(flatten)]
    pub(crate) what: serde_json::Map<String, Value>,
}

/// What programs of a sandbox use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatsView {
    pub(crate) cpu_us: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) pids: u64,
    pub(crate) pids_limit: u64,
}

/// What is asked of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttestationView {
    /// What it is to carry, as hexadecimal digits.
    pub(crate) report_data: String,
}
