//! Datagrams and echoes.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use bouvet_net::{Limits, Refusal};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::support::{DEADLINE, HOST, Wants, World, pattern, policy, with_world};

async fn socket(to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn hear(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut datagram = vec![0; 65_536];
    let length = tokio::time::timeout(DEADLINE, socket.recv(&mut datagram)).await.expect("no answer")?;
    Ok(datagram[..length].to_vec())
}

#[test]
fn datagrams_are_answered_whatever_their_length() {
    with_world(Wants::default(), async |world| {
        for (address, longest) in [("93.184.215.14:7", 65_507), ("[2606:2800:21f::14]:7", 65_487)] {
            world.serve_echo(address).await;
            world
                .guest(async move {
                    let socket = socket(address).await;
                    for length in [0, 1, 1472, 16_384, longest] {
                        socket.send(&pattern(length)).await.unwrap();
                        assert!(hear(&socket).await.unwrap() == pattern(length), "{address} {length}");
                    }
                })
                .await;
        }
        let counts = world.network.counts();
        assert_eq!((counts.datagram_flows, counts.open_datagram_flows), (2, 2));
        assert_eq!(counts.refused, [].into());
    });
}

/// The socket that speaks for the sandbox hears nobody else.
#[test]
fn only_who_was_asked_can_answer() {
    with_world(Wants::default(), async |world| {
        let (tell, told) = tokio::sync::oneshot::channel::<SocketAddr>();
        let asked = world.internet(async {
            let socket = UdpSocket::bind("93.184.215.14:7").await.unwrap();
            let other = UdpSocket::bind("93.184.215.15:7").await.unwrap();
            let port = UdpSocket::bind("93.184.215.14:8").await.unwrap();
            tokio::spawn(async move {
                let (_, from) = socket.recv_from(&mut [0; 8]).await.unwrap();
                other.send_to(b"other", from).await.unwrap();
                port.send_to(b"port", from).await.unwrap();
                socket.send_to(b"asked", from).await.unwrap();
                tell.send(from).unwrap();
            });
        });
        asked.await;
        let heard = world.guest(async {
            let socket = socket("93.184.215.14:7").await;
            socket.send(b"?").await.unwrap();
            hear(&socket).await
        });
        assert_eq!(heard.await.unwrap(), b"asked");
        assert_eq!(told.await.unwrap().ip().to_string(), HOST);
    });
}

#[test]
fn a_datagram_that_does_not_arrive_is_said_to_be_lost() {
    with_world(Wants { policy: policy(&[], &["93.184.215.15"]), ..Wants::default() }, async |world| {
        let fails = |address: &'static str| {
            world.guest(async move {
                let socket = socket(address).await;
                socket.send(b"?").await.unwrap();
                hear(&socket).await.unwrap_err().kind()
            })
        };
        assert_eq!(fails("93.184.215.14:9").await, ErrorKind::ConnectionRefused, "nobody listens");
        assert_eq!(fails("[2606:2800:21f::14]:9").await, ErrorKind::ConnectionRefused, "nobody listens");
        for (address, why) in [
            ("93.184.215.15:9", Refusal::Denied),
            ("10.9.9.9:9", Refusal::Private),
            ("93.184.215.14:443", Refusal::Quic),
            ("93.184.215.14:53", Refusal::Dns),
            ("10.0.2.2:9", Refusal::Host),
        ] {
            // A rule forbids it (ICMP 3, 13).
            assert_eq!(fails(address).await, ErrorKind::HostUnreachable, "{address}");
            assert_eq!(world.refused(why), 1, "{address}");
        }
        assert_eq!(
            fails("[fd12::9]:9").await,
            ErrorKind::PermissionDenied,
            "a rule forbids it (ICMPv6 1, 1)"
        );
    });
}

#[test]
fn a_flow_is_forgotten_when_nothing_passes() {
    let limits = Limits { idle_datagrams_s: 1, ..Limits::default() };
    with_world(Wants { limits, ..Wants::default() }, async |world| {
        world.serve_echo("93.184.215.14:7").await;
        world
            .guest(async {
                let socket = socket("93.184.215.14:7").await;
                socket.send(b"?").await.unwrap();
                hear(&socket).await.unwrap();
            })
            .await;
        world.counts("forgotten", |counts| counts.open_datagram_flows == 0).await;
        assert_eq!(world.network.counts().datagram_flows, 1);
    });
}

/// A socket that pings, which sets the number of who asks by itself.
fn pinging(to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    let (domain, protocol) = match to {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol)).unwrap();
    socket.connect(&to.into()).unwrap();
    UdpSocket::from_std(std::net::UdpSocket::from(OwnedFd::from(socket))).unwrap()
}

async fn ping(world: &World, to: &'static str, said: &'static [u8]) -> io::Result<Vec<u8>> {
    world
        .guest(async move {
            let socket = pinging(to);
            let request = if to.starts_with('[') { 128 } else { 8 };
            socket.send(&[&[request, 0, 0, 0, 0, 0, 0, 7], said].concat()).await?;
            hear(&socket).await.map(|answer| answer[6..].to_vec())
        })
        .await
}

/// What a sandbox says by ping comes back to it, and never leaves.
#[test]
fn a_ping_is_answered_and_carries_nothing() {
    with_world(Wants::default(), async |world| {
        let (tell, overheard) = tokio::sync::oneshot::channel();
        world
            .internet(async {
                let raw = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::ICMPV4)).unwrap();
                let raw = UdpSocket::from_std(std::net::UdpSocket::from(OwnedFd::from(raw))).unwrap();
                tokio::spawn(async move {
                    let mut packet = vec![0; 2048];
                    let length = raw.recv(&mut packet).await.unwrap();
                    tell.send(packet[..length].to_vec()).unwrap();
                });
            })
            .await;
        let answer = [&[0, 7], &b"secret"[..]].concat();
        for to in ["93.184.215.14:0", "[2606:2800:21f::14]:0", "10.0.2.2:0", "[fd00:b0e7::2]:0"] {
            assert_eq!(ping(&world, to, b"secret").await.unwrap(), answer, "{to}");
        }
        let overheard = tokio::time::timeout(DEADLINE, overheard).await.unwrap().unwrap();
        assert_eq!(overheard.len(), 20 + 8, "{overheard:?}");
        assert_eq!(world.network.counts().echoes, 4);
        let error = ping(&world, "10.9.9.9:0", b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable);
        assert_eq!(world.refused(Refusal::Private), 1);
    });
}

#[test]
fn where_the_host_may_not_ping_the_sandbox_is_told() {
    with_world(Wants { pings: false, ..Wants::default() }, async |world| {
        let error = ping(&world, "93.184.215.14:0", b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable);
        assert_eq!(world.refused(Refusal::NoPing), 1);
        assert!(ping(&world, "10.0.2.2:0", b"x").await.is_ok(), "the gateway answers by itself");
    });
}
