//! `bouvet prune`.

use std::io::{self, BufRead as _};
use std::time::SystemTime;

use clap::Args;
use hyper::Method;

use super::filter::PruneFilter;
use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::{CallError, path};
use crate::api::shape::SandboxView;

#[derive(Debug, Args)]
#[command(
    after_help = "Sandboxes that are stopped, have failed or were never started are removed. Persistent \
    sandboxes are removed only with --all."
)]
pub(crate) struct Line {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Also remove persistent sandboxes, with their files
    #[arg(short, long)]
    all: bool,
    /// Remove only sandboxes that are older than this age, or have this label
    #[arg(long, value_name = "until=AGE|label=NAME[=VALUE]|label!=NAME[=VALUE]")]
    filter: Vec<String>,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        PruneFilter::all(&self.filter).map(drop)
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let filters = PruneFilter::all(&line.filter)?;
    let also = if line.all { ", also persistent ones with their files" } else { " but persistent ones" };
    if !line.force && !confirm(&format!("WARNING! This will remove all stopped sandboxes{also}."))? {
        return Ok(0);
    }
    remove(connection, line.all, &filters).await
}

/// Removes sandboxes that hold no VM.
async fn remove(connection: &Connection, all: bool, filters: &[PruneFilter]) -> Result<u8, Failed> {
    let views: Vec<SandboxView> = connection.client.get(&path(&["sandboxes"], &[("all", "true")])).await?;
    let now = SystemTime::now();
    let is_meant = |view: &&SandboxView| {
        let is_down = matches!(view.state.as_str(), "created" | "stopped" | "failed") && !view.restarting;
        is_down && filters.iter().all(|filter| filter.takes(&view.created_at, &view.labels, now))
    };
    let (mut kept, mut code) = (0, 0);
    let meant: Vec<_> = views.iter().filter(is_meant).collect();
    if meant.is_empty() {
        table::note("there are no stopped sandboxes to remove");
    }
    for view in meant {
        if view.persistent && !all {
            kept += 1;
            continue;
        }
        match connection.client.act(Method::DELETE, &path(&["sandboxes", &view.id], &[])).await {
            Ok(()) => table::line(&view.id)?,
            // It is started or gone in the meantime.
            Err(CallError::Refused(failure)) if matches!(failure.kind.as_str(), "running" | "not_found") => {}
            Err(error) => {
                let failed = Failed::from(error);
                table::complain(&failed);
                code = failed.code;
            }
        }
    }
    if kept > 0 {
        let kept = if kept == 1 {
            "1 persistent sandbox is".into()
        } else {
            format!("{kept} persistent sandboxes are")
        };
        table::note(&format!("{kept} kept: `bouvet prune --all` removes persistent sandboxes"));
    }
    Ok(code)
}

/// Removes sandboxes that hold no VM, are not persistent and fit all `filters`.
pub(super) async fn stopped(connection: &Connection, filters: &[PruneFilter]) -> Result<u8, Failed> {
    remove(connection, false, filters).await
}

/// Asks whether something is meant. Nobody to answer is an error: a script would take it for a removal.
pub(super) fn confirm(warning: &str) -> Result<bool, Failed> {
    table::note(&format!("{warning}\nAre you sure you want to continue? [y/N]"));
    let mut answer = String::new();
    if io::stdin().lock().read_line(&mut answer)? == 0 {
        return Err(Failed::new("nothing was removed: standard input has no answer").hint("add `--force`"));
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
