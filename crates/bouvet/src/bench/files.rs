//! Files through `write_file` and `read_file` and as plain bodies, against what the link does without MCP and without a disk.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bouvet_host::{Host, HostOptions, Sandbox};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::Run;
use super::report::{Unit, ms};
use super::session::{Agent, CALL_DEADLINE};

const MB: usize = 1_000_000;
/// What one call writes, and what one reads: answers carry their content twice.
const WRITE_BYTES: usize = 10 * MB;
const READ_BYTES: usize = 4 * MB;
/// The large file takes long, and shows in a few runs what it has to show.
const MAX_LARGE_RUNS: u32 = 3;
/// In the guest's memory. It has no room for the large file, so that its parts replace each other.
const FILE_WITHOUT_DISK: &str = "/dev/shm/bench";

struct Size {
    id: &'static str,
    name: &'static str,
    bytes: usize,
}

const SIZES: [Size; 2] =
    [Size { id: "1mb", name: "1 MB", bytes: MB }, Size { id: "100mb", name: "100 MB", bytes: 100 * MB }];

/// Megabytes a second of each run, writing and reading.
#[derive(Default)]
struct Rates {
    write: Vec<f64>,
    read: Vec<f64>,
}

impl Rates {
    fn add(&mut self, bytes: usize, write: Duration, read: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |time| bytes as f64 / 1000.0 / ms(time);
        self.write.push(rate(write));
        self.read.push(rate(read));
    }
}

/// Moves files of each size both ways.
pub(super) async fn files(run: &mut Run) -> anyhow::Result<()> {
    let server = run.server(&[]).await?;
    server.warm().await?;
    let sandbox = server.agent.create().await?;
    server.quiet().await?;
    through_mcp(&server.agent, &sandbox, MB).await?;
    let plain = server.file_url(&sandbox, "big");
    for Size { id, name, bytes } in SIZES {
        let (mut rates, mut plain_rates) = (Rates::default(), Rates::default());
        let repeat = repeat(run, bytes);
        for time in 1..=repeat {
            run.say(format!("{name} file: {time} of {repeat}"));
            let (write, read) = through_mcp(&server.agent, &sandbox, bytes).await?;
            rates.add(bytes, write, read);
            let (write, read) = through_http(&plain, bytes).await?;
            plain_rates.add(bytes, write, read);
        }
        let unit = Unit::MbPerSecond;
        run.report.add(&format!("write-{id}"), &format!("write_file {name}"), unit, rates.write);
        run.report.add(&format!("read-{id}"), &format!("read_file {name}"), unit, rates.read);
        run.report.add(&format!("put-{id}"), &format!("PUT of a {name} file"), unit, plain_rates.write);
        run.report.add(&format!("get-{id}"), &format!("GET of a {name} file"), unit, plain_rates.read);
    }
    server.agent.destroy(&sandbox).await?;
    server.end().await?;
    match run.line.url {
        Some(_) => run.report.skip("the link alone", "the server is not ours"),
        None => link(run).await?,
    }
    Ok(())
}

fn repeat(run: &Run, bytes: usize) -> u32 {
    if bytes > WRITE_BYTES { run.line.repeat.min(MAX_LARGE_RUNS) } else { run.line.repeat }
}

/// Writes and reads a file in parts of at most what one call takes.
async fn through_mcp(agent: &Agent, sandbox: &str, bytes: usize) -> anyhow::Result<(Duration, Duration)> {
    let part = "x".repeat(bytes.min(WRITE_BYTES));
    let started = Instant::now();
    for offset in (0..bytes).step_by(WRITE_BYTES) {
        let arguments =
            json!({ "sandbox_id": sandbox, "path": "big", "content": part, "append": offset > 0 });
        agent.call("write_file", arguments).await?;
    }
    let wrote = started.elapsed();
    let started = Instant::now();
    let mut read = 0;
    while read < bytes {
        let arguments =
            json!({ "sandbox_id": sandbox, "path": "big", "offset": read, "limit_bytes": READ_BYTES });
        let part = length(&agent.call("read_file", arguments).await?)?;
        ensure!(part > 0, "the file ended after {read} of {bytes} bytes");
        read += part;
    }
    ensure!(read == bytes, "{read} bytes were read of a file of {bytes}");
    Ok((wrote, started.elapsed()))
}

/// Writes and reads a file as the body of one request.
async fn through_http(url: &str, bytes: usize) -> anyhow::Result<(Duration, Duration)> {
    crate::client::prepare_tls();
    let client = reqwest::Client::builder().timeout(CALL_DEADLINE).build()?;
    let part = Bytes::from(vec![b'x'; MB]);
    let parts = stream::iter(vec![part; bytes / MB]).map(Ok::<_, Infallible>);
    let started = Instant::now();
    let body = reqwest::Body::wrap_stream(parts);
    client.put(url).body(body).send().await?.error_for_status()?.bytes().await?;
    let wrote = started.elapsed();
    let started = Instant::now();
    let mut answer = client.get(url).send().await?.error_for_status()?;
    let mut read = 0;
    while let Some(part) = answer.chunk().await? {
        read += part.len();
    }
    ensure!(read == bytes, "{read} bytes were read of a file of {bytes}");
    Ok((wrote, started.elapsed()))
}

fn length(content: &Value) -> anyhow::Result<usize> {
    let text = content["content"].as_str().context("content")?;
    match content["is_base64"].as_bool() {
        Some(true) => Ok(STANDARD.decode(text)?.len()),
        _ => Ok(text.len()),
    }
}

/// The same amounts by the library that the server is made of, to a file in the guest's memory: what is left
/// is the link.
async fn link(run: &mut Run) -> anyhow::Result<()> {
    let host = Host::start(HostOptions { pool: None, ..run.config.host.clone() }).await?;
    let measured = link_of(run, &host).await;
    host.shut_down().await;
    measured
}

async fn link_of(run: &mut Run, host: &Host) -> anyhow::Result<()> {
    let sandbox = host.create(run.config.sandbox.clone()).await?;
    through_link(&sandbox, MB).await?;
    for Size { id, name, bytes } in SIZES {
        let mut rates = Rates::default();
        let repeat = repeat(run, bytes);
        for time in 1..=repeat {
            run.say(format!("{name} over the link alone: {time} of {repeat}"));
            let (write, read) = through_link(&sandbox, bytes).await?;
            rates.add(bytes, write, read);
        }
        let (unit, link) = (Unit::MbPerSecond, "over the link alone");
        run.report.add(&format!("link-write-{id}"), &format!("write {name} {link}"), unit, rates.write);
        run.report.add(&format!("link-read-{id}"), &format!("read {name} {link}"), unit, rates.read);
    }
    Ok(())
}

async fn through_link(sandbox: &Sandbox, bytes: usize) -> anyhow::Result<(Duration, Duration)> {
    let part = Bytes::from(vec![b'x'; bytes.min(WRITE_BYTES)]);
    let parts = bytes / part.len();
    let started = Instant::now();
    for _ in 0..parts {
        sandbox.write(FILE_WITHOUT_DISK, part.clone(), false).await?;
    }
    let wrote = started.elapsed();
    let started = Instant::now();
    for _ in 0..parts {
        let mut read = 0;
        while read < part.len() {
            let content = sandbox.read(FILE_WITHOUT_DISK, read as u64, READ_BYTES).await?;
            ensure!(!content.bytes.is_empty(), "the file ended after {read} bytes");
            read += content.bytes.len();
        }
    }
    Ok((wrote, started.elapsed()))
}
