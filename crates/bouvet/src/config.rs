//! Configuration: the variables, their defaults, and what they may be.
//!
//! [`VARIABLES`] is the one table of them: the parser, the help texts and the reference in `docs/` all come
//! from it. Values are read from an injected source, never from the environment itself.

mod place;
mod registries;
mod transport;
mod unknown;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::place::Place;
pub use self::registries::Registries;
pub use self::transport::Transport;
pub use self::unknown::{Unknown, unknown_variables};

use bouvet_host::{
    BoxConfig, CgroupChoice, EngineChoice, FirecrackerOptions, HostOptions, ImageOptions, ImagesOptions,
    NetworkMode, PoolOptions, RegistryOptions, ResourceConfig, Rule,
};

/// One variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value when it is not set; empty for none.
    pub default: &'static str,
    /// What it may be, as an error or a reference says it.
    pub allowed: &'static str,
    /// What it is for.
    pub about: &'static str,
}

const fn variable(
    name: &'static str,
    default: &'static str,
    allowed: &'static str,
    about: &'static str,
) -> Variable {
    Variable { name, default, allowed, about }
}

/// All variables of the server.
pub const VARIABLES: &[Variable] = &[
    variable(
        "BOUVET_KERNEL",
        "/var/lib/bouvet/vmlinux",
        "a path",
        "Linux kernel of the VMs: an uncompressed vmlinux, with its modules in KERNEL.modules.cpio next to it; if the default file is missing, images/output of the executable's source tree or share/bouvet of its prefix is used",
    ),
    variable(
        "BOUVET_ROOTFS",
        "/var/lib/bouvet/debian-devbox.ext4",
        "a path",
        "root file system that all sandboxes share: an ext4, squashfs or erofs image; if the default file is missing, it is looked for as BOUVET_KERNEL is",
    ),
    variable(
        "BOUVET_CHROOT",
        "/tmp/bouvet",
        "a path",
        "working directory for the state of VMs; without root the default is bouvet in XDG_STATE_HOME, or ~/.local/state/bouvet",
    ),
    variable(
        "BOUVET_TEMPLATES",
        "auto",
        "auto, off or a path",
        "directory of the templates that sandboxes are cloned from: auto is `templates` in BOUVET_CHROOT; off boots every sandbox",
    ),
    variable(
        "BOUVET_DATA",
        "auto",
        "auto or a path",
        "directory of images, persistent sandboxes and networks: auto is /var/lib/bouvet for root, else bouvet in XDG_DATA_HOME, or ~/.local/share/bouvet",
    ),
    variable(
        "BOUVET_INSECURE_REGISTRIES",
        "",
        "a comma-separated list",
        "registries that may be used without TLS, in addition to those on this machine",
    ),
    variable(
        "BOUVET_REGISTRY_CERTIFICATES",
        "",
        "a comma-separated list",
        "additional CA certificates (PEM files) for registries",
    ),
    variable(
        "BOUVET_ALLOWED_REGISTRIES",
        "docker.io",
        "registries, separated by commas, * for all, or none",
        "registries from which MCP clients may pull images",
    ),
    variable(
        "BOUVET_ALLOWED_EGRESS",
        "*",
        "rules like *.example.com:443, separated by commas, * for all public addresses, or none",
        "upper bound of what sandboxes of MCP clients can reach, if they request a network; none refuses them one",
    ),
    variable(
        "BOUVET_EGRESS_CERTIFICATES",
        "",
        "a comma-separated list",
        "additional CA certificates (PEM files) for servers that receive secrets of sandboxes",
    ),
    variable(
        "BOUVET_EXPOSE_ADDRESS",
        "127.0.0.1",
        "an IP address of this machine, or off",
        "address for ports that MCP clients expose, reachable without authentication; off removes the tool",
    ),
    variable("BOUVET_POOL_ENABLED", "true", "true or false", "whether a pool keeps sandboxes ready"),
    variable("BOUVET_POOL_MIN_SIZE", "3", "0 to 1000", "sandboxes that the pool keeps ready"),
    variable("BOUVET_POOL_MAX_BOOTS", "2", "1 to 64", "sandboxes that the pool starts at once"),
    variable(
        "BOUVET_ENGINE",
        "auto",
        "auto, firecracker or qemu",
        "engine that runs the VMs; auto is firecracker where it can run, else qemu",
    ),
    variable(
        "BOUVET_FIRECRACKER",
        "/usr/local/bin/firecracker",
        "a path",
        "Firecracker's executable; if `jailer` is next to it and the server is root, VMs are jailed",
    ),
    variable(
        "BOUVET_FIRECRACKER_HUGE_PAGES",
        "false",
        "true or false; true needs BOUVET_TEMPLATES=off",
        "whether Firecracker's VMs use huge pages of 2 MiB, which must have been reserved",
    ),
    variable(
        "BOUVET_FIRECRACKER_CPU_TEMPLATE",
        "none",
        "none, C3, T2, T2S, T2CL, T2A or V1N1",
        "CPU template of Firecracker's VMs; none shows the machine's own processor",
    ),
    variable(
        "BOUVET_FIRECRACKER_DISK_MIB_PER_SEC",
        "0",
        "0 to 1000000",
        "limit of reads and writes of each disk of Firecracker's VMs, in MiB per second; 0 for no limit",
    ),
    variable(
        "BOUVET_FIRECRACKER_DISK_OPS_PER_SEC",
        "0",
        "0 to 10000000",
        "limit of reads and writes of each disk of Firecracker's VMs, in operations per second; 0 for no limit",
    ),
    variable(
        "BOUVET_KERNEL_ARGS",
        "",
        "arguments of the Linux kernel, separated by spaces",
        "additional arguments of the VMs' kernel",
    ),
    variable("BOUVET_TRANSPORT", "both", "stdio, http or both", "transports for MCP clients"),
    variable("BOUVET_HTTP_HOST", "0.0.0.0", "an IP address", "address that the HTTP server listens on"),
    variable("BOUVET_HTTP_PORT", "8080", "1 to 65535", "port that the HTTP server listens on"),
    variable(
        "BOUVET_ALLOWED_HOSTS",
        "",
        "host names, separated by commas",
        "host names that clients of the HTTP server may use, in addition to IP addresses, localhost and names without a dot",
    ),
    variable(
        "BOUVET_ALLOWED_ORIGINS",
        "",
        "origins like https://app.example.com, separated by commas",
        "origins of web pages that may use the HTTP server, in addition to those of this machine",
    ),
    variable(
        "BOUVET_HTTP_BODIES_MIB",
        "256",
        "64 to 65536",
        "memory for the bodies of requests to /mcp that are read at the same time, in MiB; large ones beyond it are answered with 503",
    ),
    variable(
        "BOUVET_SOCKET",
        "auto",
        "auto, off or a path",
        "Unix socket of the `bouvet` commands: auto is /run/bouvet/bouvet.sock for root, else bouvet/bouvet.sock in XDG_RUNTIME_DIR, or bouvet.sock in the default of BOUVET_CHROOT",
    ),
    variable("BOUVET_MAX_SANDBOXES", "100", "1 to 1000", "limit of sandboxes"),
    variable(
        "BOUVET_SANDBOX_TIMEOUT_SECS",
        "3600",
        "0 to 31536000",
        "age at which a sandbox is destroyed, in seconds; 0 for never",
    ),
    variable(
        "BOUVET_DISK_MIB",
        "2048",
        "64 to 1048576",
        "size of a sandbox's writable disk, in MiB; takes space only as it is written",
    ),
    variable(
        "BOUVET_CGROUP",
        "auto",
        "auto, off or the path of a delegated cgroup",
        "parent of the cgroups that limit the memory of VM processes: auto is the cgroup hierarchy for root, else a cgroup that is delegated to the user, else off",
    ),
    variable(
        "BOUVET_FIRST_UID",
        "1900000000",
        "1 to 2000000000",
        "first of the user ids that VMs run as, one id each, if the server is root",
    ),
    variable(
        "RUST_LOG",
        "info",
        "error, warn, info, debug, trace or a filter like bouvet=debug,info",
        "what is logged, to standard error",
    ),
];

/// The socket of a server that root runs.
pub const ROOT_SOCKET: &str = "/run/bouvet/bouvet.sock";

/// Limits that hold for every call, published with the defaults.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// See [`DEFAULT_MEMORY_MIB`].
pub const DEFAULT_VCPUS: u32 = 1;

/// A variable with a value that it cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is `{value}`; it must be {allowed}")]
pub struct ConfigError {
    /// The variable's name.
    pub variable: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

/// The HTTP side of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// Host names that clients may use.
    pub allowed_hosts: Vec<String>,
    /// Origins that browsers may come from.
    pub allowed_origins: Vec<String>,
    /// Memory for bodies of requests.
    pub bodies_bytes: u64,
}

/// Where the `bouvet` commands find the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketChoice {
    /// At the usual place of the user who runs the server.
    Auto(PathBuf),
    /// Nowhere.
    Off,
    /// Here.
    At(PathBuf),
}

/// Everything that the server can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the host is made of.
    pub host: HostOptions,
    /// How clients come in.
    pub transport: Transport,
    /// The HTTP server.
    pub http: HttpConfig,
    /// The socket of the `bouvet` commands.
    pub socket: SocketChoice,
    /// A sandbox whose creator asked for nothing special.
    pub sandbox: BoxConfig,
    /// What sandboxes of MCP clients may reach at most, as rules. `None`: they get no network.
    pub egress: Option<Vec<String>>,
    /// Where ports are listened on that MCP clients expose. `None`: they expose none.
    pub expose: Option<IpAddr>,
    /// Where MCP clients may take images from.
    pub registries: Registries,
    /// Variables that are not set, with values other than their published defaults: as this machine and user have it.
    pub chosen: Vec<(&'static str, String)>,
    /// Variables that are set, to values other than their published defaults.
    pub set: Vec<(&'static str, String)>,
}

impl Config {
    /// Reads the configuration from `source`, which gives a variable's value if it is set, as for this user and an
    /// executable of which nothing is known.
    pub fn load(source: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Self::load_at(source, &Place { executable: None, ..Place::here() })
    }

    /// The same with defaults as they are at `place`.
    pub fn load_at(source: impl Fn(&str) -> Option<String>, place: &Place) -> Result<Self, ConfigError> {
        let values = Values { source: &source, place };
        let resources = ResourceConfig {
            vcpus: DEFAULT_VCPUS,
            memory_mb: DEFAULT_MEMORY_MIB,
            disk_mb: values.number("BOUVET_DISK_MIB", 64..=1024 * 1024)?,
            timeout: Duration::from_secs(
                values.number("BOUVET_SANDBOX_TIMEOUT_SECS", 0..=31_536_000)?.into(),
            ),
        };
        let address = SocketAddr::new(
            values.parse::<IpAddr>("BOUVET_HTTP_HOST")?,
            values.parse("BOUVET_HTTP_PORT").and_then(|port| match port {
                0 => Err(values.error("BOUVET_HTTP_PORT")),
                port => Ok(port),
            })?,
        );
        let host = HostOptions {
            dir: values.state()?,
            engine: values.engine()?,
            firecracker: values.firecracker()?,
            kernel: values.image("BOUVET_KERNEL")?,
            kernel_args: values.kernel_args()?,
            rootfs: values.image("BOUVET_ROOTFS")?,
            max_sandboxes: values.number("BOUVET_MAX_SANDBOXES", 1..=1000)?,
            cgroup: values.cgroup()?,
            first_uid: values.number("BOUVET_FIRST_UID", 1..=2_000_000_000)?,
            templates: values.templates()?,
            pool: values.pool(&resources)?,
            images: Some(values.images()?),
            boxes: Some(values.data()?.join("boxes")),
            networks: Some(values.data()?.join("networks")),
            authorities: values.list("BOUVET_EGRESS_CERTIFICATES").into_iter().map(PathBuf::from).collect(),
        };
        Ok(Self {
            chosen: values.chosen(&host),
            set: values.set(),
            host,
            transport: match values.text("BOUVET_TRANSPORT").to_ascii_lowercase().as_str() {
                "stdio" => Transport::Stdio,
                "http" => Transport::Http,
                "both" => Transport::Both,
                _ => return Err(values.error("BOUVET_TRANSPORT")),
            },
            http: HttpConfig {
                address,
                allowed_hosts: values.list("BOUVET_ALLOWED_HOSTS"),
                allowed_origins: values.list("BOUVET_ALLOWED_ORIGINS"),
                bodies_bytes: u64::from(values.number("BOUVET_HTTP_BODIES_MIB", 64..=65_536)?) * 1024 * 1024,
            },
            socket: values.socket()?,
            // Its client is to be master of the VM, which is what isolates it.
            sandbox: BoxConfig {
                resources,
                privileged: true,
                network: NetworkMode::None,
                ..BoxConfig::default()
            },
            egress: values.egress()?,
            expose: values.expose()?,
            registries: Registries(match values.list("BOUVET_ALLOWED_REGISTRIES") {
                only if only == ["none"] => Vec::new(),
                list => list,
            }),
        })
    }
}

/// The table's variable of this name.
fn find(name: &str) -> &'static Variable {
    match VARIABLES.iter().find(|variable| variable.name == name) {
        Some(variable) => variable,
        None => unreachable!("`{name}` is not in the table of variables"),
    }
}

struct Values<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
    place: &'a Place,
}

impl Values<'_> {
    /// An absolute path that a variable of the system's has.
    fn absolute(&self, name: &str) -> Option<PathBuf> {
        (self.source)(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn is_set(&self, name: &str) -> bool {
        (self.source)(name).is_some_and(|value| !value.trim().is_empty())
    }

    fn state(&self) -> Result<PathBuf, ConfigError> {
        match self.is_set("BOUVET_CHROOT") {
            true => self.path("BOUVET_CHROOT"),
            false => Ok(self.place.state_dir(|name| self.absolute(name))),
        }
    }

    fn chosen(&self, host: &HostOptions) -> Vec<(&'static str, String)> {
        let cgroup = match &host.cgroup {
            CgroupChoice::Detect => "auto".to_owned(),
            CgroupChoice::Off => "off".to_owned(),
            CgroupChoice::Below(dir) => dir.display().to_string(),
        };
        let paths = [&host.kernel, &host.rootfs, &host.dir].map(|path| path.display().to_string());
        let [kernel, rootfs, dir] = paths;
        [
            ("BOUVET_KERNEL", kernel),
            ("BOUVET_ROOTFS", rootfs),
            ("BOUVET_CHROOT", dir),
            ("BOUVET_CGROUP", cgroup),
        ]
        .into_iter()
        .filter(|(name, value)| self.text(name) == find(name).default && value != find(name).default)
        .collect()
    }

    fn set(&self) -> Vec<(&'static str, String)> {
        let values = VARIABLES.iter().map(|variable| (variable.name, self.text(variable.name)));
        values.filter(|(name, value)| value != find(name).default).collect()
    }

    /// A kernel or a rootfs.
    fn image(&self, name: &str) -> Result<PathBuf, ConfigError> {
        match self.is_set(name) {
            true => self.path(name),
            false => Ok(self.place.image(Path::new(find(name).default))),
        }
    }

    fn egress(&self) -> Result<Option<Vec<String>>, ConfigError> {
        const NAME: &str = "BOUVET_ALLOWED_EGRESS";
        match self.list(NAME) {
            none if none == ["none"] => Ok(None),
            rules if rules.iter().all(|rule| rule.parse::<Rule>().is_ok_and(|rule| !rule.is_loopback())) => {
                Ok(Some(rules))
            }
            _ => Err(self.error(NAME)),
        }
    }

    fn expose(&self) -> Result<Option<IpAddr>, ConfigError> {
        match self.text("BOUVET_EXPOSE_ADDRESS").to_ascii_lowercase().as_str() {
            "off" => Ok(None),
            _ => self.parse("BOUVET_EXPOSE_ADDRESS").map(Some),
        }
    }

    fn templates(&self) -> Result<Option<PathBuf>, ConfigError> {
        match self.text("BOUVET_TEMPLATES").as_str() {
            "auto" => Ok(Some(self.state()?.join("templates"))),
            "off" => Ok(None),
            _ => self.path("BOUVET_TEMPLATES").map(Some),
        }
    }

    /// By the XDG base directory specification, for whoever is not root.
    fn data(&self) -> Result<PathBuf, ConfigError> {
        if self.text("BOUVET_DATA") != "auto" {
            return self.path("BOUVET_DATA");
        }
        let home = || self.absolute("HOME").map(|home| home.join(".local/share"));
        Ok(match self.absolute("XDG_DATA_HOME").or_else(home) {
            _ if self.place.is_root => "/var/lib/bouvet".into(),
            Some(own) => own.join("bouvet"),
            None => self.place.state_dir(|name| self.absolute(name)).join("data"),
        })
    }

    fn socket(&self) -> Result<SocketChoice, ConfigError> {
        match self.text("BOUVET_SOCKET").as_str() {
            "off" => Ok(SocketChoice::Off),
            "auto" if self.place.is_root => Ok(SocketChoice::Auto(ROOT_SOCKET.into())),
            "auto" => {
                let runtime = self.absolute("XDG_RUNTIME_DIR").map(|dir| dir.join("bouvet"));
                // A login without a session, as by `su`, has no such directory.
                let dir = runtime.unwrap_or_else(|| self.place.state_dir(|name| self.absolute(name)));
                Ok(SocketChoice::Auto(dir.join("bouvet.sock")))
            }
            _ => self.path("BOUVET_SOCKET").map(SocketChoice::At),
        }
    }

    /// With the credentials that Docker would use.
    fn images(&self) -> Result<ImageOptions, ConfigError> {
        let set = |name: &str| (self.source)(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let docker = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
        let registry = RegistryOptions {
            docker_config: docker.map(|dir| dir.join("config.json")),
            insecure_registries: self.list("BOUVET_INSECURE_REGISTRIES"),
            root_certificates: self
                .list("BOUVET_REGISTRY_CERTIFICATES")
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            ..RegistryOptions::default()
        };
        let pull = ImagesOptions { registry, ..ImagesOptions::default() };
        Ok(ImageOptions { dir: self.data()?.join("images"), pull })
    }

    fn pool(&self, resources: &ResourceConfig) -> Result<Option<PoolOptions>, ConfigError> {
        let enabled = self.boolean("BOUVET_POOL_ENABLED")?;
        let size = self.number("BOUVET_POOL_MIN_SIZE", 0..=1000)?;
        let boots = self.number("BOUVET_POOL_MAX_BOOTS", 1..=64)?;
        Ok((enabled && size > 0).then(|| PoolOptions { size, boots, resources: resources.clone() }))
    }

    /// The value, or the default. Empty counts as not set, as in a compose file's `FOO: ${FOO}`.
    fn text(&self, name: &str) -> String {
        let set = (self.source)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        set.unwrap_or_else(|| find(name).default.to_owned())
    }

    fn error(&self, name: &str) -> ConfigError {
        let Variable { name, allowed, .. } = find(name);
        ConfigError { variable: name, value: self.text(name), allowed }
    }

    fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        self.text(name).parse().map_err(|_| self.error(name))
    }

    fn number(&self, name: &str, allowed: std::ops::RangeInclusive<u32>) -> Result<u32, ConfigError> {
        self.parse(name)
            .and_then(|number| if allowed.contains(&number) { Ok(number) } else { Err(self.error(name)) })
    }

    fn path(&self, name: &str) -> Result<PathBuf, ConfigError> {
        // Relative paths are taken from where the server was started, and stay what they were.
        std::path::absolute(self.text(name)).map_err(|_| self.error(name))
    }

    fn boolean(&self, name: &str) -> Result<bool, ConfigError> {
        match self.text(name).to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.error(name)),
        }
    }

    fn firecracker(&self) -> Result<FirecrackerOptions, ConfigError> {
        let huge_pages = self.boolean("BOUVET_FIRECRACKER_HUGE_PAGES")?;
        if huge_pages && self.templates()?.is_some() {
            return Err(self.error("BOUVET_FIRECRACKER_HUGE_PAGES"));
        }
        let template = self.text("BOUVET_FIRECRACKER_CPU_TEMPLATE").to_ascii_uppercase();
        let cpu_template = match template.as_str() {
            "NONE" => None,
            "C3" | "T2" | "T2S" | "T2CL" | "T2A" | "V1N1" => Some(template),
            _ => return Err(self.error("BOUVET_FIRECRACKER_CPU_TEMPLATE")),
        };
        let limit = |name, most| Ok(Some(self.number(name, 0..=most)?).filter(|number| *number > 0));
        Ok(FirecrackerOptions {
            binary: self.path("BOUVET_FIRECRACKER")?,
            huge_pages,
            cpu_template,
            disk_mb_per_second: limit("BOUVET_FIRECRACKER_DISK_MIB_PER_SEC", 1_000_000)?,
            disk_operations_per_second: limit("BOUVET_FIRECRACKER_DISK_OPS_PER_SEC", 10_000_000)?,
        })
    }

    fn kernel_args(&self) -> Result<String, ConfigError> {
        let args = self.text("BOUVET_KERNEL_ARGS");
        // The kernel's own line is 2048 bytes long (its COMMAND_LINE_SIZE on x86), and the engine's part is one.
        let sound = args.len() <= 1024 && args.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        if sound { Ok(args) } else { Err(self.error("BOUVET_KERNEL_ARGS")) }
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn engine(&self) -> Result<EngineChoice, ConfigError> {
        match self.text("BOUVET_ENGINE").to_ascii_lowercase().as_str() {
            "auto" => Ok(EngineChoice::Auto),
            "firecracker" => Ok(EngineChoice::Firecracker),
            "qemu" => Ok(EngineChoice::Qemu),
            #[cfg(feature = "fake")]
            "fake" => Ok(EngineChoice::Fake),
            _ => Err(self.error("BOUVET_ENGINE")),
        }
    }

    fn cgroup(&self) -> Result<CgroupChoice, ConfigError> {
        match self.text("BOUVET_CGROUP").as_str() {
            // `bouvet_host` finds out which cgroup the machine delegated to the user.
            "auto" if self.place.is_root => Ok(CgroupChoice::Detect),
            "auto" => Ok(CgroupChoice::delegated().unwrap_or(CgroupChoice::Off)),
            "off" => Ok(CgroupChoice::Off),
            path if path.starts_with('/') => Ok(CgroupChoice::Below(path.into())),
            _ => Err(self.error("BOUVET_CGROUP")),
        }
    }
}

#[cfg(test)]
mod tests;
