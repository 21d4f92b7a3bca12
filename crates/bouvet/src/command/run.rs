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
use super::session::{self, Terms};
use super::signals::Signals;
use super::{pull, table, usage};
use crate::api::client::CallError;
use crate::api::client::path;
use crate::api::shape::SandboxView;

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

/// What is typed after `bouvet run`.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "IMAGE is an OCI image (`alpine`, `ghcr.io/org/app:tag`, `oci:DIRECTORY`, \
    `docker-archive:FILE`), or an image of the server itself: `base`, with Python, Node.js, Bash and Rust, or `devbox-full`, with more packages.\n\nWithout a server \
    (`bouvet serve`) the sandbox lives in this process, and is removed when its program ends, unless it is persistent."
)]
pub(crate) struct Line {
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
    /// Image to run; `base` or `devbox-full` for the server's own
    image: String,
    /// The program and its arguments, instead of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// How it is run, and what it sees.
#[derive(Debug, Args)]
struct How {
    /// Hand on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Let it run on its own, and print its id
    #[arg(short, long)]
    detach: bool,
    /// Remove the sandbox when its program has ended
    #[arg(long)]
    rm: bool,
    /// A name by which it is known
    #[arg(long, default_value = "")]
    name: String,
    /// Host name that its programs see [default: its name, or `sandbox-` and the beginning of its id]
    #[arg(short = 'h', long, default_value = "", hide_default_value = true)]
    hostname: String,
    /// Run a process 1 that forwards signals to the program and reaps its orphans
    #[arg(long)]
    init: bool,
    /// Set a variable, or hand on this environment's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, one in each line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Show a directory or file of this machine in the sandbox
    #[arg(short, long, value_name = "HOST:GUEST[:ro]")]
    volume: Vec<String>,
    /// Show a directory of this machine as /workspace, where programs then start
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Where the program starts
    #[arg(short, long, default_value = "", value_name = "DIR")]
    workdir: String,
    /// Who it runs as
    #[arg(short, long, default_value = "", value_name = "USER[:GROUP]")]
    user: String,
    /// A group of its programs besides those of the user
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// The signal that asks the program to end, instead of the image's
    #[arg(long, default_value = "", value_name = "SIGNAL")]
    stop_signal: String,
    /// Seconds that the program then has before it is killed [default: 10]
    #[arg(long, value_name = "SECS")]
    stop_timeout: Option<u64>,
    /// Run no program of the image: the sandbox stays until it is stopped, for `exec`
    #[arg(long, requires = "detach", conflicts_with_all = ["command", "entrypoint"])]
    idle: bool,
    /// Replace the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Keep what was written when it stops
    #[arg(long)]
    persistent: bool,
    /// Lead a port of this machine into it
    #[arg(short, long, value_name = "[[ADDRESS:]HOST:]GUEST[/udp]")]
    publish: Vec<String>,
    /// An image whose program runs beside the main one, in the same VM
    #[arg(long, value_name = "IMAGE")]
    sidecar: Option<String>,
    /// The port on which it takes orders: of vsock, or of its loopback
    #[arg(long, value_name = "PORT", default_value_t = SidecarConfig::default().vsock_port, requires = "sidecar")]
    sidecar_port: u32,
    /// Set a variable of it, or hand on this environment's
    #[arg(long, value_name = "NAME[=VALUE]", requires = "sidecar")]
    sidecar_env: Vec<String>,
    /// When the image is pulled
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pull: PullPolicy,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// What it can reach, and be reached by.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct Reach {
    /// What it can reach: `tsi` (the internet), `none`, or the name of a network
    #[arg(long, default_value = "tsi", value_name = "NETWORK")]
    network: String,
    /// Reach what the rule says, and nothing else that no other rule says
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    allow: Vec<String>,
    /// Do not reach what the rule says
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    deny: Vec<String>,
    /// Address of a DNS server, instead of this machine's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Domain that names are completed with, instead of this machine's; `.` for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of resolv.conf(5), instead of this machine's
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Line of /etc/hosts; the address `host-gateway` is its gateway's
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Put a secret into requests to these domains alone; the sandbox has a placeholder in the variable NAME. Its value
    /// is this environment's, or what the file holds
    #[arg(long, value_name = "NAME[=FILE]@DOMAIN[,DOMAIN]")]
    secret: Vec<String>,
}

/// What it may use.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Resources")]
struct Resources {
    /// Memory of its VM [default: 1024m]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// CPUs of its VM; a fraction bounds their time [default: 2]
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Size of its disk, of which it takes what is written [default: 4096m]
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Destroy it after so many seconds; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECS")]
    timeout: u64,
    /// Size of /dev/shm [default: a quarter of the memory]
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Processes and threads that it may have
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<i64>,
    /// A limit by its name in ulimit(1)
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// CPUs of this machine that it may run on
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Its weight when CPUs are scarce
    #[arg(short, long, value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Length of that period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Memory that its VM keeps when this machine runs short
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<String>,
    /// Memory and swap that its VM may use together; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
}

/// What its programs may do.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Rights")]
struct Rights {
    /// A file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Let nobody write to its root file system
    #[arg(long)]
    read_only: bool,
    /// Kernel setting
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// A capability beside the usual ones
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// A capability that it does not get
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// seccomp=unconfined, seccomp=PROFILE.json or no-new-privileges
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Take nothing from its programs: root is root of the VM
    #[arg(long)]
    privileged: bool,
    /// Refuse to run without hardware virtualization
    #[arg(long)]
    require_hardware: bool,
}

/// What it is attested by.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Confidential computing")]
struct Tee {
    /// Have what it is launched from measured, for `attest`
    #[arg(long, value_enum, value_name = "TECHNOLOGY")]
    tee: Option<Technology>,
    /// Without the hardware: its reports say so, and prove nothing
    #[arg(long, requires = "tee")]
    tee_simulate: bool,
    /// What its reports call what runs; its image if nothing is said
    #[arg(long, value_name = "NAME", requires = "tee")]
    tee_workload: Option<String>,
    /// The generation of AMD's processor [default: milan]
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

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.config()?;
        self.terms().check()
    }

    /// Whether what it writes is kept.
    pub(super) fn is_persistent(&self) -> bool {
        self.how.persistent
    }

    /// The sandbox that is wanted.
    fn config(&self) -> Result<BoxConfig, Failed> {
        let config = self.describe(&|name| std::env::var_os(name)?.into_string().ok())?;
        config.validate().map_err(|error| usage::of(&error))?;
        if self.how.detach && self.how.rm && self.how.persistent {
            return Err(
                Failed::new("`--rm` removes what `--persistent` keeps").hint("leave one of them away")
            );
        }
        Ok(config)
    }

    /// The sandbox that is wanted, once its images are there.
    async fn prepare(&self, connection: &Connection) -> Result<BoxConfig, Failed> {
        let mut config = self.config()?;
        self.extra.check_id_file()?;
        have_image(&config.image, self.how.pull, connection).await?;
        if let Some(sidecar) = &config.sidecar {
            have_image(&sidecar.image, self.how.pull, connection).await?;
        }
        if self.extra.publish_all && !config.image.is_empty() {
            let image: serde_json::Value =
                connection.client.get(&path(&["image"], &[("name", &config.image)])).await?;
            let ports = image["config"]["exposed_ports"].as_array().cloned().unwrap_or_default();
            let ports = ports.iter().filter_map(|port| port.as_str());
            config.port_map.extend(ports.map(|port| port.trim_end_matches("/tcp").to_owned()));
        }
        Ok(config)
    }

    fn terms(&self) -> Terms {
        let input = self.how.interactive && !self.how.detach;
        Terms { input, closed: false, terminal: self.how.tty && !self.how.detach, detachable: true }
    }
}

/// Makes a sandbox without starting it.
pub(super) async fn create(mut line: Line, connection: &Connection) -> Result<u8, Failed> {
    connection.needs_server("`create`")?;
    line.how.detach = true;
    let config = line.prepare(connection).await?;
    let id = make(&config, false, connection).await?;
    line.extra.write_id(&id)?;
    table::line(&id)?;
    Ok(0)
}

async fn make(config: &BoxConfig, start: bool, connection: &Connection) -> Result<String, Failed> {
    let path = path(&["sandboxes"], &[("start", &start.to_string())]);
    let view: SandboxView = connection.client.call(Method::POST, &path, Some(config)).await?;
    Ok(view.id)
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    if line.how.detach {
        connection.needs_server("`run -d`")?;
    }
    let config = line.config()?;
    if let NetworkMode::Bridge { network } = &config.network {
        // Others would be sandboxes of other commands.
        connection.needs_server(&format!("the network `{network}`"))?;
    }
    let _notice = Notice::watch(&connection.client, &config.resources);
    let prepared = async {
        let config = line.prepare(connection).await?;
        // Before it runs, its id is in the file.
        let start = line.extra.cidfile.is_none();
        let id = match line.how.detach || !start {
            true => Some(make(&config, start, connection).await?),
            false => None,
        };
        if let Some(id) = &id {
            line.extra.write_id(id)?;
        }
        Ok::<_, Failed>((config, id, start))
    };
    let (config, id, started) = tokio::select! {
        prepared = prepared => prepared?,
        number = signals.next() => return Ok(super::signals::code(number)),
    };
    if let Some(id) = id.as_deref().filter(|_| line.how.detach) {
        if !started {
            connection.client.act(Method::POST, &path(&["sandboxes", id, "start"], &[])).await?;
        }
        table::line(id)?;
        return Ok(0);
    }
    // Alone, what is left is destroyed.
    let terms = Terms { detachable: !connection.is_alone(), ..line.terms() };
    if let Some(id) = id {
        let path = path(&["sandboxes", &id, "attach"], &[("start", "true")]);
        let ended = session::run(&connection.client, &path, None, terms, signals).await?;
        return Ok(ended.code());
    }
    let start = serde_json::to_vec(&config).map_err(Failed::new)?;
    let path = path(&["run"], &[]);
    let ended = session::run(&connection.client, &path, Some(start.into()), terms, signals).await?;
    Ok(ended.code())
}

/// Has the image in the cache, so that it is seen to come.
async fn have_image(image: &str, policy: PullPolicy, connection: &Connection) -> Result<(), Failed> {
    if bouvet_host::is_base_image(image) {
        return Ok(());
    }
    let found = match policy {
        PullPolicy::Always => false,
        PullPolicy::Missing | PullPolicy::Never => {
            let found =
                connection.client.get::<serde_json::Value>(&path(&["image"], &[("name", image)])).await;
            match found {
                Ok(_) => true,
                Err(CallError::Refused(failure)) if failure.kind == "no_image" => false,
                Err(error) => return Err(error.into()),
            }
        }
    };
    match policy {
        _ if found => Ok(()),
        PullPolicy::Never => Err(Failed::new(format!("there is no image `{}` here", image.escape_debug()))
            .hint("`bouvet pull` gets it")),
        PullPolicy::Always | PullPolicy::Missing => pull::pull(&connection.client, image).await.map(drop),
    }
}
