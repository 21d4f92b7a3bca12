//! The commands that speak to a server, or to a host of their own where none answers: one file each.

mod attach;
mod attest;
mod completions;
mod container;
mod cp;
pub(crate) mod docker;
mod events;
mod exec;
mod filter;
mod image;
mod images;
mod info;
mod inspect;
pub(crate) mod kill;
mod load;
mod login;
mod logs;
mod names;
mod network;
mod notice;
mod outcome;
mod pause;
mod port;
mod prune;
mod ps;
mod pull;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod session;
mod sidecar;
mod signals;
mod start;
mod stats;
mod stop;
mod system;
mod table;
mod tag;
mod template;
mod terminal;
mod top;
mod usage;
mod version;
mod wait;
pub(crate) mod without_server;

use clap::Subcommand;

use self::names::SandboxNames;
pub(crate) use self::notice::FIRST_OF_ITS_SIZE;
pub(crate) use self::outcome::{Connection, Failed, OURS};
use self::signals::Signals;
use crate::config::Config;

/// A command line: a command, or docker's long form of one.
#[derive(Debug, Subcommand)]
pub(crate) enum Typed {
    #[command(flatten)]
    Short(Command),
    /// Manage sandboxes, by the long names of the commands
    #[command(subcommand)]
    Container(container::Line),
    /// Manage images
    #[command(subcommand)]
    Image(image::Line),
    /// Manage the server
    #[command(subcommand)]
    System(system::Line),
}

impl Typed {
    /// The command, whatever it was called.
    pub(crate) fn command(self) -> Command {
        match self {
            Self::Short(command) => command,
            Self::Container(line) => line.command(),
            Self::Image(line) => line.command(),
            Self::System(line) => line.command(),
        }
    }
}

/// What people do with sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and run a program in it
    Run(Box<run::RunLine>),
    /// Create a sandbox without starting it
    Create(Box<run::CreateLine>),
    /// Run a program in a running sandbox
    Exec(Box<exec::Line>),
    /// List sandboxes
    #[command(visible_aliases = ["ls", "list"])]
    Ps(ps::Line),
    /// Show the output of a sandbox's program
    Logs(logs::Line),
    /// Attach this terminal to a sandbox's program
    Attach(attach::Line),
    /// Verify what a sandbox was started from
    Attest(attest::Line),
    /// Connect standard input and output to the control port of a sandbox's sidecar
    Sidecar(sidecar::Line),
    /// List a sandbox's published ports
    Port(port::Line),
    /// Copy files between a sandbox and this machine
    Cp(cp::Line),
    /// Stop sandboxes: programs get SIGTERM, after a grace period SIGKILL
    Stop(stop::Line),
    /// Start stopped sandboxes
    Start(start::Line),
    /// Stop sandboxes and start them again
    Restart(restart::Line),
    /// Pause sandboxes
    Pause(SandboxNames),
    /// Resume paused sandboxes
    #[command(visible_alias = "unpause")]
    Resume(SandboxNames),
    /// Rename a sandbox
    Rename(rename::Line),
    /// Send a signal to the programs of sandboxes
    Kill(kill::Line),
    /// Wait until sandboxes stop, and print their exit codes
    Wait(wait::Line),
    /// Remove sandboxes and their files
    Rm(rm::Line),
    /// Remove sandboxes that are stopped
    Prune(prune::Line),
    /// Show the processes of a sandbox
    Top(top::Line),
    /// List images
    Images(images::Line),
    /// Pull images from registries
    Pull(pull::Line),
    /// Remove images
    Rmi(rmi::Line),
    /// Load images from an archive
    Load(load::Line),
    /// Save images to an archive
    Save(save::Line),
    /// Add a name to an image
    Tag(tag::Line),
    /// Log in to a registry
    Login(login::LoginLine),
    /// Log out of a registry
    Logout(login::LogoutLine),
    /// Show details of sandboxes or images, as JSON
    Inspect(inspect::Line),
    /// Manage networks and network policies
    Network(network::Line),
    /// Show the CPU, memory and processes that sandboxes use
    Stats(stats::Line),
    /// Show events of sandboxes as they happen
    Events(events::Line),
    /// Show the versions of this command and of the server
    Version(version::Line),
    /// Show the server's engine, limits and paths
    Info(info::Line),
    /// Print completions of these commands for a shell
    Completions(completions::Line),
    /// `image prune`
    #[command(skip)]
    ImagePrune(image::PruneLine),
    /// `system prune`
    #[command(skip)]
    SystemPrune(system::PruneLine),
}

impl Command {
    /// Runs it to its end, and returns its exit code.
    pub(crate) async fn run(self, mut config: Config) -> Result<u8, Failed> {
        if matches!(&self, Self::Run(line) if !line.is_persistent()) {
            // Without a server this may run for long, and would keep others from the sandboxes that are kept.
            config.host.boxes = None;
        }
        if let Self::Version(line) = &self {
            return version::run(line, &config).await;
        }
        let mut signals = Signals::listen()?;
        let connection = tokio::select! {
            connection = Connection::open(config, self.without_server()) => connection?,
            number = signals.next() => return Ok(signals::code(number)),
        };
        let sandbox = self.sandbox();
        let done = self.on(&connection, &mut signals).await;
        let done = done.map_err(|failed| match &sandbox {
            Some(name) => failed.of_sandbox(name),
            None => failed,
        });
        connection.close().await;
        done
    }

    async fn on(self, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
        match self {
            Self::Run(line) => run::run(*line, connection, signals).await,
            Self::Exec(line) => exec::run(*line, connection, signals).await,
            Self::Attach(line) => attach::run(line, connection, signals).await,
            Self::Start(line) => start::run(line, connection, signals).await,
            other => tokio::select! {
                done = other.alone_with(connection) => done,
                number = signals.next() => Ok(signals::code(number)),
            },
        }
    }

    /// Those that pass no signals on.
    async fn alone_with(self, connection: &Connection) -> Result<u8, Failed> {
        match self {
            Self::Ps(line) => ps::run(&line, connection).await,
            Self::Logs(line) => logs::run(&line, connection).await,
            Self::Attest(line) => attest::run(&line, connection).await,
            Self::Sidecar(line) => sidecar::run(&line, connection).await,
            Self::Port(line) => port::run(&line, connection).await,
            Self::Cp(line) => cp::run(&line, connection).await,
            Self::Stop(line) => stop::run(&line, connection).await,
            Self::Restart(line) => restart::run(&line, connection).await,
            Self::Create(line) => run::create(*line, connection).await,
            Self::Rename(line) => rename::run(&line, connection).await,
            Self::Prune(line) => prune::run(&line, connection).await,
            Self::SystemPrune(line) => system::prune(&line, connection).await,
            Self::Top(line) => top::run(line, connection).await,
            Self::Info(line) => info::run(&line, connection).await,
            Self::Pause(names) => pause::pause(&names, connection).await,
            Self::Resume(names) => pause::resume(&names, connection).await,
            Self::Kill(line) => kill::run(&line, connection).await,
            Self::Wait(line) => wait::run(&line, connection).await,
            Self::Rm(line) => rm::run(&line, connection).await,
            Self::Images(line) => images::run(&line, connection).await,
            Self::Pull(line) => pull::run(&line, connection).await,
            Self::Rmi(line) => rmi::run(&line, connection).await,
            Self::Load(line) => load::run(&line, connection).await,
            Self::Save(line) => save::run(&line, connection).await,
            Self::Tag(line) => tag::run(&line, connection).await,
            Self::ImagePrune(line) => image::prune(&line, connection).await,
            Self::Login(line) => login::login(&line, connection).await,
            Self::Logout(line) => login::logout(&line, connection).await,
            Self::Inspect(line) => inspect::run(&line, connection).await,
            Self::Network(line) => network::run(&line, connection).await,
            Self::Stats(line) => stats::run(&line, connection).await,
            Self::Events(line) => events::run(&line, connection).await,
            Self::Run(_)
            | Self::Exec(_)
            | Self::Attach(_)
            | Self::Start(_)
            | Self::Completions(_)
            | Self::Version(_) => {
                unreachable!("these were told apart before")
            }
        }
    }

    /// The one sandbox that the command is about, as it was typed.
    fn sandbox(&self) -> Option<String> {
        let name = match self {
            Self::Exec(line) => line.sandbox(),
            Self::Top(line) => line.sandbox(),
            Self::Attach(line) => line.sandbox(),
            Self::Start(line) => line.attached()?,
            Self::Logs(line) => line.sandbox(),
            Self::Attest(line) => line.sandbox()?,
            Self::Sidecar(line) => line.sandbox(),
            Self::Port(line) => line.sandbox(),
            Self::Rename(line) => line.sandbox(),
            Self::Network(line) => line.sandbox()?,
            Self::Cp(line) => return line.sandbox(),
            _ => return None,
        };
        Some(name.to_owned())
    }

    /// Whether the command line is valid, as far as that can be checked without a server.
    pub(crate) fn check(&self) -> Result<(), Failed> {
        match self {
            Self::Run(line) => line.check(),
            Self::Create(line) => line.check(),
            Self::Ps(line) => line.check(),
            Self::Inspect(line) => line.check(),
            Self::Images(line) => line.check(),
            Self::Prune(line) => line.check(),
            Self::ImagePrune(line) => line.check(),
            Self::SystemPrune(line) => line.check(),
            Self::Network(line) => line.check(),
            Self::Events(line) => line.check(),
            Self::Stats(line) => line.check(),
            Self::Pull(line) => line.check(),
            Self::Rmi(line) => line.check(),
            Self::Load(line) => line.check(),
            Self::Save(line) => line.check(),
            Self::Port(line) => line.check(),
            Self::Cp(line) => line.route().map(drop),
            Self::Logs(line) => line.check(),
            Self::Attest(line) => line.expected().map(drop),
            _ => Ok(()),
        }
    }

    /// What needs neither configuration nor server.
    pub(crate) fn at_once(&self, names: &mut clap::Command) -> Option<Result<u8, Failed>> {
        match self {
            Self::Completions(line) => Some(completions::run(line, names)),
            Self::Attest(line) => line.saved(),
            _ => None,
        }
    }
}
