//! `bouvet system`.

use clap::{Args, Subcommand};

use super::filter::PruneFilter;
use super::outcome::{Connection, Failed};
use super::{Command, events, image, info, network, prune};

#[derive(Debug, Subcommand)]
pub(crate) enum Line {
    /// Show events of sandboxes as they happen
    Events(events::Line),
    /// Show the server's engine, limits and paths
    Info(info::Line),
    /// Remove stopped sandboxes, and networks that no sandbox is on
    Prune(PruneLine),
}

#[derive(Debug, Args)]
#[command(after_help = "Persistent sandboxes are kept: `bouvet prune --all` removes them.")]
pub(crate) struct PruneLine {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Also remove images that no sandbox uses
    #[arg(short, long)]
    all: bool,
    /// Remove only what is older than this age, or has this label; networks have no labels
    #[arg(long, value_name = "until=AGE|label=NAME[=VALUE]|label!=NAME[=VALUE]")]
    filter: Vec<String>,
}

impl Line {
    /// The command that it is.
    pub(super) fn command(self) -> Command {
        match self {
            Self::Events(line) => Command::Events(line),
            Self::Info(line) => Command::Info(line),
            Self::Prune(line) => Command::SystemPrune(line),
        }
    }
}

impl PruneLine {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        PruneFilter::all(&self.filter).map(drop)
    }
}

pub(super) async fn prune(line: &PruneLine, connection: &Connection) -> Result<u8, Failed> {
    let filters = PruneFilter::all(&line.filter)?;
    let (and, images) = if line.all { (",", ", and all images that no sandbox uses") } else { (", and", "") };
    let warning = format!(
        "WARNING! This will remove all stopped sandboxes but persistent ones{and} all networks that no sandbox is on{images}."
    );
    if !line.force && !prune::confirm(&warning)? {
        return Ok(0);
    }
    let code = prune::stopped(connection, &filters).await?;
    network::remove_unused(connection, &filters).await?;
    if line.all {
        image::remove_unused(true, &filters, connection).await?;
    }
    Ok(code)
}
