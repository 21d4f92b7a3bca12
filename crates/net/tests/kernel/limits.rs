//! Limits, each at its edge and past it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bouvet_net::{Limits, Refusal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use crate::support::{DEADLINE, SILENT, Wants, connect, converse, joined, pattern, query, with_world};

#[test]
fn no_more_connections_than_the_limit_are_there_at_once() {
    let limits = Limits { max_connections: 3, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        world.serve_echo("93.184.215.14:7").await;
        let (free, freed) = tokio::sync::oneshot::channel::<()>();
        let (full, is_full) = tokio::sync::oneshot::channel();
        let guest = world.begin(async {
            let mut streams = Vec::new();
            for _ in 0..3 {
                let mut stream = connect("93.184.215.14:7").await.unwrap();
                stream.write_u8(1).await.unwrap();
                stream.read_u8().await.unwrap();
                streams.push(stream);
            }
            let refused = connect("93.184.215.14:7").await.unwrap_err().kind();
            full.send(refused).unwrap();
            freed.await.unwrap();
            drop(streams);
        });
        assert_eq!(is_full.await.unwrap(), ErrorKind::ConnectionRefused);
        assert_eq!(world.refused(Refusal::Limit), 1);
        assert_eq!(world.network.counts().open_connections, 3);
        free.send(()).unwrap();
        joined(guest).await;
        world.counts("over", |counts| counts.open_connections == 0).await;
        let heard = world.guest(async { converse(connect("93.184.215.14:7").await?, b"again").await });
        assert_eq!(heard.await.unwrap(), b"again");
    });
}

#[test]
fn a_connection_that_says_nothing_for_too_long_is_broken_off() {
    let limits = Limits { idle_connection_s: 1, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        let mut server = world
            .serve("93.184.215.14:7", async |mut stream: tokio::net::TcpStream| {
                stream.read_u8().await.map_err(|error| error.kind())
            })
            .await;
        let began = Instant::now();
        let error = world.guest(async {
            let mut stream = connect("93.184.215.14:7").await.unwrap();
            stream.read_u8().await.map_err(|error| error.kind())
        });
        assert_eq!(error.await, Err(ErrorKind::ConnectionReset));
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(server.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
    });
}

/// Those that are only being made are among them.
#[test]
fn connections_that_are_being_made_count_too() {
    let limits = Limits { max_connections: 2, dial_timeout_ms: 120_000, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        let (up, given_up) = tokio::sync::oneshot::channel::<()>();
        let dialling = world.begin(async move {
            let at = format!("{SILENT}:7");
            let one = connect(&at);
            let other = connect(&at);
            tokio::select! {
                _ = async { tokio::join!(one, other) } => panic!("somebody answered"),
                given_up = given_up => given_up.unwrap(),
            }
        });
        world.counts("being made", |counts| counts.open_connections == 2).await;
        let error = world.guest(async { connect("93.184.215.14:7").await.unwrap_err().kind() }).await;
        assert_eq!((error, world.refused(Refusal::Limit)), (ErrorKind::ConnectionRefused, 1));
        up.send(()).unwrap();
        joined(dialling).await;
        assert_eq!(world.network.counts().connections, 0);
    });
}

#[test]
fn no_more_flows_of_datagrams_than_the_limit_are_there_at_once() {
    let limits = Limits { max_datagram_flows: 3, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        world.serve_echo("93.184.215.14:7").await;
        let results = world.guest(async {
            let mut results = Vec::new();
            for _ in 0..4 {
                let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
                socket.connect("93.184.215.14:7".parse::<SocketAddr>().unwrap()).await.unwrap();
                socket.send(b"x").await.unwrap();
                let result = tokio::time::timeout(DEADLINE, socket.recv(&mut [0; 8])).await.unwrap();
                results.push(result.map_err(|error| error.kind()));
            }
            results
        });
        let refused = Err(ErrorKind::HostUnreachable);
        assert_eq!(results.await, [Ok(1), Ok(1), Ok(1), refused]);
        assert_eq!(world.refused(Refusal::Limit), 1);
    });
}

#[test]
fn queries_and_echoes_are_answered_as_often_as_the_limits_allow() {
    let limits = Limits { queries_per_s: 2, echoes_per_s: 1, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        let answered = world.guest(async {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            socket.connect("10.0.2.2:53".parse::<SocketAddr>().unwrap()).await.unwrap();
            for _ in 0..3 {
                socket.send(&query("www.example.com")).await.unwrap();
            }
            let mut answered = 0;
            let wait = Duration::from_secs(1);
            while tokio::time::timeout(wait, socket.recv(&mut [0; 512])).await.is_ok_and(|read| read.is_ok())
            {
                answered += 1;
            }
            answered
        });
        assert_eq!(answered.await, 2);
        assert_eq!((world.network.counts().queries, world.refused(Refusal::Limit)), (3, 1));
    });
}

/// What comes faster waits where it came from, and none of it is lost.
#[test]
fn bytes_pass_as_fast_as_the_limit_allows_each_way() {
    const PER_S: usize = 512 * 1024;
    let limits = Limits { bytes_per_s: u32::try_from(PER_S).unwrap(), ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        let mut heard = world
            .serve("93.184.215.14:1", async |mut stream: tokio::net::TcpStream| {
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await.unwrap();
                heard
            })
            .await;
        let began = Instant::now();
        let said = world.guest(async {
            let mut stream = connect("93.184.215.14:1").await?;
            stream.write_all(&pattern(3 * PER_S)).await?;
            stream.shutdown().await?;
            io::Result::Ok(())
        });
        said.await.unwrap();
        assert!(heard.recv().await.unwrap() == pattern(3 * PER_S));
        // A second's worth passes at once.
        assert!(began.elapsed() > Duration::from_millis(1900), "{:?}", began.elapsed());

        let talk = async |mut stream: tokio::net::TcpStream| {
            stream.write_all(&pattern(3 * PER_S)).await.unwrap();
        };
        drop(world.serve("93.184.215.14:2", talk).await);
        let began = Instant::now();
        let heard = world.guest(async { converse(connect("93.184.215.14:2").await?, b"").await });
        assert!(heard.await.unwrap() == pattern(3 * PER_S));
        assert!(began.elapsed() > Duration::from_millis(1900), "{:?}", began.elapsed());
    });
}

#[test]
fn packets_pass_as_fast_as_the_limit_allows() {
    let limits = Limits { packets_per_s: 100, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        world.serve_echo("93.184.215.14:7").await;
        let began = Instant::now();
        let heard = world.guest(async {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            socket.connect("93.184.215.14:7".parse::<SocketAddr>().unwrap()).await.unwrap();
            for _ in 0..300 {
                socket.send(b"x").await.unwrap();
                tokio::time::timeout(DEADLINE, socket.recv(&mut [0; 8])).await.unwrap().unwrap();
            }
        });
        heard.await;
        assert!(began.elapsed() > Duration::from_millis(1900), "{:?}", began.elapsed());
    });
}
