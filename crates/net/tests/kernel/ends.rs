//! What is left when a network ends, and what a stalled connection costs.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Handle;

use crate::support::{DEADLINE, SILENT, Wants, connect, joined, narrow, pattern, with_world};

/// What a sandbox has of the host ends with its interface, and begins anew with the next.
#[test]
fn nothing_is_left_of_an_interface_that_is_let_go() {
    with_world(Wants::default(), async |mut world| {
        world.serve_echo("93.184.215.14:7").await;
        let mut server = world
            .serve("93.184.215.14:1", async |mut stream: TcpStream| {
                stream.write_u8(0).await.unwrap();
                stream.read_u8().await.map_err(|error| error.kind())
            })
            .await;
        let (open, is_open) = tokio::sync::oneshot::channel();
        let (gone, is_gone) = tokio::sync::oneshot::channel::<()>();
        let guest = world.begin(async move {
            let mut stream = connect("93.184.215.14:1").await.unwrap();
            stream.read_u8().await.unwrap();
            let datagrams = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            datagrams.send_to(b"x", "93.184.215.14:7").await.unwrap();
            datagrams.recv(&mut [0; 8]).await.unwrap();
            let dialling = tokio::spawn(async { connect(&format!("{SILENT}:7")).await.map(drop) });
            open.send(()).unwrap();
            is_gone.await.unwrap();
            // The new one knows nothing of it.
            stream.write_u8(1).await.unwrap();
            let error = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap_err();
            dialling.abort();
            error.kind()
        });
        is_open.await.unwrap();
        world.counts("open", |counts| counts.open_connections == 2).await;
        assert!(Handle::current().metrics().num_alive_tasks() > 0);
        world.detach().await;
        assert_eq!(server.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
        world.counts("over", |counts| counts.open_connections + counts.open_datagram_flows == 0).await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        world.attach();
        gone.send(()).unwrap();
        assert_eq!(joined(guest).await, ErrorKind::ConnectionReset);
    });
}

/// A connection of which nothing moves costs no time: neither that of a server that does not listen, nor that of a
/// sandbox that does not.
#[test]
fn what_stands_still_costs_nothing() {
    with_world(Wants::default(), async |world| {
        let (done, is_done) = tokio::sync::watch::channel(false);
        let until = is_done.clone();
        let deaf = move |stream: TcpStream| {
            let mut until = until.clone();
            async move {
                narrow(&stream);
                until.changed().await.ok();
            }
        };
        let mut until = is_done.clone();
        drop(world.serve("93.184.215.14:1", deaf).await);
        let loud = async |mut stream: TcpStream| stream.write_all(&pattern(64 << 20)).await.is_ok();
        drop(world.serve("93.184.215.14:2", loud).await);
        let (full, is_full) = tokio::sync::oneshot::channel();
        let guest = world.begin(async move {
            let mut unheard = connect("93.184.215.14:1").await.unwrap();
            let unhearing = connect("93.184.215.14:2").await.unwrap();
            narrow(&unhearing);
            let bytes = pattern(1 << 20);
            let wait = Duration::from_secs(1);
            while tokio::time::timeout(wait, unheard.write(&bytes)).await.is_ok() {}
            full.send(()).unwrap();
            until.changed().await.ok();
            drop(unhearing);
        });
        is_full.await.unwrap();
        let metrics = Handle::current().metrics();
        let busy = || {
            (0..metrics.num_workers())
                .map(|worker| metrics.worker_total_busy_duration(worker))
                .sum::<Duration>()
        };
        let before = busy();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let spent = busy() - before;
        done.send(true).unwrap();
        joined(guest).await;
        assert!(spent < Duration::from_millis(200), "{spent:?} of 4 s");
    });
}
