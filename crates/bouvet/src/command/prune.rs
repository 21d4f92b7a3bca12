//! `bouvet prune`.

use std::io::{self, BufRead as _};
use std::time::{Duration, SystemTime};

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::{table, usage};
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
    /// Also remove persistent sandboxes, with all their files
    #[arg(short, long)]
    all: bool,
    /// Only those that are older than this age, or have this label
    #[arg(long, value_name = "until=AGE|label=NAME[=VALUE]|label!=NAME[=VALUE]")]
    filter: Vec<String>,
}

/// Which are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Until(Duration),
    /// Name and value, and whether it must be there.
    Label(String, Option<String>, bool),
}

fn filter(text: &str) -> Result<Filter, Failed> {
    let wrong = || {
        usage::wrong(
            "--filter",
            text,
            "`until=24h`, `label=NAME[=VALUE]` and `label!=NAME[=VALUE]` are allowed",
        )
    };
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let label = |wanted| match value.split_once('=') {
        Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned()), wanted),
        None => Filter::Label(value.to_owned(), None, wanted),
    };
    match name {
        "until" => humantime::parse_duration(value).map(Filter::Until).map_err(|_| wrong()),
        "label" => Ok(label(true)),
        "label!" => Ok(label(false)),
        _ => Err(wrong()),
    }
}

impl Filter {
    fn takes(&self, view: &SandboxView, now: SystemTime) -> bool {
        match self {
            Self::Until(age) => humantime::parse_rfc3339(&view.created_at)
                .is_ok_and(|made| now.duration_since(made).is_ok_and(|old| old >= *age)),
            Self::Label(name, value, wanted) => {
                let found = view.labels.get(name);
                let is_there = found.is_some() && value.as_ref().is_none_or(|value| found == Some(value));
                is_there == *wanted
            }
        }
    }
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.filter.iter().try_for_each(|text| filter(text).map(drop))
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let filters: Vec<_> = line.filter.iter().map(|text| filter(text)).collect::<Result<_, _>>()?;
    let also = if line.all { ", also persistent ones with all that they hold" } else { "" };
    if !line.force && !confirm(&format!("WARNING! This will remove all stopped sandboxes{also}."))? {
        return Ok(0);
    }
    remove(connection, line.all, &filters).await
}

/// Removes sandboxes that hold no VM.
async fn remove(connection: &Connection, all: bool, filters: &[Filter]) -> Result<u8, Failed> {
    let views: Vec<SandboxView> = connection.client.get(&path(&["sandboxes"], &[("all", "true")])).await?;
    let now = SystemTime::now();
    let is_meant = |view: &&SandboxView| {
        let is_down = matches!(view.state.as_str(), "created" | "stopped" | "failed") && !view.restarting;
        is_down && filters.iter().all(|filter| filter.takes(view, now))
    };
    let (mut kept, mut code) = (0, 0);
    for view in views.iter().filter(is_meant) {
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
        table::note(&format!("{kept} persistent sandboxes are kept: `bouvet prune --all` removes them"));
    }
    Ok(code)
}

/// Removes all sandboxes that hold no VM and are not persistent.
pub(super) async fn stopped(connection: &Connection) -> Result<u8, Failed> {
    remove(connection, false, &[]).await
}

/// Asks whether something is meant. Without an answer it is not.
pub(super) fn confirm(warning: &str) -> Result<bool, Failed> {
    table::note(&format!("{warning}\nAre you sure you want to continue? [y/N]"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn filters_take_ages_and_labels() {
        let view = SandboxView {
            created_at: "1970-01-01T00:00:00Z".into(),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..SandboxView::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(3600);
        for (text, takes) in [
            ("until=1h", true),
            ("until=3601s", false),
            ("label=a", true),
            ("label=a=1", true),
            ("label=a=2", false),
            ("label!=a", false),
            ("label!=a=2", true),
            ("label!=b", true),
        ] {
            assert_eq!(filter(text).unwrap().takes(&view, now), takes, "{text}");
        }
        for wrong in ["", "until", "until=soon", "name=x"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }
}
