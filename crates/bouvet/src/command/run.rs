//! `bouvet run`.

mod describe;
mod extra;

pub(super) use self::describe::{env_file, image, variable};
use self::extra::Extra;

use std::path::PathBuf;

use bouvet_host::{BoxConfig, NetworkMode, SidecarConfig};
use clap::{ArgAction, Args, ValueEnum};
use hyper::Method;

use super::notice::Notice;
use super::outcome::{Connection, Failed};
use super::pull::{self, Bars};
use super::session::{self, Terms};
use super::signals::Signals;
use super::{start, table, usage};
use crate::api::client::{CallError, path};
use crate::api::shape::{NamedNetworkView, SandboxView};
use crate::failure::Kind;

/// Docker's network modes that are not names of networks here.
const OTHER_NETWORKS: &[&str] = &["host", "bridge", "default"];

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PullPolicy {
    /// Each time.
    Always,
    /// When it is not there.
    Missing,
    /// Not at all.
    Never,
}

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "bouvet run [OPTIONS] <IMAGE> [CMD]...",
    after_help = "Options end at IMAGE: what follows belongs to the program.\n\nIMAGE is an OCI image (`alpine`, `ghcr.io/org/app:tag`, `oci:DIRECTORY`, \
    `docker-archive:FILE`), or an image of the server: `base`, with Python, Node.js, Bash and Rust, or \
    `devbox-full`, with more packages.\n\nWithout a \
    server (`bouvet serve`) the sandbox runs in this process. It is removed when its program ends, unless it is persistent."
)]
pub(crate) struct RunLine {
    /// Run in the background, and print the sandbox's id
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    line: Line,
}

/// `bouvet create`: `run -d` without the start.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "bouvet create [OPTIONS] <IMAGE> [CMD]...",
    after_help = "Options end at IMAGE: what follows belongs to the program.\n\n`bouvet start` starts the sandbox, `bouvet run --help` describes images. A server is needed \
    (`bouvet serve`): the sandbox is one of the server's."
)]
pub(crate) struct CreateLine {
    #[command(flatten)]
    line: Line,
}

/// The sandbox that is wanted.
#[derive(Debug, Args)]
pub(super) struct Line {
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    resources: Resources,
    #[command(flatten)]
    rights: Rights,
    #[command(flatten)]
    tee: Tee,
    #[command(flatten)]
    extra: Extra,
    // One argument, as options end at the image: what follows belongs to the program, `--rm` and `--` too.
    /// Image to run (`base` or `devbox-full` for the server's own), then program and arguments, instead of those of the
    /// image
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "CMD"])]
    words: Vec<String>,
}

/// How it is run, and what it sees.
#[derive(Debug, Args)]
struct How {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal for the program
    #[arg(short, long)]
    tty: bool,
    /// Remove the sandbox when its program ends
    #[arg(long)]
    rm: bool,
    /// Name of the sandbox
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Host name of the sandbox [default: its name, or `sandbox-` and the first characters of its id]
    #[arg(short = 'h', long, default_value = "", hide_default_value = true)]
    hostname: String,
    /// Run an init process that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
    /// Set an environment variable; without a value, pass on the one of this environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one per line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Share a directory or file of this machine with the sandbox
    #[arg(short, long, value_name = "HOST:GUEST[:ro|rw]")]
    volume: Vec<String>,
    /// Share a directory of this machine as /workspace, the working directory of programs
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Working directory of the program
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "DIR")]
    workdir: String,
    /// User (and group) that the program runs as
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "USER[:GROUP]")]
    user: String,
    /// Additional group of its processes
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Signal that asks the program to end, instead of the image's
    #[arg(long, default_value = "", hide_default_value = true, value_name = "SIGNAL")]
    stop_signal: String,
    /// Grace period of the program after the stop signal, in seconds [default: 10]
    #[arg(long, value_name = "SECS", value_parser = usage::number::<u64>)]
    stop_timeout: Option<u64>,
    /// Run no program: the sandbox runs until it is stopped, for `exec`. `run` needs --detach with it
    #[arg(long, conflicts_with = "entrypoint")]
    idle: bool,
    /// Override the entry point of the image
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Keep files when the sandbox stops
    #[arg(long)]
    persistent: bool,
    /// Publish a port of the sandbox on this machine
    #[arg(short, long, value_name = "[[ADDRESS:]HOST:]GUEST[/udp]")]
    publish: Vec<String>,
    /// Image of a sidecar: a second program in the same VM
    #[arg(long, value_name = "IMAGE")]
    sidecar: Option<String>,
    /// Control port of the sidecar: on vsock, or on loopback
    #[arg(long, value_name = "PORT", default_value_t = SidecarConfig::default().vsock_port, requires = "sidecar")]
    sidecar_port: u32,
    /// Set an environment variable of the sidecar; without a value, pass on the one of this environment
    #[arg(long, value_name = "NAME[=VALUE]", requires = "sidecar")]
    sidecar_env: Vec<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pull: PullPolicy,
    /// Do not show the progress of a pull
    #[arg(short, long)]
    quiet: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// What it can reach, and be reached by.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct Reach {
    /// Network: `tsi` (the internet), `none`, or the name of a network
    #[arg(long, alias = "net", default_value = "tsi", value_name = "NETWORK")]
    network: String,
    /// Let it reach only this (may be repeated)
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    allow: Vec<String>,
    /// Do not let it reach this (may be repeated)
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    deny: Vec<String>,
    /// DNS server, instead of this machine's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// DNS search domain, instead of this machine's; `.` for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// DNS option (resolv.conf(5)), instead of this machine's
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Add a line to /etc/hosts; the address `host-gateway` is that of the gateway
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Put a secret into requests to these domains only. The sandbox sees a placeholder in the variable NAME. The value
    /// is read from FILE, else from the variable NAME of this environment
    #[arg(long, value_name = "NAME[=FILE]@DOMAIN[,DOMAIN]")]
    secret: Vec<String>,
}

/// What it may use.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Resources")]
struct Resources {
    /// Memory of the VM [default: 1024m]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// CPUs of the VM; a fraction limits CPU time [default: 2]
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Size of the writable disk; it takes space as files are written [default: 4096m]
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Destroy the sandbox after this many seconds; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECS", value_parser = usage::number::<u64>)]
    timeout: u64,
    /// Size of /dev/shm [default: a quarter of the memory]
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Limit of processes and threads
    #[arg(long, value_name = "NUMBER", value_parser = usage::number::<i64>, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Limit of each process, named as in ulimit(1), as in nofile=1024
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// CPUs of this machine that the VM may run on, as in 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Weight of the VM when CPUs are busy
    #[arg(short, long, value_name = "NUMBER", value_parser = usage::number::<u64>)]
    cpu_shares: Option<u64>,
    /// CPU time of the VM in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = usage::number::<i64>, allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Length of the CPU period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = usage::number::<u64>)]
    cpu_period: Option<u64>,
    /// Memory that the VM keeps when this machine is short of memory
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<String>,
    /// Limit of memory and swap of the VM together; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
}

/// What its programs may do.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Rights")]
struct Rights {
    /// Mount a file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Kernel setting (sysctl) of the sandbox
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Add a Linux capability
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Drop a Linux capability
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Security option: seccomp=unconfined, seccomp=PROFILE.json or no-new-privileges
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Do not restrict programs: root has all rights inside the VM
    #[arg(long)]
    privileged: bool,
    /// Fail if this machine has no hardware virtualization
    #[arg(long)]
    require_hardware: bool,
}

/// What it is attested by.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Confidential computing")]
struct Tee {
    /// Measure what the sandbox is started from, for `attest`
    #[arg(long, value_enum, value_name = "TECHNOLOGY")]
    tee: Option<Technology>,
    /// Simulate the hardware: reports state this, and prove nothing
    #[arg(long, requires = "tee")]
    tee_simulate: bool,
    /// Name of the workload in reports [default: the image]
    #[arg(long, value_name = "NAME", requires = "tee")]
    tee_workload: Option<String>,
    /// Generation of the AMD processor [default: milan]
    #[arg(long, value_enum, value_name = "GENERATION", requires = "tee")]
    tee_generation: Option<Generation>,
}

/// Confidential computing of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Technology {
    /// AMD's.
    SevSnp,
    /// Intel's.
    Tdx,
}

/// A generation of AMD's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Generation {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004.
    Genoa,
}

impl RunLine {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        if self.line.how.idle && !self.detach {
            return Err(Failed::new("`--idle` runs no program to wait for").hint("add `--detach`"));
        }
        self.line.config(self.detach)?;
        self.line.terms(self.detach).check()
    }

    /// Whether the sandbox is left running.
    pub(super) fn is_detached(&self) -> bool {
        self.detach
    }

    /// Whether its files are kept.
    pub(super) fn is_persistent(&self) -> bool {
        self.line.how.persistent
    }
}

impl CreateLine {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.line.config(true).map(drop)
    }
}

impl Line {
    fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The program and its arguments; empty for those of the image.
    fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// The sandbox that is wanted; `detached`: nobody waits for its program.
    fn config(&self, detached: bool) -> Result<BoxConfig, Failed> {
        if let Some(program) = self.command().first().filter(|_| self.how.idle) {
            let fact = format!("`--idle` runs no program, and `{}` is one", program.escape_debug());
            return Err(Failed::new(fact).hint("leave one of them away; options are before the image"));
        }
        let config = self.describe(detached, &|name| std::env::var_os(name)?.into_string().ok())?;
        config.validate().map_err(|error| usage::of_typed(&error, |flag| self.typed_size(flag)))?;
        if self.how.rm && self.how.persistent {
            return Err(
                Failed::new("`--rm` removes what `--persistent` keeps").hint("leave one of them away")
            );
        }
        Ok(config)
    }

    /// The sandbox that is wanted, once its images are in the cache.
    async fn prepare(&self, detached: bool, connection: &Connection) -> Result<BoxConfig, Failed> {
        let mut config = self.config(detached)?;
        self.extra.check_id_file()?;
        self.pull_image(&config.image, connection).await?;
        if let Some(sidecar) = &config.sidecar {
            self.pull_image(&sidecar.image, connection).await?;
        }
        if self.extra.publish_all && !bouvet_host::is_base_image(&config.image) {
            let image: serde_json::Value =
                connection.client.get(&path(&["image"], &[("name", &config.image)])).await?;
            let ports = image["config"]["exposed_ports"].as_array().cloned().unwrap_or_default();
            let ports = ports.iter().filter_map(|port| port.as_str());
            config.port_map.extend(ports.map(|port| port.trim_end_matches("/tcp").to_owned()));
        }
        Ok(config)
    }

    /// Pulls an image that is not in the cache, as `--pull` has it.
    async fn pull_image(&self, image: &str, connection: &Connection) -> Result<(), Failed> {
        if bouvet_host::is_base_image(image) {
            return Ok(());
        }
        if self.how.pull != PullPolicy::Always {
            let path = path(&["image"], &[("name", image)]);
            match connection.client.get::<serde_json::Value>(&path).await {
                Ok(_) => return Ok(()),
                Err(CallError::Refused(failure)) if failure.kind == Kind::NoImage.name() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.how.pull == PullPolicy::Never {
            return Err(Failed::new(format!("the image `{}` is not in the cache", image.escape_debug()))
                .hint("`bouvet pull` gets it from a registry, `bouvet load` from an archive"));
        }
        let bars = if self.how.quiet { Bars::hidden() } else { Bars::new() };
        pull::pull(&connection.client, image, bars).await.map(drop)
    }

    /// The size that was typed for `flag`.
    fn typed_size(&self, flag: &str) -> Option<&str> {
        match flag {
            "--memory" => self.resources.memory.as_deref(),
            "--disk" => self.resources.disk.as_deref(),
            "--memory-reservation" => self.resources.memory_reservation.as_deref(),
            "--memory-swap" => self.resources.memory_swap.as_deref(),
            "--shm-size" => self.resources.shm_size.as_deref(),
            _ => None,
        }
    }

    fn terms(&self, detached: bool) -> Terms {
        let input = self.how.interactive && !detached;
        let terminal = self.how.tty && !detached;
        Terms { input, closed: false, terminal, detachable: true, kills: true }
    }
}

/// Creates a sandbox without starting it.
pub(super) async fn create(line: CreateLine, connection: &Connection) -> Result<u8, Failed> {
    let config = line.line.prepare(true, connection).await?;
    let id = post(&config, false, connection).await?;
    line.line.extra.write_id(&id)?;
    table::line(&id)?;
    Ok(0)
}

async fn post(config: &BoxConfig, start: bool, connection: &Connection) -> Result<String, Failed> {
    let path = path(&["sandboxes"], &[("start", &start.to_string())]);
    let _notice = Notice::watch(&connection.client, &config.resources);
    let made = connection.client.call::<SandboxView>(Method::POST, &path, Some(config)).await;
    Ok(made.map_err(|error| usage::refused(error.into()))?.id)
}

pub(super) async fn run(
    RunLine { detach, line }: RunLine,
    connection: &Connection,
    signals: &mut Signals,
) -> Result<u8, Failed> {
    let config = line.config(detach)?;
    if let NetworkMode::Bridge { network } = &config.network {
        refuse_mode(network, connection).await?;
        // Others would be sandboxes of other commands.
        connection.needs_server(&format!("the network `{network}`"))?;
    }
    let prepared = async {
        let config = line.prepare(detach, connection).await?;
        // Before it runs, its id is in the file.
        let start = line.extra.cidfile.is_none();
        let id = match detach || !start {
            true => Some(post(&config, start, connection).await?),
            false => None,
        };
        if let Some(id) = &id {
            line.extra.write_id(id)?;
        }
        if let Some(id) = id.as_deref().filter(|_| detach && !start) {
            start::start(id, connection).await?;
        }
        Ok::<_, Failed>((config, id))
    };
    let (config, id) = tokio::select! {
        prepared = prepared => prepared?,
        number = signals.next() => return Ok(super::signals::code(number)),
    };
    if let Some(id) = id.as_deref().filter(|_| detach) {
        table::line(id)?;
        return Ok(0);
    }
    // Alone, what is left is destroyed.
    let terms = Terms { detachable: !connection.is_alone(), ..line.terms(detach) };
    let notice = Notice::watch(&connection.client, &config.resources);
    let (path, start) = match id {
        Some(id) => (path(&["sandboxes", &id, "attach"], &[("start", "true")]), None),
        None => (path(&["run"], &[]), Some(serde_json::to_vec(&config).map_err(Failed::new)?.into())),
    };
    let call = session::Call { path, start, notice: Some(notice) };
    let ended = session::run(&connection.client, call, terms, signals).await;
    Ok(ended.map_err(usage::refused)?.code())
}

/// Refuses a network mode of Docker's, unless a network has this name.
async fn refuse_mode(name: &str, connection: &Connection) -> Result<(), Failed> {
    if !OTHER_NETWORKS.contains(&name) {
        return Ok(());
    }
    let networks: Vec<NamedNetworkView> = connection.client.get(&path(&["networks"], &[])).await?;
    if networks.iter().any(|network| network.name == name) {
        return Ok(());
    }
    Err(Failed::new(format!("bouvet has no network mode `{name}`"))
        .hint("leave --network away for the internet (tsi), and publish ports with -p"))
}
