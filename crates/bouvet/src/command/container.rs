//! `bouvet container`: docker's long forms of the commands on sandboxes.

use clap::Subcommand;

use super::inspect::ObjectType;
use super::names::SandboxNames;
use super::{
    Command, attach, cp, exec, inspect, kill, logs, port, prune, ps, rename, restart, rm, run, start, stats,
    stop, top, wait,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Line {
    /// Attach this terminal to a sandbox's program
    Attach(attach::Line),
    /// Copy files between a sandbox and this machine
    Cp(cp::Line),
    /// Create a sandbox without starting it
    Create(Box<run::CreateLine>),
    /// Run a program in a running sandbox
    Exec(Box<exec::Line>),
    /// Show details of sandboxes, as JSON
    Inspect(inspect::Shown),
    /// Send a signal to the programs of sandboxes
    Kill(kill::Line),
    /// Show the output of a sandbox's program
    Logs(logs::Line),
    /// List sandboxes
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Line),
    /// Pause sandboxes
    Pause(SandboxNames),
    /// List a sandbox's published ports
    Port(port::Line),
    /// Remove sandboxes that are stopped
    Prune(prune::Line),
    /// Rename a sandbox
    Rename(rename::Line),
    /// Stop sandboxes and start them again
    Restart(restart::Line),
    /// Remove sandboxes and their files
    #[command(visible_alias = "remove")]
    Rm(rm::Line),
    /// Create a sandbox and run a program in it
    Run(Box<run::RunLine>),
    /// Start stopped sandboxes
    Start(start::Line),
    /// Show the CPU, memory and processes that sandboxes use
    Stats(stats::Line),
    /// Stop sandboxes: programs get SIGTERM, after a grace period SIGKILL
    Stop(stop::Line),
    /// Show the processes of a sandbox
    Top(top::Line),
    /// Resume paused sandboxes
    #[command(visible_alias = "resume")]
    Unpause(SandboxNames),
    /// Wait until sandboxes stop, and print their exit codes
    Wait(wait::Line),
}

impl Line {
    /// The short form.
    pub(super) fn command(self) -> Command {
        match self {
            Self::Attach(line) => Command::Attach(line),
            Self::Cp(line) => Command::Cp(line),
            Self::Create(line) => Command::Create(line),
            Self::Exec(line) => Command::Exec(line),
            Self::Inspect(line) => Command::Inspect(inspect::Line::of(line, ObjectType::Sandbox)),
            Self::Kill(line) => Command::Kill(line),
            Self::Logs(line) => Command::Logs(line),
            Self::Ls(line) => Command::Ps(line),
            Self::Pause(names) => Command::Pause(names),
            Self::Port(line) => Command::Port(line),
            Self::Prune(line) => Command::Prune(line),
            Self::Rename(line) => Command::Rename(line),
            Self::Restart(line) => Command::Restart(line),
            Self::Rm(line) => Command::Rm(line),
            Self::Run(line) => Command::Run(line),
            Self::Start(line) => Command::Start(line),
            Self::Stats(line) => Command::Stats(line),
            Self::Stop(line) => Command::Stop(line),
            Self::Top(line) => Command::Top(line),
            Self::Unpause(names) => Command::Resume(names),
            Self::Wait(line) => Command::Wait(line),
        }
    }
}
