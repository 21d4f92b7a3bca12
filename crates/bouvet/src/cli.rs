//! The command lines of both binaries.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};

use crate::bounded::bounded;
use crate::config::{self, Config, Place, VARIABLES};
use crate::{advice, allocator, bench, command, demo, doctor, log, panics, serve, started};

/// The exit code of a wrong command line or configuration, as clap has it.
const USAGE: u8 = 2;
/// How long blocked threads are waited for at the end: one may be reading a terminal that nobody closes.
const SHUTDOWN: Duration = Duration::from_millis(200);

/// MCP server that gives each AI agent a private, isolated Linux computer.
#[derive(Debug, Parser)]
#[command(name = "bouvet-mcp", version, after_help = variables())]
struct ServerLine {}

/// Private, isolated Linux computers for AI agents.
#[derive(Debug, Parser)]
#[command(
    name = "bouvet",
    version,
    disable_version_flag = true,
    after_help = "Start with `bouvet run -it base bash`. Commands use the server that `bouvet serve` runs; many also \
                  work without one: see docs/CLI.md."
)]
struct BouvetLine {
    /// Print version
    #[arg(short = 'V', visible_short_alias = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(command::Typed),
    /// Run the server, for these commands and for MCP clients
    #[command(after_help = variables())]
    Serve,
    /// Check whether the server can run on this machine, and how to fix what it lacks
    #[command(after_help = variables())]
    Doctor,
    /// Start a server, use each tool once, and stop it
    Demo,
    /// Measure sandboxes as clients see them, and compare with targets and other tools
    #[command(
        after_help = "Servers are started with the configuration of the environment: see `bouvet serve --help`"
    )]
    Bench(bench::Line),
}

/// `bouvet-mcp`.
pub fn server(args: std::env::ArgsOs) -> ExitCode {
    match ServerLine::try_parse_from(args) {
        Ok(ServerLine {}) => run_server(),
        Err(error) => usage(&error),
    }
}

/// `bouvet`.
pub fn bouvet(args: std::env::ArgsOs) -> ExitCode {
    let args = command::kill::with_signal_option(args.collect());
    match BouvetLine::try_parse_from(&args) {
        Ok(BouvetLine { version: _, command: Command::Client(typed) }) => run_command(typed.command()),
        Ok(BouvetLine { version: _, command: Command::Serve }) => run_server(),
        Ok(BouvetLine { version: _, command: Command::Demo }) => run_client(demo::run()),
        Ok(BouvetLine { version: _, command: Command::Doctor }) => run_doctor(),
        Ok(BouvetLine { version: _, command: Command::Bench(line) }) => run_bench(line),
        Err(error) => {
            let typed: Vec<_> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
            match command::docker::explain(&error, &typed) {
                Some(failed) => fail(&failed.words(), command::OURS),
                None => usage_with(&error, command::OURS),
            }
        }
    }
}

/// What a host in the process of a command says: what goes wrong, unless the command says so itself.
const COMMAND_LOG: &str = "warn,bouvet_host::host::life=error";
/// Commands that use no server.
#[cfg(test)]
const OWN_COMMANDS: &[&str] = &["serve", "doctor", "demo", "bench"];

fn usage(error: &clap::Error) -> ExitCode {
    usage_with(error, USAGE)
}

fn usage_with(error: &clap::Error, code: u8) -> ExitCode {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // As in docker, a group alone asks for its help.
        writeln!(std::io::stdout(), "{}", error.render()).ok();
        return ExitCode::SUCCESS;
    }
    let is_asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let text = error.to_string();
    let short = bounded(&text);
    // Nobody reads a failed write of a usage text.
    match is_asked || short == text {
        true => error.print().ok(),
        false => write!(std::io::stderr(), "{short}").ok(),
    };
    if is_asked { ExitCode::SUCCESS } else { ExitCode::from(code) }
}

fn run_command(command: command::Command) -> ExitCode {
    let ended = |done: Result<u8, command::Failed>| match done {
        Ok(code) => ExitCode::from(code),
        Err(failed) if failed.text.is_empty() => ExitCode::from(failed.code),
        Err(failed) => fail(&failed.words(), failed.code),
    };
    if let Some(done) = command.at_once(&mut BouvetLine::command()) {
        return ended(done);
    }
    if let Err(failed) = command.check() {
        return ended(Err(failed));
    }
    let filter = variable("RUST_LOG").filter(|filter| !filter.trim().is_empty());
    if let Err(text) = log::start(Some(filter.unwrap_or_else(|| COMMAND_LOG.into()))) {
        return fail(&text, command::OURS);
    }
    match Config::load_at(variable, &Place::here()) {
        Ok(config) => run_async(async { ended(command.run(config).await) }),
        Err(error) => fail(&error.to_string(), command::OURS),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn unknown_variables() -> Vec<config::Unknown> {
    config::unknown_variables(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()))
}

fn run_doctor() -> ExitCode {
    match Config::load_at(variable, &Place::here()) {
        Ok(config) => run_client(async { doctor::run(config, &unknown_variables()).await }),
        Err(error) => {
            doctor::warn_of_unknown(&unknown_variables());
            fail(&error.to_string(), USAGE)
        }
    }
}

fn run_bench(line: bench::Line) -> ExitCode {
    if let Err(error) = line.scenarios() {
        return usage(&BouvetLine::command().error(ErrorKind::ArgumentConflict, error));
    }
    match Config::load_at(variable, &Place::here()) {
        Ok(config) => run_client(bench::run(line, config)),
        Err(error) => fail(&error.to_string(), USAGE),
    }
}

fn run_server() -> ExitCode {
    if let Err(text) = log::start(variable("RUST_LOG")) {
        return fail(&text, USAGE);
    }
    let config = match Config::load_at(variable, &Place::here()) {
        Ok(config) => config,
        Err(error) => {
            started::warn_of_unknown(&unknown_variables());
            return fail(&error.to_string(), USAGE);
        }
    };
    panics::watch();
    allocator::return_freed_memory();
    started::report(&config, &unknown_variables());
    run_async(async {
        match serve::serve(config).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&advice::on(&error), 1),
        }
    })
}

fn run_client(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    run_async(async {
        match command.await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("{error:#}"), 1),
        }
    })
}

fn run_async(run: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("could not start the runtime: {error}"), 1),
    };
    let code = runtime.block_on(run);
    runtime.shutdown_timeout(SHUTDOWN);
    code
}

fn fail(text: &str, code: u8) -> ExitCode {
    // Nobody reads a failed write of an error.
    writeln!(std::io::stderr(), "error: {}", bounded(text)).ok();
    ExitCode::from(code)
}

/// The table of variables, for `--help`.
fn variables() -> String {
    let mut text = String::from("Environment variables:\n");
    for variable in VARIABLES {
        let default = if variable.default.is_empty() { "none" } else { variable.default };
        // Writing to a string cannot fail.
        write!(
            text,
            "  {}\n      {}\n      {} [default: {default}]\n",
            variable.name, variable.about, variable.allowed
        )
        .ok();
    }
    text
}

#[cfg(test)]
mod docker_surface;

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference in `docs/` is made of the definitions; BOUVET_RECORD_DOCS=1 writes it there.
    #[test]
    fn the_reference_lists_every_command_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/CLI.md");
        let expected = crate::reference::of(&mut BouvetLine::command());
        if std::env::var_os("BOUVET_RECORD_DOCS").is_some() {
            std::fs::write(path, expected).unwrap();
            return;
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let differs = written.lines().zip(expected.lines()).find(|(written, expected)| written != expected);
        assert!(
            written == expected,
            "docs/CLI.md differs from the definitions of the commands, first (document, definition): {differs:?}"
        );
    }

    #[test]
    fn each_command_has_a_rule_without_server() {
        for (example, rule) in command::without_server::EXAMPLES {
            let line = BouvetLine::try_parse_from(std::iter::once("bouvet").chain(example.split(' ')));
            match line.map(|line| line.command) {
                Ok(Command::Client(typed)) => {
                    assert_eq!(typed.command().without_server(), *rule, "{example}")
                }
                other => panic!("{example}: {other:?}"),
            }
        }
        for command in BouvetLine::command().get_subcommands().map(|command| command.get_name()) {
            let is_shown = |(example, _): &(&str, _)| example.split(' ').next() == Some(command);
            let is_own = OWN_COMMANDS.contains(&command);
            assert!(is_own || command::without_server::EXAMPLES.iter().any(is_shown), "{command}");
        }
    }

    #[test]
    fn the_command_lines_are_sound() {
        ServerLine::command().debug_assert();
        BouvetLine::command().debug_assert();
    }
}
