//! How fast a network is, with a real kernel in front of it: `cargo bench -p bouvet-net`, as root.
//!
//! ```text
//! client: sockets ─▶ TUN ══ Network ══▶ a server on the loopback of the same machine
//! ```
//!
//! The limits of rates are out of the way. `cargo bench -p bouvet-net -- 16000 131072` measures one MTU and one size of
//! buffers.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench")]

#[path = "../tests/kernel/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "tests need more of it")]
mod support;

use std::io;
use std::time::{Duration, Instant};

use bouvet_net::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use self::support::{Wants, World, connect, policy, with_world};

const MTUS_BYTES: [u32; 4] = [1500, 16_000, 32_000, 65_535];
const BUFFERS_BYTES: [u32; 4] = [65_536, 131_072, 262_144, 1_048_576];
/// Times that each is measured. The best counts: whatever else the machine does makes it slower.
const RUNS: usize = 3;
/// How long bytes flow.
const FLOW: Duration = Duration::from_secs(1);
const ECHOES: usize = 2000;
const CONNECTIONS: usize = 500;
/// Those that are open at once, to see what memory they take.
const OPEN: usize = 200;

fn main() {
    let numbers: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    println!("| MTU | buffers | down MB/s | up MB/s | echo p50 µs | connect+echo/s | {OPEN} open, MB |");
    println!("|---|---|---|---|---|---|---|");
    for mtu_bytes in MTUS_BYTES {
        for buffer_bytes in BUFFERS_BYTES {
            if numbers.is_empty() || numbers == [mtu_bytes, buffer_bytes] {
                measure(mtu_bytes, buffer_bytes);
            }
        }
    }
}

fn measure(mtu_bytes: u32, buffer_bytes: u32) {
    let limits =
        Limits { buffer_bytes, bytes_per_s: 4_000_000_000, packets_per_s: 10_000_000, ..Limits::default() };
    let wants = Wants { policy: policy(&["host"], &[]), limits, mtu_bytes, ..Wants::default() };
    with_world(wants, async move |world| {
        let port = serve().await;
        let mut best = Figures::default();
        for _ in 0..RUNS {
            best.take(&Figures::of(&world, port).await);
        }
        let Figures { down, up, echo_p50, connections } = best;
        let open = memory(&world, port).await;
        println!(
            "| {mtu_bytes} | {} KiB | {down:.0} | {up:.0} | {:.0} | {connections:.0} | {open:.1} |",
            buffer_bytes / 1024,
            echo_p50.as_secs_f64() * 1e6,
        );
    });
}

/// Megabytes and connections in a second, and how long an echo of 64 bytes takes.
struct Figures {
    down: f64,
    up: f64,
    echo_p50: Duration,
    connections: f64,
}

impl Default for Figures {
    fn default() -> Self {
        Self { down: 0.0, up: 0.0, echo_p50: Duration::MAX, connections: 0.0 }
    }
}

impl Figures {
    async fn of(world: &World, port: u16) -> Self {
        Self {
            down: world.guest(down(port)).await.unwrap(),
            up: world.guest(up(port)).await.unwrap(),
            echo_p50: world.guest(echoes(port)).await.unwrap(),
            connections: world.guest(connections(port)).await.unwrap(),
        }
    }

    fn take(&mut self, other: &Self) {
        self.down = self.down.max(other.down);
        self.up = self.up.max(other.up);
        self.echo_p50 = self.echo_p50.min(other.echo_p50);
        self.connections = self.connections.max(other.connections);
    }
}

/// A server that does what the first byte says: talk, listen, or say everything back.
async fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Clients break off what they have had enough of.
            tokio::spawn(async move { answer(stream).await.ok() });
        }
    });
    port
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let what = stream.read_u8().await?;
    // Many say things back at once, and are not to be what is measured.
    let mut buffer = vec![0; if what == b'e' { 4096 } else { 256 * 1024 }];
    match what {
        b't' => loop {
            stream.write_all(&buffer).await?;
        },
        b'l' => {
            let mut heard = 0;
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return stream.write_u64(heard).await,
                    length => heard += length as u64,
                }
            }
        }
        _ => loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                length => stream.write_all(&buffer[..length]).await?,
            }
        },
    }
}

async fn begin(port: u16, what: u8) -> io::Result<TcpStream> {
    let mut stream = connect(&format!("10.0.2.2:{port}")).await?;
    stream.set_nodelay(true)?;
    stream.write_u8(what).await?;
    Ok(stream)
}

async fn down(port: u16) -> io::Result<f64> {
    let mut stream = begin(port, b't').await?;
    let mut buffer = vec![0; 256 * 1024];
    let (began, mut heard) = (Instant::now(), 0);
    while began.elapsed() < FLOW {
        heard += stream.read(&mut buffer).await?;
    }
    Ok(megabytes(heard as u64, began))
}

async fn up(port: u16) -> io::Result<f64> {
    let mut stream = begin(port, b'l').await?;
    let buffer = vec![0; 256 * 1024];
    let began = Instant::now();
    while began.elapsed() < FLOW {
        stream.write_all(&buffer).await?;
    }
    stream.shutdown().await?;
    let heard = stream.read_u64().await?;
    Ok(megabytes(heard, began))
}

fn megabytes(bytes: u64, began: Instant) -> f64 {
    bytes as f64 / 1e6 / began.elapsed().as_secs_f64()
}

async fn echoes(port: u16) -> io::Result<Duration> {
    let mut stream = begin(port, b'e').await?;
    let mut took = Vec::with_capacity(ECHOES);
    let mut buffer = [7; 64];
    for _ in 0..ECHOES {
        let began = Instant::now();
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took[ECHOES / 2])
}

async fn connections(port: u16) -> io::Result<f64> {
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut stream = begin(port, b'e').await?;
        stream.write_u8(1).await?;
        stream.read_u8().await?;
    }
    Ok(CONNECTIONS as f64 / began.elapsed().as_secs_f64())
}

/// What the process holds more while so many connections are open, of which each has carried half a megabyte both ways.
/// Client and server are in it, too.
async fn memory(world: &World, port: u16) -> f64 {
    let before = resident();
    let held = world.guest(async move {
        let mut streams = Vec::new();
        let (said, mut heard) = (vec![7; 512 * 1024], vec![0; 512 * 1024]);
        for _ in 0..OPEN {
            let mut stream = begin(port, b'e').await.unwrap();
            let (mut reader, mut writer) = stream.split();
            tokio::try_join!(writer.write_all(&said), reader.read_exact(&mut heard)).unwrap();
            streams.push(stream);
        }
        streams
    });
    let streams = held.await;
    let after = resident();
    drop(streams);
    (after - before) / 1e6
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}
