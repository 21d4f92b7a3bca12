//! `bouvet stats`.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::outcome::{Connection, Failed};
use super::table;
use super::template::Format;
use crate::api::client::path;
use crate::api::shape::{SandboxView, StatsView};

/// Between two looks, from which the use of CPUs comes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Clears a terminal (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

/// What fields of a template are called above their column.
const HEADS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Container", "CONTAINER"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("PIDs", "PIDS"),
];

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Print once and exit
    #[arg(long)]
    no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Go template for each line, `table TEMPLATE`, or `json`: ID, Name, Container, CPUPerc, MemUsage, MemPerc, PIDs
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Sandboxes [default: all running ones]
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// What one sandbox uses.
#[derive(Debug, Clone, Serialize)]
struct Use {
    id: String,
    name: String,
    /// Of one CPU.
    cpu_percent: f64,
    #[serde(flatten)]
    stats: StatsView,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let mut before = look(line, connection).await?;
    loop {
        let since = Instant::now();
        tokio::time::sleep(INTERVAL).await;
        let now = look(line, connection).await?;
        let uses: Vec<_> =
            now.iter().map(|(view, stats)| use_of(view, *stats, &before, since.elapsed())).collect();
        show(line, &uses)?;
        if line.no_stream {
            return Ok(0);
        }
        before = now;
    }
}

async fn look(line: &Line, connection: &Connection) -> Result<Vec<(SandboxView, StatsView)>, Failed> {
    let client = &connection.client;
    let mut views: Vec<SandboxView> = Vec::new();
    for name in &line.sandboxes {
        views.push(client.get(&path(&["sandboxes", name], &[])).await?);
    }
    if line.sandboxes.is_empty() {
        views = client.get(&path(&["sandboxes"], &[])).await?;
        views.retain(|view| view.state == "running");
    }
    let mut seen = Vec::new();
    for view in views {
        match client.get(&path(&["sandboxes", &view.id, "stats"], &[])).await {
            Ok(stats) => seen.push((view, stats)),
            // It may have ended meanwhile, unless it was asked for.
            Err(error) if !line.sandboxes.is_empty() => {
                return Err(Failed::from(error).of_sandbox(&view.name));
            }
            Err(_) => {}
        }
    }
    Ok(seen)
}

fn use_of(
    view: &SandboxView,
    stats: StatsView,
    before: &[(SandboxView, StatsView)],
    elapsed: Duration,
) -> Use {
    let earlier =
        before.iter().find(|(other, _)| other.id == view.id).map_or(stats.cpu_us, |(_, stats)| stats.cpu_us);
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
    let percent = stats.cpu_us.saturating_sub(earlier) as f64 / elapsed.as_micros().max(1) as f64 * 100.0;
    let cpu_percent = (percent * 100.0).round() / 100.0;
    Use { id: view.id.clone(), name: view.name.clone(), cpu_percent, stats }
}

fn show(line: &Line, uses: &[Use]) -> Result<(), Failed> {
    if line.json {
        return table::json(&uses);
    }
    if !line.no_stream && io::stdout().is_terminal() {
        write!(io::stdout(), "{CLEAR}")?;
    }
    match line.template()? {
        Some(format) => {
            let rows: Vec<_> = uses.iter().map(|one| fields(one, line.no_trunc)).collect();
            format.print(HEADS, &rows)
        }
        None => {
            let rows = uses.iter().map(|one| row(one, line.no_trunc).into()).collect();
            table::print(&["ID", "NAME", "CPU", "MEMORY / LIMIT", "MEMORY", "PIDS / LIMIT"], rows)
        }
    }
}

/// What one sandbox uses, as templates have it.
fn fields(one: &Use, full: bool) -> Value {
    let [id, name, cpu, memory, share, _] = row(one, full);
    json!({
        "ID": id,
        "Name": name,
        "Container": id,
        "CPUPerc": cpu,
        "MemUsage": memory,
        "MemPerc": share,
        "PIDs": one.stats.pids,
    })
}

fn row(one: &Use, full: bool) -> [String; 6] {
    let stats = one.stats;
    let share = stats.memory_bytes.saturating_mul(1000) / stats.memory_limit_bytes.max(1);
    [
        one.id.get(..8).filter(|_| !full).unwrap_or(&one.id).to_owned(),
        one.name.clone(),
        format!("{:.2}%", one.cpu_percent),
        format!("{} / {}", table::size(stats.memory_bytes), table::size(stats.memory_limit_bytes)),
        format!("{}.{}%", share / 10, share % 10),
        format!("{} / {}", stats.pids, stats.pids_limit),
    ]
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.template().map(drop)
    }

    fn template(&self) -> Result<Option<Format>, Failed> {
        Ok(self.format.as_deref().map(Format::parse).transpose()?.flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_use_of_cpus_is_counted_between_two_looks() {
        let stats =
            |cpu_us| StatsView { cpu_us, memory_bytes: 1, memory_limit_bytes: 2, pids: 3, pids_limit: 4 };
        let view = SandboxView { id: "a".into(), ..SandboxView::default() };
        let before = [(view.clone(), stats(1_000_000))];
        let percent = |now| use_of(&view, stats(now), &before, Duration::from_secs(2)).cpu_percent;
        assert!((percent(2_000_000) - 50.0).abs() < 0.01);
        assert!(percent(0).abs() < 0.01, "it was started anew");
    }

    #[test]
    fn uses_have_dockers_fields() {
        let stats = StatsView {
            cpu_us: 0,
            memory_bytes: 1 << 20,
            memory_limit_bytes: 4 << 20,
            pids: 3,
            pids_limit: 4,
        };
        let one = Use { id: "0123456789".into(), name: "web".into(), cpu_percent: 1.5, stats };
        let fields = fields(&one, false);
        let Ok(Some(Format::Plain(template))) =
            Format::parse("{{.ID}} {{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.PIDs}}")
        else {
            panic!("it is a template")
        };
        assert_eq!(template.render(&fields).unwrap(), "01234567 web 1.50% 1.0 MiB / 4.0 MiB 25.0% 3");
        assert_eq!(super::fields(&one, true)["ID"], "0123456789");
        for (head, _) in HEADS {
            assert!(fields.get(head).is_some(), "{head}");
        }
    }
}
