//! `bouvet container`: docker's long forms.

use clap::Subcommand;

use super::outcome::{Connection, Failed};
use super::without_server::WithoutServer;
use super::{inspect, prune, ps, rm};

/// Verbs of sandboxes, in docker's long form.
#[derive(Debug, Subcommand)]
pub(crate) enum Line {
    /// List sandboxes, as `bouvet ps`
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Line),
    /// Remove sandboxes that are stopped, as `bouvet prune`
    Prune(prune::Line),
    /// Show all that is known of sandboxes, as `bouvet inspect`
    Inspect(inspect::Line),
    /// Remove sandboxes, as `bouvet rm`
    Rm(rm::Line),
}

impl Line {
    /// The rule of the short form.
    pub(super) fn without_server(&self) -> WithoutServer {
        match self {
            Self::Ls(line) if line.lists_stopped() => WithoutServer::Works,
            Self::Ls(_) => WithoutServer::Fails,
            Self::Prune(_) | Self::Inspect(_) | Self::Rm(_) => WithoutServer::WorksForStopped,
        }
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    match line {
        Line::Ls(line) => {
            line.check()?;
            ps::run(line, connection).await
        }
        Line::Prune(line) => {
            line.check()?;
            prune::run(line, connection).await
        }
        Line::Inspect(line) => {
            line.check()?;
            inspect::run(line, connection).await
        }
        Line::Rm(line) => rm::run(line, connection).await,
    }
}
