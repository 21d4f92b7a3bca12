//! The command line of `bouvet bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

/// What a run can be told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Line {
    /// Server to measure, like http://127.0.0.1:8080/mcp; servers are started if this is left out
    #[arg(long, value_parser = url)]
    pub(super) url: Option<String>,
    /// Scenarios to run; all but images and soak if this is left out
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SCENARIO,…")]
    pub(super) only: Vec<Scenario>,
    /// How often each thing is measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) repeat: u32,
    /// Sandboxes at once [default: 50 for memory and burst, 100 for alive]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) sandboxes: Option<u32>,
    /// Soak: create, use and destroy this many sandboxes, and fail if anything is left [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) cycles: Option<u32>,
    /// Soak: cycles at once [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) concurrency: Option<u32>,
    /// Also write everything to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Also draw the medians into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// Also write the tables to this Markdown file: between its lines `<!-- bench: … -->` and `<!-- end -->`
    #[arg(long, value_name = "FILE")]
    pub(super) markdown: Option<PathBuf>,
    /// Block of the Markdown file for the tables: it begins with `<!-- bench NAME: … -->`
    #[arg(long, value_name = "NAME", requires = "markdown", value_parser = block)]
    pub(super) block: Option<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// create_sandbox: booted, cloned and from the pool, with the time to the first result
    Creation,
    /// the same work with podman, where it is installed
    Rivals,
    /// programs in a sandbox: the first run and later ones
    Calls,
    /// write_file and read_file, 1 MB and 100 MB
    Files,
    /// a server in a sandbox, through a port of the host
    Ports,
    /// the network of a sandbox, compared with other user-mode networks where they are installed
    Network,
    /// memory of a sandbox; processor time of the pool
    Memory,
    /// many sandboxes alive at once
    Alive,
    /// many sandboxes requested at once
    Burst,
    /// images of 100 MB and 1 GB, pulled and started, compared with podman where it is installed
    Images,
    /// many cycles of create, run and destroy, and what they leave behind
    Soak,
}

/// A command line whose parts do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    /// The soak is not run.
    #[error("`{0}` is for the soak: add `soak` to --only")]
    NoSoak(&'static str),
    /// No scenario counts sandboxes.
    #[error("`--sandboxes` is for memory, alive, burst and rivals: add one of them to --only")]
    NoCount,
    /// It looks at the server's processes, reaches its ports, or needs no server.
    #[error("`{0}` measures what is its own: leave out --url")]
    NotOurs(&'static str),
}

impl Scenario {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creation => "creation",
            Self::Rivals => "rivals",
            Self::Calls => "calls",
            Self::Files => "files",
            Self::Ports => "ports",
            Self::Network => "network",
            Self::Memory => "memory",
            Self::Alive => "alive",
            Self::Burst => "burst",
            Self::Images => "images",
            Self::Soak => "soak",
        }
    }

    /// No scenario takes longer, on a machine that is worth measuring.
    pub(super) fn deadline(self, line: &Line) -> Duration {
        let (base, each) = (Duration::from_secs(600), Duration::from_secs(30));
        let times = match self {
            Self::Creation | Self::Rivals | Self::Calls | Self::Files | Self::Ports | Self::Network => {
                4 * line.repeat
            }
            Self::Memory | Self::Alive | Self::Burst => 2 * line.sandboxes.unwrap_or(100),
            // A few pulls, whatever it is told, and images to be made.
            Self::Images => 60,
            Self::Soak => line.cycles.unwrap_or(1000),
        };
        base + each * times
    }
}

impl Line {
    /// What is to be run, in the order in which it is, each once.
    pub(crate) fn scenarios(&self) -> Result<Vec<Scenario>, LineError> {
        use Scenario::*;
        let mut scenarios = match (self.only.as_slice(), &self.url) {
            ([], _) if self.cycles.is_some() => vec![Soak],
            ([], None) => vec![Creation, Rivals, Calls, Files, Ports, Network, Memory, Alive, Burst],
            ([], Some(_)) => vec![Creation, Calls, Files, Alive, Burst],
            (only, _) => only.to_vec(),
        };
        scenarios.sort_unstable();
        scenarios.dedup();
        let any = |wanted: &[Scenario]| wanted.iter().any(|scenario| scenarios.contains(scenario));
        let for_soak = [("--cycles", self.cycles), ("--concurrency", self.concurrency)];
        match for_soak.into_iter().find(|(_, given)| given.is_some()) {
            Some((name, _)) if !any(&[Soak]) => return Err(LineError::NoSoak(name)),
            _ => {}
        }
        if self.sandboxes.is_some() && !any(&[Memory, Alive, Burst, Rivals]) {
            return Err(LineError::NoCount);
        }
        let of_its_own = [Ports, Network, Memory, Images].into_iter().find(|scenario| any(&[*scenario]));
        if let Some(scenario) = of_its_own.filter(|_| self.url.is_some()) {
            return Err(LineError::NotOurs(scenario.name()));
        }
        Ok(scenarios)
    }
}

fn block(text: &str) -> Result<String, &'static str> {
    let sound = !text.is_empty() && text.chars().all(|letter| letter.is_ascii_lowercase());
    sound.then(|| text.to_owned()).ok_or("it must consist of lower-case letters")
}

fn url(text: &str) -> Result<String, &'static str> {
    let sound = text.starts_with("http://") || text.starts_with("https://");
    sound.then(|| text.to_owned()).ok_or("it must begin with http:// or https://")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        line: Line,
    }

    fn scenarios(args: &str) -> Result<Vec<Scenario>, LineError> {
        parse(args).unwrap().scenarios()
    }

    fn parse(args: &str) -> Result<Line, clap::Error> {
        Ok(Whole::try_parse_from(std::iter::once("bench").chain(args.split_whitespace()))?.line)
    }

    #[test]
    fn all_but_images_and_the_soak_is_run_unless_told_otherwise() {
        use Scenario::*;
        assert_eq!(
            scenarios("").unwrap(),
            [Creation, Rivals, Calls, Files, Ports, Network, Memory, Alive, Burst]
        );
        assert_eq!(scenarios("--only burst,creation,burst").unwrap(), [Creation, Burst]);
        assert_eq!(scenarios("--only soak --only calls").unwrap(), [Calls, Soak]);
        assert_eq!(scenarios("--only images").unwrap(), [Images]);
        assert_eq!(
            scenarios("--url http://127.0.0.1:1/mcp").unwrap(),
            [Creation, Calls, Files, Alive, Burst]
        );
    }

    #[test]
    fn cycles_alone_are_the_soak() {
        assert_eq!(scenarios("--cycles 200").unwrap(), [Scenario::Soak]);
        assert_eq!(scenarios("--cycles 200 --concurrency 8").unwrap(), [Scenario::Soak]);
    }

    #[test]
    fn what_would_have_no_effect_is_refused() {
        assert_eq!(scenarios("--only calls --cycles 5"), Err(LineError::NoSoak("--cycles")));
        assert_eq!(scenarios("--concurrency 8"), Err(LineError::NoSoak("--concurrency")));
        assert_eq!(scenarios("--only calls --sandboxes 5"), Err(LineError::NoCount));
        for only in ["ports", "network", "memory", "images"] {
            let line = format!("--only {only} --url http://127.0.0.1:1/mcp");
            assert_eq!(scenarios(&line), Err(LineError::NotOurs(only)));
        }
        assert!(scenarios("--only alive --sandboxes 5").is_ok());
    }

    #[test]
    fn values_have_limits() {
        for good in [
            "--repeat 1",
            "--repeat 1000",
            "--sandboxes 256",
            "--cycles 1000000",
            "--cycles 1 --concurrency 64",
            "--markdown page.md --block images",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "--repeat 0",
            "--repeat 1001",
            "--sandboxes 257",
            "--sandboxes 0",
            "--cycles 0",
            "--cycles 1000001",
            "--concurrency 65",
            "--block images",
            "--markdown page.md --block a-b",
            "--only everything",
            "--url 127.0.0.1:8080",
            "--only",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
