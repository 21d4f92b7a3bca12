//! `bouvet bench`: times of calls as an MCP client over HTTP sees them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Client, ServerProcess};

const MB: usize = 1_000_000;
/// What one call writes, and what one reads: answers carry their content twice.
const WRITE_BYTES: usize = 10 * MB;
const READ_BYTES: usize = 4 * MB;

/// What a run can be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Line {
    /// Server to measure, like http://127.0.0.1:8080/mcp; one is started if this is left out
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<std::path::PathBuf>,
    /// Create and destroy this many sandboxes, and report what the machine had before and after
    #[arg(long, value_name = "N")]
    pub(crate) cycles: Option<u32>,
}

/// What was measured of one thing.
#[derive(Debug, Serialize)]
struct Row {
    scenario: String,
    runs: usize,
    p50_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// In megabytes a second, for transfers.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_mb_s: Option<f64>,
}

/// The ways to make a sandbox, and what a server is told to have only that.
const WAYS: [(&str, &[(&str, &str)]); 3] = [
    ("booted", &[("BOUVET_TEMPLATES", "off")]),
    ("cloned", &[("BOUVET_POOL_ENABLED", "false")]),
    ("from the pool", &[("BOUVET_POOL_ENABLED", "true")]),
];

pub(crate) async fn run(line: Line) -> anyhow::Result<()> {
    let progress = indicatif::ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut rows = Vec::new();
    if let Some(url) = &line.url {
        let mut bench = Bench::start(url, None, &progress).await?;
        match line.cycles {
            Some(cycles) => bench.cycles(cycles).await?,
            None => {
                bench.creations("", line.repeat).await?;
                bench.calls(line.repeat).await?;
            }
        }
        rows.append(&mut bench.end().await?);
    } else if let Some(cycles) = line.cycles {
        let server = ServerProcess::start(&[]).await?;
        let mut bench = Bench::start(&server.url(), Some(server), &progress).await?;
        bench.cycles(cycles).await?;
        rows.append(&mut bench.end().await?);
    } else {
        for (way, variables) in WAYS {
            let server = ServerProcess::start(variables).await?;
            let mut bench = Bench::start(&server.url(), Some(server), &progress).await?;
            bench.creations(way, line.repeat).await?;
            if way == "from the pool" {
                bench.calls(line.repeat).await?;
            }
            rows.append(&mut bench.end().await?);
        }
    }
    progress.finish_and_clear();
    print(&table(&rows))?;
    if let Some(path) = line.json {
        std::fs::write(&path, serde_json::to_vec_pretty(&rows)?)
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

struct Bench<'a> {
    client: Client,
    /// The server, if it is ours.
    server: Option<ServerProcess>,
    rows: Vec<Row>,
    progress: &'a indicatif::ProgressBar,
}

impl<'a> Bench<'a> {
    async fn start(
        url: &str,
        server: Option<ServerProcess>,
        progress: &'a indicatif::ProgressBar,
    ) -> anyhow::Result<Self> {
        Ok(Self { client: Client::connect(url).await?, server, rows: Vec::new(), progress })
    }

    async fn end(self) -> anyhow::Result<Vec<Row>> {
        self.client.close().await;
        if let Some(server) = self.server {
            server.stop().await?;
        }
        Ok(self.rows)
    }

    /// Creates sandboxes one after the other, each when the server has made ready what it makes ready, and runs
    /// a first program in each.
    async fn creations(&mut self, way: &str, repeat: u32) -> anyhow::Result<()> {
        // The first may have to build a template.
        let first = self.create().await?;
        self.destroy(&first).await?;
        let (mut creates, mut results) = (Vec::new(), Vec::new());
        for _ in 0..repeat {
            self.progress.set_message(format!("create_sandbox, {way}"));
            if let Some(server) = &self.server {
                server.wait_until_pooled().await?;
            }
            let started = Instant::now();
            let sandbox = self.create().await?;
            creates.push(started.elapsed());
            let arguments = json!({ "sandbox_id": sandbox, "language": "python", "code": "print(1)" });
            let outcome = self.client.call("execute_code", arguments).await?;
            anyhow::ensure!(outcome["stdout"] == "1\n", "print(1): {outcome}");
            results.push(started.elapsed());
            self.destroy(&sandbox).await?;
        }
        let named = |what: &str| format!("{what}, {way}").trim_end_matches(", ").to_owned();
        self.rows.push(row(&named("create_sandbox"), &mut creates, None));
        self.rows.push(row(&named("create_sandbox and the first print(1)"), &mut results, None));
        Ok(())
    }

    async fn create(&mut self) -> anyhow::Result<String> {
        let created = self.client.call("create_sandbox", json!({})).await?;
        created["sandbox_id"].as_str().map(str::to_owned).context("no sandbox was created")
    }

    async fn calls(&mut self, repeat: u32) -> anyhow::Result<()> {
        let sandbox = self.create().await?;
        if let Some(server) = &self.server {
            // What it makes ready would take the processor from what is measured.
            server.wait_until_pooled().await?;
        }
        self.commands(&sandbox, repeat).await?;
        for (name, bytes, repeat) in [("1 MB", MB, repeat), ("100 MB", 100 * MB, repeat.div_ceil(3))] {
            self.transfer(&sandbox, name, bytes, repeat).await?;
        }
        self.destroy(&sandbox).await?;
        Ok(())
    }

    async fn commands(&mut self, sandbox: &str, repeat: u32) -> anyhow::Result<()> {
        for (scenario, tool, arguments) in [
            ("run_command true", "run_command", json!({ "command": "true" })),
            (
                "run_command python3 -c 'print(1)'",
                "run_command",
                json!({ "command": "python3 -c 'print(1)'" }),
            ),
            (
                "execute_code python print(1)",
                "execute_code",
                json!({ "language": "python", "code": "print(1)" }),
            ),
            (
                "execute_code node console.log(1)",
                "execute_code",
                json!({ "language": "node", "code": "console.log(1)" }),
            ),
            ("execute_code bash echo 1", "execute_code", json!({ "language": "bash", "code": "echo 1" })),
            (
                "execute_code rust println!(\"1\")",
                "execute_code",
                json!({ "language": "rust", "code": "fn main() { println!(\"1\") }" }),
            ),
        ] {
            let mut times = Vec::new();
            // The first run of each pages its program in and translates it; it is reported by itself.
            for run in 0..=repeat {
                self.progress.set_message(scenario.to_owned());
                let mut arguments = arguments.clone();
                arguments["sandbox_id"] = Value::from(sandbox);
                let started = Instant::now();
                let outcome = self.client.call(tool, arguments).await?;
                anyhow::ensure!(outcome["exit_code"] == 0, "{scenario}: {outcome}");
                match run {
                    0 => self.rows.push(row(&format!("{scenario}, first"), &mut [started.elapsed()], None)),
                    _ => times.push(started.elapsed()),
                }
            }
            self.rows.push(row(&format!("{scenario}, later"), &mut times, None));
        }
        Ok(())
    }

    /// Writes and reads a file in parts of at most what one call takes.
    async fn transfer(&mut self, sandbox: &str, name: &str, bytes: usize, repeat: u32) -> anyhow::Result<()> {
        let part = "x".repeat(bytes.min(WRITE_BYTES));
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..repeat {
            self.progress.set_message(format!("{name} file"));
            let started = Instant::now();
            for offset in (0..bytes).step_by(WRITE_BYTES) {
                let arguments =
                    json!({ "sandbox_id": sandbox, "path": "big", "content": part, "append": offset > 0 });
                self.client.call("write_file", arguments).await?;
            }
            writes.push(started.elapsed());
            let started = Instant::now();
            let mut read = 0;
            while read < bytes {
                let arguments = json!({ "sandbox_id": sandbox, "path": "big", "offset": read, "limit_bytes": READ_BYTES });
                let content = self.client.call("read_file", arguments).await?;
                read += length(&content)?;
            }
            reads.push(started.elapsed());
            anyhow::ensure!(read == bytes, "{read} of {bytes} bytes were read");
        }
        self.rows.push(row(&format!("write_file {name}"), &mut writes, Some(bytes)));
        self.rows.push(row(&format!("read_file {name}"), &mut reads, Some(bytes)));
        Ok(())
    }

    /// Creates and destroys sandboxes, and looks at what that leaves behind on this machine.
    async fn cycles(&mut self, cycles: u32) -> anyhow::Result<()> {
        // The first fills caches that are meant to stay.
        let first = self.create().await?;
        self.destroy(&first).await?;
        let before = self.footprint().await?;
        let (mut creates, mut destroys) = (Vec::new(), Vec::new());
        for cycle in 0..cycles {
            self.progress.set_message(format!("cycle {cycle} of {cycles}"));
            let started = Instant::now();
            let sandbox = self.create().await?;
            creates.push(started.elapsed());
            let started = Instant::now();
            self.destroy(&sandbox).await?;
            destroys.push(started.elapsed());
        }
        let after = self.footprint().await?;
        self.rows.push(row("create_sandbox, one after the other", &mut creates, None));
        self.rows.push(row("destroy_sandbox", &mut destroys, None));
        self.progress.suspend(|| {
            print(&format!("before {cycles} cycles: {before}\nafter  {cycles} cycles: {after}\n"))
        })
    }

    async fn footprint(&self) -> anyhow::Result<Footprint> {
        match &self.server {
            Some(server) => {
                server.wait_until_pooled().await?;
                Footprint::now(Some(server.pid()))
            }
            None => Footprint::now(None),
        }
    }

    async fn destroy(&mut self, sandbox: &str) -> anyhow::Result<()> {
        self.client.call("destroy_sandbox", json!({ "sandbox_id": sandbox })).await.map(drop)
    }
}

fn length(content: &Value) -> anyhow::Result<usize> {
    let text = content["content"].as_str().context("content")?;
    match content["is_base64"].as_bool() {
        Some(true) => Ok(STANDARD.decode(text)?.len()),
        _ => Ok(text.len()),
    }
}

/// What the machine and the server hold.
#[derive(Debug)]
struct Footprint {
    processes: usize,
    vmms: usize,
    server_rss_mb: Option<f64>,
    server_fds: Option<usize>,
    server_threads: Option<usize>,
}

impl Footprint {
    fn now(server: Option<u32>) -> anyhow::Result<Self> {
        let pids: Vec<String> = std::fs::read_dir("/proc")?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        let is_vmm = |pid: &&String| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with("qemu-system"))
        };
        let status = server.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let field = |name: &str| {
            let line = status.as_deref()?.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let count = |dir: &str| {
            server.and_then(|pid| Some(std::fs::read_dir(format!("/proc/{pid}/{dir}")).ok()?.count()))
        };
        Ok(Self {
            processes: pids.len(),
            vmms: pids.iter().filter(is_vmm).count(),
            server_rss_mb: field("VmRSS:").map(|kib| kib / 1024.0),
            server_fds: count("fd"),
            server_threads: count("task"),
        })
    }
}

impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} processes, {} VMMs", self.processes, self.vmms)?;
        if let (Some(rss), Some(fds), Some(threads)) =
            (self.server_rss_mb, self.server_fds, self.server_threads)
        {
            write!(f, "; server: {rss:.1} MiB resident, {fds} descriptors, {threads} threads")?;
        }
        Ok(())
    }
}

fn row(scenario: &str, times: &mut [Duration], bytes: Option<usize>) -> Row {
    times.sort();
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    let p50_ms = ms(times.get(times.len() / 2));
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate_mb_s = bytes.map(|bytes| bytes as f64 / 1000.0 / p50_ms);
    Row {
        scenario: scenario.to_owned(),
        runs: times.len(),
        p50_ms,
        min_ms: ms(times.first()),
        max_ms: ms(times.last()),
        rate_mb_s,
    }
}

fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| scenario | runs | p50 ms | min ms | max ms | MB/s |\n|---|---|---|---|---|---|\n");
    for Row { scenario, runs, p50_ms, min_ms, max_ms, rate_mb_s } in rows {
        let rate = rate_mb_s.map_or_else(String::new, |rate| format!("{rate:.0}"));
        // Writing to a string cannot fail.
        writeln!(text, "| {scenario} | {runs} | {p50_ms:.1} | {min_ms:.1} | {max_ms:.1} | {rate} |").ok();
    }
    text
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("could not print")
}
