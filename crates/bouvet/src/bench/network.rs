//! The network of a sandbox: a program in it, and a server on this machine's loopback. Beside it the same VM with the
//! networks of others.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::Run;
use super::report::{Unit, ms};
use super::user_network::{self, Rival};

/// The same for all whose network is measured.
pub(super) const CLIENT: &str = include_str!("network.py");
/// The gateway, by which all that are measured reach this machine.
const GATEWAY: &str = "10.0.2.2";
/// A multiple of what the client sends at once.
const BYTES: usize = 32 << 20;
/// Many bytes show in a few runs what they have to show.
const MAX_RUNS: u32 = 5;
const CONNECTIONS: u32 = 100;
const ANSWERS: u32 = 200;
/// As long as a call of `run_command` may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// A line of what the client prints.
#[derive(Debug, Deserialize)]
struct Figures {
    down: f64,
    up: f64,
    connections: f64,
    answer: f64,
}

/// The sandbox, and each rival in turn.
pub(super) async fn network(run: &mut Run) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(serve(listener));
    let measured = measure(run, port).await;
    serving.abort();
    measured
}

async fn measure(run: &mut Run, port: u16) -> anyhow::Result<()> {
    let repeat = run.line.repeat.min(MAX_RUNS);
    let local = answers(port).await?;
    run.report.add(
        "network-answer-local",
        "answer of a server on this machine, to it",
        Unit::Ms,
        vec![local],
    );
    let arguments = format!("{GATEWAY} {port} {repeat} {BYTES} {CONNECTIONS} {ANSWERS}");
    run.say("the network of a sandbox".to_owned());
    let printed = in_sandbox(run, port, &arguments).await?;
    add(run, "network", "of a sandbox", &printed, local)?;
    for rival in Rival::ALL {
        let name = rival.name();
        if let Some(reason) = rival.missing(&run.config.host.kernel) {
            run.report.skip(&format!("network: {name}"), reason);
            continue;
        }
        run.say(format!("the network of {name}"));
        let printed = user_network::run(run, rival, &arguments, DEADLINE).await.context(name)?;
        add(run, rival.id(), &format!("with {name}"), &printed, local)?;
        run.report.notes.push(format!("{name}: {}", rival.version().await));
    }
    Ok(())
}

async fn in_sandbox(run: &mut Run, port: u16, arguments: &str) -> anyhow::Result<String> {
    let rule = format!("host:{port}");
    let server = run.server(&[("BOUVET_ALLOWED_EGRESS", &rule)]).await?;
    server.warm().await?;
    let wanted = json!({ "network": "tsi", "allow": [rule] });
    let created = server.agent.call("create_sandbox", wanted).await?;
    let sandbox = created["sandbox_id"].as_str().context("no sandbox was created")?.to_owned();
    let content = json!({ "sandbox_id": sandbox, "path": "network.py", "content": CLIENT });
    server.agent.call("write_file", content).await?;
    server.quiet().await?;
    let command = json!({
        "sandbox_id": sandbox,
        "command": format!("python3 network.py {arguments}"),
        "timeout_ms": DEADLINE.as_millis(),
    });
    let ran = server.agent.call("run_command", command).await?;
    ensure!(ran["exit_code"] == 0, "the client failed: {ran}");
    server.agent.destroy(&sandbox).await?;
    server.end().await?;
    ran["stdout"].as_str().map(str::to_owned).context("stdout")
}

fn add(run: &mut Run, id: &str, name: &str, printed: &str, local: f64) -> anyhow::Result<()> {
    // A console shows what a kernel has to say, too.
    let lines = printed.lines().filter(|line| line.starts_with('{'));
    let figures: Vec<Figures> =
        lines.map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| printed.to_owned())?;
    ensure!(!figures.is_empty(), "the client printed nothing but {printed}");
    let mut row = |part: &str, what: &str, unit: Unit, of: fn(&Figures) -> f64, less: f64| {
        let values = figures.iter().map(|figures| of(figures) - less).collect();
        run.report.add(&format!("{id}-{part}"), &format!("{what}, {name}"), unit, values);
    };
    row("down", "32 MiB received", Unit::MbPerSecond, |figures| figures.down, 0.0);
    row("up", "32 MiB sent", Unit::MbPerSecond, |figures| figures.up, 0.0);
    row("connections", "connections with an answer", Unit::PerSecond, |figures| figures.connections, 0.0);
    row("answer", "answer", Unit::Ms, |figures| figures.answer, 0.0);
    row("added", "answer, less that on this machine", Unit::Ms, |figures| figures.answer, local);
    Ok(())
}

/// Does what the first byte of each connection asks for: says everything back, sends so many bytes, or takes so many.
async fn serve(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        // What a client breaks off is its own affair.
        tokio::spawn(async move { answer(stream).await.ok() });
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let order = stream.read_u8().await?;
    let mut part = vec![0; 256 * 1024];
    match order {
        b'd' => {
            for _ in 0..BYTES / part.len() {
                stream.write_all(&part).await?;
            }
        }
        b'u' => {
            let mut left = BYTES;
            while left > 0 {
                match stream.read(&mut part).await? {
                    0 => return Ok(()),
                    length => left -= length,
                }
            }
            stream.write_u8(b'!').await?;
        }
        _ => loop {
            match stream.read(&mut part).await? {
                0 => return Ok(()),
                length => stream.write_all(&part[..length]).await?,
            }
        },
    }
    Ok(())
}

/// The median of many answers over loopback, in milliseconds.
async fn answers(port: u16) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_u8(b'e').await?;
    let mut took = Vec::new();
    for _ in 0..ANSWERS {
        let started = Instant::now();
        stream.write_u8(b'x').await?;
        ensure!(stream.read_u8().await? == b'x', "it answered something else");
        took.push(started.elapsed());
    }
    took.sort_unstable();
    Ok(ms(took[took.len() / 2]))
}
