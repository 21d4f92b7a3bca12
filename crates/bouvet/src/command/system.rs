//! `bouvet system`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::without_server::WithoutServer;
use super::{image, info, prune, table};
use crate::api::client::{CallError, path};
use crate::api::shape::NamedNetworkView;

/// Verbs of the whole server.
#[derive(Debug, Subcommand)]
pub(crate) enum Line {
    /// Remove stopped sandboxes, and networks that no sandbox is on
    Prune(Prune),
    /// Show what the server is and what it has, as `bouvet info`
    Info(info::Line),
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Images too that no sandbox uses
    #[arg(short, long)]
    all: bool,
}

impl Line {
    /// The rule where no server answers.
    pub(super) fn without_server(&self) -> WithoutServer {
        match self {
            Self::Prune(_) => WithoutServer::Works,
            Self::Info(_) => WithoutServer::Fails,
        }
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    match line {
        Line::Prune(line) => line.run(connection).await,
        Line::Info(line) => info::run(line, connection).await,
    }
}

impl Prune {
    async fn run(&self, connection: &Connection) -> Result<u8, Failed> {
        let images = if self.all { ", and all images that no sandbox uses" } else { "" };
        let warning = format!(
            "WARNING! This will remove all stopped sandboxes but persistent ones, all networks that no sandbox is on{images}."
        );
        if !self.force && !prune::confirm(&warning)? {
            return Ok(0);
        }
        let client = &connection.client;
        let code = prune::stopped(connection).await?;
        let networks: Vec<NamedNetworkView> = client.get(&path(&["networks"], &[])).await?;
        for network in networks.iter().filter(|network| network.sandboxes.is_empty()) {
            let removed = client.act(Method::DELETE, &path(&["networks", &network.name], &[])).await;
            say(&network.name, removed)?;
        }
        if self.all {
            image::prune_all(connection).await?;
        }
        Ok(code)
    }
}

/// Names what was removed. What is used again in the meantime stays.
fn say(name: &str, removed: Result<(), CallError>) -> Result<(), Failed> {
    match removed {
        Ok(()) => table::line(name),
        Err(CallError::Refused(failure)) => {
            table::complain(&failure.into());
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
