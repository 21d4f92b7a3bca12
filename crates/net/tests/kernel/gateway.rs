//! The gateway's address: names, and what of the host's loopback a rule opens.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use bouvet_net::Refusal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::support::{Wants, connect, converse, echo, policy, resolve, with_world};

#[test]
fn names_are_answered_over_both_families_and_protocols() {
    with_world(Wants::default(), async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        for gateway in ["10.0.2.2:53", "[fd00:b0e7::2]:53"] {
            let addresses = world.guest(resolve(gateway, "www.example.com")).await;
            assert_eq!(addresses, ["93.184.215.14".parse::<IpAddr>().unwrap()], "{gateway}");
            let answer = world.guest(async move {
                let mut stream = connect(gateway).await?;
                let query = crate::support::query("www.example.com");
                for _ in 0..2 {
                    stream.write_u16(u16::try_from(query.len()).unwrap()).await?;
                    stream.write_all(&query).await?;
                    let mut answer = vec![0; stream.read_u16().await?.into()];
                    stream.read_exact(&mut answer).await?;
                    assert_eq!(
                        crate::support::addresses(&answer),
                        ["93.184.215.14".parse::<IpAddr>().unwrap()]
                    );
                }
                stream.shutdown().await?;
                stream.read(&mut [0]).await
            });
            assert_eq!(answer.await.unwrap(), 0, "it ends when it is told so");
        }
        let counts = world.counts("over", |counts| counts.open_connections == 0).await;
        assert_eq!(counts.queries, 6);
    });
}

#[test]
fn of_the_host_only_what_a_rule_opens_is_reached() {
    with_world(Wants { policy: policy(&["host:7", "*"], &[]), ..Wants::default() }, async |world| {
        // As servers of this machine's own are: on its loopback alone.
        let listener = TcpListener::bind("127.0.0.1:7").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:8").await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream));
            }
        });
        let socket = UdpSocket::bind("127.0.0.1:7").await.unwrap();
        tokio::spawn(async move {
            let mut datagram = [0; 64];
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            socket.send_to(&datagram[..length], from).await.unwrap();
        });
        for gateway in ["10.0.2.2:7", "[fd00:b0e7::2]:7"] {
            let heard = world.guest(async move { converse(connect(gateway).await?, b"hello").await });
            assert_eq!(heard.await.unwrap(), b"hello", "{gateway}");
        }
        let heard = world.guest(async {
            let socket = UdpSocket::bind("0.0.0.0:0").await?;
            socket.connect("10.0.2.2:7".parse::<SocketAddr>().unwrap()).await?;
            socket.send(b"hello").await?;
            let mut heard = [0; 64];
            let length = socket.recv(&mut heard).await?;
            io::Result::Ok(heard[..length].to_vec())
        });
        assert_eq!(heard.await.unwrap(), b"hello");

        for (address, why) in [("10.0.2.2:8", Refusal::Host), ("203.0.113.1:7", Refusal::Special)] {
            let error = world.guest(async move { connect(address).await.unwrap_err().kind() }).await;
            assert_eq!(error, ErrorKind::ConnectionRefused, "{address}");
            assert_eq!(world.refused(why), 1, "{address}");
        }
        // The rule is taken away, and with it what it had opened.
        let (stream, open) = tokio::sync::oneshot::channel();
        let held = world.begin(async move {
            let mut held = connect("10.0.2.2:7").await.unwrap();
            held.write_u8(1).await.unwrap();
            held.read_u8().await.unwrap();
            stream.send(()).unwrap();
            held.read_u8().await.unwrap_err().kind()
        });
        open.await.unwrap();
        world.network.set_policy(policy(&["*"], &[]));
        assert_eq!(crate::support::joined(held).await, ErrorKind::ConnectionReset);
        drop(other);
    });
}
