//! A server in a sandbox, reached through a port of the host, beside the same on this machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::Run;
use super::report::{Unit, ms};
use super::session::CALL_DEADLINE;

const BYTES: usize = 32_000_000;
/// Many bytes show in a few runs what they have to show.
const MAX_LARGE_RUNS: u32 = 5;
const PORT: u16 = 8000;

/// Does what the first byte of a connection asks for: answers bytes one by one, sends so many, or takes so many.
const SERVER: &str = r#"
import socket, sys, threading

LENGTH = int(sys.argv[2])
PART = bytes(65536)

def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        order = connection.recv(1)
        if order == b"e":
            while byte := connection.recv(1):
                connection.sendall(byte)
        elif order == b"d":
            for _ in range(0, LENGTH, len(PART)):
                connection.sendall(PART)
        elif order == b"u":
            left = LENGTH
            while left > 0:
                left -= len(connection.recv(65536)) or left
            connection.sendall(b"!")

server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
"#;

/// Connects, asks and is answered, one after another, and moves bytes each way.
pub(super) async fn ports(run: &mut Run) -> anyhow::Result<()> {
    let server = run.server(&[]).await?;
    server.warm().await?;
    let sandbox = server.agent.create().await?;
    let content = json!({ "sandbox_id": sandbox, "path": "server.py", "content": SERVER });
    server.agent.call("write_file", content).await?;
    let command = format!("python3 server.py {PORT} {BYTES} >/dev/null 2>&1 &");
    server.agent.call("run_command", json!({ "sandbox_id": sandbox, "command": command })).await?;
    let exposed = server.agent.call("expose_port", json!({ "sandbox_id": sandbox, "port": PORT })).await?;
    let host = exposed["host"].as_str().context("host")?.to_owned();
    let port = exposed["port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("port")?;
    let place = (host, port);
    up(&place).await?;
    server.quiet().await?;

    let local = TcpListener::bind("127.0.0.1:0").await?;
    let nearby = ("127.0.0.1".to_owned(), local.local_addr()?.port());
    let answering = tokio::spawn(answer(local));
    let places = [("", "through a port", &place), ("-local", "of a server on this machine", &nearby)];
    for (id, name, place) in places {
        let (mut fresh, mut open) = (Vec::new(), Vec::new());
        for time in 0..=run.line.repeat {
            run.say(format!("requests {name}: {time} of {}", run.line.repeat));
            let (first, second) = request(place).await?;
            // The first of all has more to do.
            if time > 0 {
                fresh.push(first);
                open.push(second);
            }
        }
        run.report.add_times(&format!("port-request{id}"), &format!("connection and answer, {name}"), &fresh);
        run.report.add_times(&format!("port-answer{id}"), &format!("answer, {name}"), &open);
    }
    answering.abort();
    let (mut down, mut up) = (Vec::new(), Vec::new());
    let repeat = run.line.repeat.min(MAX_LARGE_RUNS);
    for time in 1..=repeat {
        run.say(format!("32 MB through a port: {time} of {repeat}"));
        down.push(rate(download(&place).await?));
        up.push(rate(upload(&place).await?));
    }
    run.report.add("port-down", "32 MB from a sandbox through a port", Unit::MbPerSecond, down);
    run.report.add("port-up", "32 MB to a sandbox through a port", Unit::MbPerSecond, up);
    server.agent.destroy(&sandbox).await?;
    server.end().await
}

type Place = (String, u16);

fn rate(time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = BYTES as f64 / 1000.0 / ms(time);
    rate
}

async fn connect((host, port): &Place, order: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(order).await?;
    Ok(stream)
}

/// Waits until the server in the sandbox listens.
async fn up(place: &Place) -> anyhow::Result<()> {
    let deadline = Instant::now() + CALL_DEADLINE;
    while let Err(error) = request(place).await {
        ensure!(Instant::now() < deadline, "the server in the sandbox never answered: {error:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A connection with the first answer on it, and the second answer.
async fn request(place: &Place) -> anyhow::Result<(Duration, Duration)> {
    let started = Instant::now();
    let mut stream = connect(place, b"ea").await?;
    ensure!(stream.read_u8().await? == b'a', "it answered something else");
    let first = started.elapsed();
    let started = Instant::now();
    stream.write_all(b"b").await?;
    ensure!(stream.read_u8().await? == b'b', "it answered something else");
    Ok((first, started.elapsed()))
}

async fn download(place: &Place) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut stream = connect(place, b"d").await?;
    let length = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    ensure!(length >= BYTES as u64, "{length} bytes came");
    Ok(started.elapsed())
}

async fn upload(place: &Place) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut stream = connect(place, b"u").await?;
    let part = vec![0; 64_000];
    for _ in 0..BYTES / part.len() {
        stream.write_all(&part).await?;
    }
    ensure!(stream.read_u8().await? == b'!', "it answered something else");
    Ok(started.elapsed())
}

/// Answers bytes one by one, as the server in the sandbox does.
async fn answer(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            stream.read_u8().await?;
            while let Ok(byte) = stream.read_u8().await {
                stream.write_all(&[byte]).await?;
            }
            Ok::<_, std::io::Error>(())
        });
    }
}
