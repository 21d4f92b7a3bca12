//! A network with a sandbox in front of it that sends what no kernel would.

#![expect(clippy::unwrap_used, reason = "tests")]

mod craft;
mod neighbours;

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use bouvet_net::dns::Resolver;
use bouvet_net::packet::{self, Transport};
use bouvet_net::{Inbound, Limits, Member, Network, NetworkOptions, Outbound, Policy, Refusal, Sockets};
use bytes::Bytes;
use smoltcp::wire::TcpControl;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use self::craft::{Segment, datagram, echo, fix, tcp};

const DEADLINE: Duration = Duration::from_secs(30);
const GUEST: &str = "10.0.2.15";
const GATEWAY: &str = "10.0.2.2";

/// What is done to a packet that was well-formed.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

/// A sandbox, byte by byte.
struct Sandbox {
    network: Network,
    inbound: Inbound,
    outbound: Outbound,
    heard: std::collections::VecDeque<Bytes>,
}

impl Sandbox {
    fn new(allow: &[String], limits: Limits) -> Self {
        Self::on(None, &Sockets::new(4096), allow, limits)
    }

    /// One of those that have `sockets` together.
    fn among(sockets: &Sockets, allow: &[String], limits: Limits) -> Self {
        Self::on(None, sockets, allow, limits)
    }

    fn on(member: Option<Member>, sockets: &Sockets, allow: &[String], limits: Limits) -> Self {
        let allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
        let network = Network::new(NetworkOptions {
            member,
            policy: Policy { allow, deny: Vec::new() },
            bound: None,
            limits,
            sockets: sockets.clone(),
            resolver: Resolver::of_servers(vec!["192.0.2.1".parse().unwrap()]),
            interceptor: None,
        });
        let (inbound, outbound) = network.attach();
        Self { network, inbound, outbound, heard: [].into() }
    }

    async fn send(&self, packet: Bytes) {
        self.inbound.send(vec![packet]).await.unwrap();
    }

    /// The next packet that it is sent.
    async fn hear(&mut self) -> Bytes {
        loop {
            if let Some(packet) = self.heard.pop_front() {
                return packet;
            }
            let packets = tokio::time::timeout(DEADLINE, self.outbound.next()).await.expect("nothing came");
            self.heard.extend(packets.unwrap());
        }
    }

    /// Waits until all that was sent was looked at, and nothing came of it: the gateway answers what comes last.
    async fn hears_nothing(&mut self) {
        self.send(echo(GUEST, GATEWAY, b"last")).await;
        let packet = self.hear().await;
        assert_eq!(packet[20], 0, "an answer to the echo, and not {packet:?}");
        assert!(packet.ends_with(b"last"));
    }

    async fn hears_reset(&mut self) {
        let packet = self.hear().await;
        assert!(is_reset(&packet), "{packet:?}");
    }

    fn refused(&self, refusal: Refusal) -> u64 {
        self.network.counts().refused.get(&refusal).copied().unwrap_or(0)
    }

    async fn refuses(&self, refusal: Refusal, times: u64) {
        let until = tokio::time::Instant::now() + DEADLINE;
        while self.refused(refusal) != times {
            assert!(tokio::time::Instant::now() < until, "{:?}", self.network.counts());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn counts(&self, open_connections: u64) {
        let until = tokio::time::Instant::now() + DEADLINE;
        while self.network.counts().open_connections != open_connections {
            assert!(tokio::time::Instant::now() < until, "{:?}", self.network.counts());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn is_reset(packet: &[u8]) -> bool {
    let read = packet::parse(packet).unwrap();
    matches!(read.transport, Transport::Tcp { rst: true, .. })
}

fn at(port: u16) -> Segment<'static> {
    Segment {
        from: format!("{GUEST}:1000").parse().unwrap(),
        to: SocketAddr::new(GATEWAY.parse().unwrap(), port),
        control: TcpControl::Syn,
        number: 1000,
        answers: None,
        payload: &[],
    }
}

/// A port of the host's loopback on which nobody accepts, and where there is room for no more who wait.
fn full_port() -> (StdListener, Vec<std::net::TcpStream>, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = StdListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
    }
    (listener, waiting, address.port())
}

#[tokio::test]
async fn what_is_not_from_the_sandbox_is_not_heard() {
    let mut sandbox = Sandbox::new(&[], Limits::default());
    for other in ["10.0.2.16:1", "10.0.2.2:1", "127.0.0.1:1", "93.184.215.14:1", "0.0.0.0:1"] {
        sandbox.send(tcp(&Segment { from: other.parse().unwrap(), ..at(9) })).await;
        sandbox.send(datagram(other, "10.0.2.2:53", b"?")).await;
        sandbox.send(echo(other.strip_suffix(":1").unwrap(), GATEWAY, b"?")).await;
    }
    sandbox.send(datagram("[fd00:b0e7::16]:1", "[fd00:b0e7::2]:53", b"?")).await;
    sandbox.hears_nothing().await;
    assert_eq!(sandbox.refused(Refusal::Source), 3 * 5 + 1);
    assert_eq!(sandbox.network.counts().queries, 0);
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_not_read() {
    let mut sandbox = Sandbox::new(&[], Limits::default());
    let plain = || datagram("10.0.2.15:1000", "10.0.2.2:53", b"?").to_vec();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = plain();
        change(&mut bytes);
        fix(&mut bytes);
        Bytes::from(bytes)
    };
    let cases: [(Change<'_>, Refusal); 6] = [
        (&|bytes| bytes[6] |= 0x20, Refusal::Fragment),
        (&|bytes| bytes[7] = 2, Refusal::Fragment),
        (
            &|bytes| {
                (bytes[0], bytes[3]) = (0x46, bytes[3] + 4);
                bytes.splice(20..20, [131, 3, 4, 0]);
            },
            Refusal::Options,
        ),
        (&|bytes| bytes[9] = 47, Refusal::Protocol),
        (&|bytes| bytes[9] = 132, Refusal::Protocol),
        (&|bytes| bytes[0] = 0x55, Refusal::Malformed),
    ];
    for (change, why) in cases {
        let before = sandbox.refused(why);
        sandbox.send(changed(change)).await;
        sandbox.hears_nothing().await;
        assert_eq!(sandbox.refused(why), before + 1, "{why:?}");
    }
    let mut wrong = plain();
    *wrong.last_mut().unwrap() ^= 1;
    for malformed in [wrong, plain()[..27].to_vec(), Vec::new(), vec![0x60; 39], vec![0xff; 65_535]] {
        let before = sandbox.refused(Refusal::Malformed);
        sandbox.send(malformed.into()).await;
        sandbox.hears_nothing().await;
        assert_eq!(sandbox.refused(Refusal::Malformed), before + 1);
    }
}

#[tokio::test]
async fn what_is_of_no_connection_is_reset_and_a_reset_is_not() {
    let mut sandbox = Sandbox::new(&[], Limits::default());
    let answers = Some(77);
    for control in [TcpControl::None, TcpControl::Psh, TcpControl::Fin, TcpControl::Syn] {
        sandbox.send(tcp(&Segment { control, answers, ..at(9) })).await;
        let packet = sandbox.hear().await;
        assert!(is_reset(&packet), "{control:?}");
        assert_eq!(packet[24..28], [0, 0, 0, 77], "its number is the one that was expected");
    }
    sandbox.send(tcp(&Segment { control: TcpControl::Rst, answers, ..at(9) })).await;
    sandbox.hears_nothing().await;
    assert_eq!(sandbox.network.counts().refused, [].into());
}

#[tokio::test]
async fn connections_that_never_come_about_are_limited_and_given_up() {
    let (_listener, _waiting, port) = full_port();
    let limits = Limits { max_connections: 8, dial_timeout_ms: 120_000, ..Limits::default() };
    let mut sandbox = Sandbox::new(&[format!("host:{port}")], limits);
    let from = |number: u16| SocketAddr::from(([10, 0, 2, 15], 2000 + number));
    for number in 0..8 {
        sandbox.send(tcp(&Segment { from: from(number), ..at(port) })).await;
    }
    sandbox.hears_nothing().await;
    sandbox.counts(8).await;
    for number in 8..20 {
        sandbox.send(tcp(&Segment { from: from(number), ..at(port) })).await;
        sandbox.hears_reset().await;
    }
    assert_eq!(sandbox.refused(Refusal::Limit), 12);
    // It asks again, says something nobody asked for, and gives up.
    for number in 0..8 {
        let asked = Segment { from: from(number), ..at(port) };
        sandbox.send(tcp(&asked)).await;
        let payload = &[7; 60_000];
        for _ in 0..70 {
            sandbox
                .send(tcp(&Segment { control: TcpControl::None, answers: Some(1), payload, ..asked }))
                .await;
        }
        sandbox.send(tcp(&Segment { control: TcpControl::Rst, ..asked })).await;
    }
    sandbox.counts(0).await;
    assert_eq!(sandbox.network.counts().connections, 0);
}

/// One sandbox cannot take what the process needs for all else.
#[tokio::test]
async fn sandboxes_have_so_many_sockets_together_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _datagrams = tokio::net::UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
    let (sockets, allow) = (Sockets::new(3), [format!("host:{port}")]);
    let begin =
        |number: u16| tcp(&Segment { from: format!("{GUEST}:{number}").parse().unwrap(), ..at(port) });
    let say = || datagram("10.0.2.15:9", &format!("{GATEWAY}:{port}"), b"?");
    let mut greedy = Sandbox::among(&sockets, &allow, Limits::default());
    for number in [1, 2] {
        greedy.send(begin(number)).await;
        assert!(!is_reset(&greedy.hear().await));
    }
    greedy.send(say()).await;
    greedy.hears_nothing().await;
    assert_eq!((sockets.free(), greedy.refused(Refusal::Limit)), (0, 0), "all that there are");

    let mut other = Sandbox::among(&sockets, &allow, Limits::default());
    other.send(begin(1)).await;
    other.hears_reset().await;
    other.send(say()).await;
    assert_eq!(other.hear().await[20], 3, "it is unreachable");
    other.send(datagram("10.0.2.15:9", "10.0.2.2:53", b"?")).await;
    other.hears_nothing().await;
    other.refuses(Refusal::Limit, 3).await;

    drop(greedy);
    let until = tokio::time::Instant::now() + DEADLINE;
    while sockets.free() < 3 {
        assert!(tokio::time::Instant::now() < until, "{sockets:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    other.send(begin(2)).await;
    assert!(!is_reset(&other.hear().await));
    assert_eq!(sockets.free(), 2);
}

/// A sandbox whose device takes nothing stops its servers, and nobody else.
#[tokio::test]
async fn who_takes_no_packets_is_sent_no_more_than_there_is_room_for() {
    const SAID: usize = 64 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut sandbox = Sandbox::new(&[format!("host:{port}")], Limits::default());
    sandbox.send(tcp(&at(port))).await;
    let answer = sandbox.hear().await;
    let number = u32::from_be_bytes(answer[24..28].try_into().unwrap());
    let heard = Segment {
        control: TcpControl::None,
        number: 1001,
        answers: Some(number.wrapping_add(1)),
        ..at(port)
    };
    sandbox.send(tcp(&heard)).await;
    let (mut server, _) = listener.accept().await.unwrap();
    let (mut said, bytes) = (0, vec![7; SAID]);
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), server.write(&bytes)).await {
        said += written.unwrap();
        assert!(said < SAID, "all of it found room");
    }
    drop(sandbox.inbound);
    let error = tokio::time::timeout(DEADLINE, server.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // Those that were made before are all that is left.
    while tokio::time::timeout(DEADLINE, sandbox.outbound.next())
        .await
        .expect("the network never ended")
        .is_some()
    {}
}
