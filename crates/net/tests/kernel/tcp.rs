//! Connections.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bouvet_net::{Limits, Refusal};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

use crate::support::{
    DEADLINE, SILENT, Wants, World, connect, converse, echo, joined, narrow, pattern, policy, with_world,
};

const MIB: usize = 1024 * 1024;

#[test]
fn what_is_said_arrives_both_ways_and_both_families() {
    with_world(Wants::default(), async |world| {
        for address in ["93.184.215.14:7", "[2606:2800:21f::14]:7"] {
            world.serve_echo(address).await;
            let heard = world.guest(async move {
                let said = pattern(8 * MIB);
                converse(connect(address).await.unwrap(), &said).await.map(|heard| heard == said)
            });
            assert!(heard.await.unwrap(), "{address}");
        }
        let counts = world.counts("over", |counts| counts.open_connections == 0).await;
        assert_eq!(counts.connections, 2);
        assert!(counts.sent_bytes > 16 * MIB as u64 && counts.received_bytes > 16 * MIB as u64);
        assert_eq!(counts.refused, [].into());
    });
}

/// The server has heard all before it says anything, and the sandbox speaks after the server has ended.
#[test]
fn each_half_is_closed_by_itself() {
    with_world(Wants::default(), async |world| {
        let hear_first = async |mut stream: TcpStream| {
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
        };
        let _first = world.serve("93.184.215.14:7", hear_first).await;
        let said = pattern(MIB);
        let heard =
            world.guest(async move { converse(connect("93.184.215.14:7").await?, &pattern(MIB)).await });
        assert!(heard.await.unwrap() == said);

        let end_first = async |mut stream: TcpStream| {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let mut heard = world.serve("93.184.215.14:8", end_first).await;
        let answer = world.guest(async {
            let mut stream = connect("93.184.215.14:8").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            stream.write_all(&pattern(MIB)).await?;
            stream.shutdown().await?;
            io::Result::Ok(answer)
        });
        assert_eq!(answer.await.unwrap(), b"bye");
        assert!(heard.recv().await.unwrap() == said);
        world.counts("over", |counts| counts.open_connections == 0).await;
    });
}

/// When both sides have closed, what the sandbox said may still be on its way to a server that is slow to hear it.
#[test]
fn what_a_slow_server_has_not_heard_yet_outlasts_both_ends() {
    // It waits in the connection's own buffer, not in a kernel's.
    let limits = Limits { buffer_bytes: 4 * 1024 * 1024, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        let (server, mut heard) = serve_slowly(&world, "93.184.215.14:1").await;
        let room = world.guest(async { say(&mut slow_client().await, usize::MAX).await }).await;
        server.send(Step::End).await.unwrap();
        server.send(Step::Hear).await.unwrap();
        heard.recv().await.unwrap().ok();
        for server_ends_first in [true, false] {
            let (stepped, is_stepped) = tokio::sync::oneshot::channel();
            let client = world.begin(async move {
                let mut stream = slow_client().await;
                let said = say(&mut stream, room - 2 * MIB).await;
                if server_ends_first {
                    stepped.send(()).unwrap();
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                    stream.shutdown().await.unwrap();
                } else {
                    stream.shutdown().await.unwrap();
                    stepped.send(()).unwrap();
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                }
                said
            });
            is_stepped.await.unwrap();
            server.send(Step::End).await.unwrap();
            let said = joined(client).await;
            // Longer than the sandbox's side of a connection is remembered, once it has ended.
            tokio::time::sleep(Duration::from_secs(12)).await;
            server.send(Step::Hear).await.unwrap();
            let heard = heard.recv().await.unwrap().unwrap_or_default();
            assert!(
                heard == pattern(said),
                "server first {server_ends_first}: {} of {said} bytes",
                heard.len()
            );
        }
        world.counts("over", |counts| counts.open_connections == 0).await;
    });
}

enum Step {
    End,
    Hear,
}

/// A server that does a step when it is told to.
async fn serve_slowly(
    world: &World,
    address: &str,
) -> (mpsc::Sender<Step>, mpsc::UnboundedReceiver<io::Result<Vec<u8>>>) {
    let (steps, next) = mpsc::channel(4);
    let next = Arc::new(Mutex::new(next));
    let slow = move |mut stream: TcpStream| {
        let next = next.clone();
        async move {
            narrow(&stream);
            let mut next = next.lock().await;
            while let Some(Step::End) = next.recv().await {
                stream.shutdown().await.unwrap();
            }
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.map(|_| heard)
        }
    };
    (steps, world.serve(address, slow).await)
}

/// A connection that holds little back in the guest.
async fn slow_client() -> TcpStream {
    let stream = connect("93.184.215.14:1").await.unwrap();
    SockRef::from(&stream).set_send_buffer_size(64 * 1024).unwrap();
    stream
}

/// Says so many bytes, or as many as there is room for.
async fn say(stream: &mut TcpStream, bytes: usize) -> usize {
    let bytes = pattern(bytes.min(64 * MIB));
    let mut said = 0;
    while said < bytes.len()
        && let Ok(written) = tokio::time::timeout(Duration::from_secs(1), stream.write(&bytes[said..])).await
    {
        said += written.unwrap();
    }
    said
}

#[test]
fn what_nobody_listens_to_is_refused_at_once() {
    with_world(Wants::default(), async |world| {
        for address in ["93.184.215.14:9", "[2606:2800:21f::14]:9"] {
            let began = Instant::now();
            let error = world.guest(async move { connect(address).await.unwrap_err().kind() }).await;
            assert_eq!(error, ErrorKind::ConnectionRefused);
            assert!(began.elapsed() < Duration::from_secs(1), "{address}: {:?}", began.elapsed());
        }
        world.counts("over", |counts| counts.open_connections == 0 && counts.connections == 0).await;
    });
}

#[test]
fn what_does_not_answer_is_refused_in_time() {
    let limits = Limits { dial_timeout_ms: 1500, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        let began = Instant::now();
        let error = world.guest(async { connect(&format!("{SILENT}:80")).await.unwrap_err().kind() }).await;
        assert_eq!(error, ErrorKind::ConnectionRefused);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1500) && took < Duration::from_secs(4), "{took:?}");
        world.counts("over", |counts| counts.open_connections == 0).await;
    });
}

/// The sandbox asks again and again while the host's own connection is made.
#[test]
fn a_connection_that_is_slow_to_be_made_is_made() {
    with_world(Wants::default(), async |world| {
        let asking = world.begin(async { converse(connect(&format!("{SILENT}:7")).await?, b"there?").await });
        // Two of the host's attempts are lost.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        world.appear(SILENT, 7).await;
        assert_eq!(joined(asking).await.unwrap(), b"there?");
    });
}

#[test]
fn a_reset_is_passed_on_from_either_side() {
    with_world(Wants::default(), async |world| {
        let mut server = world
            .serve("93.184.215.14:1", async |mut stream: TcpStream| {
                stream.write_all(b"x").await.unwrap();
                stream.read(&mut [0; 8]).await.map_err(|error| error.kind())
            })
            .await;
        world
            .guest(async {
                let mut stream = connect("93.184.215.14:1").await.unwrap();
                stream.read_u8().await.unwrap();
                stream.set_zero_linger().unwrap();
            })
            .await;
        assert_eq!(server.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));

        let break_off = async |mut stream: TcpStream| {
            stream.read_u8().await.unwrap();
            stream.set_zero_linger().unwrap();
        };
        let _server = world.serve("93.184.215.14:2", break_off).await;
        let error = world.guest(async {
            let mut stream = connect("93.184.215.14:2").await.unwrap();
            stream.write_u8(1).await.unwrap();
            stream.read(&mut [0; 8]).await.map_err(|error| error.kind())
        });
        assert_eq!(error.await, Err(ErrorKind::ConnectionReset));
        world.counts("over", |counts| counts.open_connections == 0).await;
    });
}

/// Says all that there is room for while nobody hears it, and then has it heard.
#[test]
fn who_does_not_listen_slows_the_other_down_and_loses_nothing() {
    /// More than all the buffers between two kernels.
    const SAID: usize = 64 * MIB;
    async fn fill(stream: &mut TcpStream) -> usize {
        let said = say(stream, SAID).await;
        assert!(said < SAID / 2, "{said} bytes found room");
        said
    }
    async fn hear(stream: &mut TcpStream) -> Vec<u8> {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    }
    with_world(Wants::default(), async |world| {
        let (full, is_full) = tokio::sync::oneshot::channel();
        let is_full = std::sync::Mutex::new(Some(is_full));
        let deaf = move |mut stream: TcpStream| {
            let is_full = is_full.lock().unwrap().take().unwrap();
            async move {
                is_full.await.unwrap();
                hear(&mut stream).await
            }
        };
        let mut heard = world.serve("93.184.215.14:1", deaf).await;
        let said = world.guest(async {
            let mut stream = connect("93.184.215.14:1").await.unwrap();
            fill(&mut stream).await
        });
        let said = said.await;
        full.send(()).unwrap();
        assert!(heard.recv().await.unwrap() == pattern(said));

        let (tell, told) = tokio::sync::oneshot::channel();
        let tell = std::sync::Mutex::new(Some(tell));
        let loud = move |mut stream: TcpStream| {
            let tell = tell.lock().unwrap().take().unwrap();
            async move {
                let said = fill(&mut stream).await;
                tell.send(()).unwrap();
                said
            }
        };
        let mut said = world.serve("93.184.215.14:2", loud).await;
        let heard = world.begin(async move {
            let mut stream = connect("93.184.215.14:2").await.unwrap();
            narrow(&stream);
            told.await.unwrap();
            hear(&mut stream).await
        });
        let heard = joined(heard).await;
        let said = tokio::time::timeout(DEADLINE, said.recv()).await.unwrap().unwrap();
        assert!(heard == pattern(said));
    });
}

#[test]
fn many_connections_are_there_at_once() {
    with_world(Wants::default(), async |world| {
        world.serve_echo("93.184.215.14:7").await;
        let heard = world.guest(async {
            let mut streams = Vec::new();
            for number in 0..200_u32 {
                let mut stream = connect("93.184.215.14:7").await.unwrap();
                stream.write_u32(number).await.unwrap();
                streams.push(stream);
            }
            let mut heard = Vec::new();
            for stream in &mut streams {
                heard.push(stream.read_u32().await.unwrap());
            }
            heard
        });
        assert!(heard.await.into_iter().eq(0..200));
        let counts = world.counts("over", |counts| counts.open_connections == 0).await;
        assert_eq!(counts.connections, 200);
    });
}

#[test]
fn what_a_policy_does_not_allow_is_refused_at_once() {
    let policy = policy(&[], &["93.184.215.15"]);
    with_world(Wants { policy, ..Wants::default() }, async |world| {
        let mut seen = world.serve("0.0.0.0:80", echo).await;
        for (address, why) in [
            ("10.9.9.9:80", Refusal::Private),
            ("93.184.215.15:80", Refusal::Denied),
            ("203.0.113.1:80", Refusal::Special),
            ("169.254.169.254:80", Refusal::Metadata),
            ("10.0.2.3:80", Refusal::Sandbox),
            ("[fd00:b0e7::3]:80", Refusal::Sandbox),
            ("[fd12::9]:80", Refusal::Private),
            ("93.184.215.14:53", Refusal::Dns),
        ] {
            let before = world.refused(why);
            let began = Instant::now();
            let error = world.guest(async move { connect(address).await.unwrap_err().kind() }).await;
            assert_eq!(error, ErrorKind::ConnectionRefused, "{address}");
            assert!(began.elapsed() < Duration::from_secs(1), "{address}: {:?}", began.elapsed());
            assert_eq!(world.refused(why), before + 1, "{address}");
        }
        assert!(seen.try_recv().is_err());
    });
}
