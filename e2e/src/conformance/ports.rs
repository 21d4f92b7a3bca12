//! Ports of the host that lead into a sandbox.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use bouvet_host::{
    BoxConfig, CreateError, Exec, ExecEvent, ExecRequest, Host, MappedPort, PortError, PortProtocol,
    PortSpec, Sandbox,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::create;
use crate::drive::{assert_usable, eventually, patient, sh};
use crate::site::{Site, Vmm, small};

/// What may lead through the ports of one sandbox at once.
const MOST: usize = 128;
const MIB: usize = 1024 * 1024;

/// Makes a test of every case about ports and the life of a VM, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_ports {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            connections_survive_a_pause_and_new_ones_wait
            a_stopped_sandbox_keeps_its_ports
            a_persistent_sandbox_has_its_ports_back_or_says_why_not
        }
    };
}

/// A server in a sandbox, for as long as this lives.
struct Server {
    port: u16,
    _runs: Exec,
}

/// Runs the server of `ports.py` at `port`, 0 for any.
async fn server(sandbox: &Sandbox, port: u16, more: &str) -> Server {
    running(sandbox, include_str!("ports.py"), port, more).await
}

/// Runs the server of `datagrams.py`.
async fn datagram_server(sandbox: &Sandbox, port: u16, more: &str) -> Server {
    running(sandbox, include_str!("datagrams.py"), port, more).await
}

async fn running(sandbox: &Sandbox, source: &'static str, port: u16, more: &str) -> Server {
    sandbox.write("server.py", Bytes::from(source), false).await.unwrap();
    let request = ExecRequest {
        timeout: patient(600),
        ..ExecRequest::new(bouvet_host::Program::Command, format!("exec python3 server.py {port} {more}"))
    };
    let mut runs = sandbox.exec(request).await.unwrap();
    let said = match runs.next().await.unwrap() {
        Some(ExecEvent::Stdout(said)) => String::from_utf8(said.to_vec()).unwrap(),
        other => panic!("the server said {other:?}"),
    };
    Server { port: said.trim().parse().unwrap(), _runs: runs }
}

fn expose(sandbox: &Sandbox, guest: u16) -> MappedPort {
    sandbox.expose(guest.to_string().parse().unwrap()).unwrap()
}

/// Connected to the server, which was told `order`.
async fn connected(host: SocketAddr, order: &str) -> TcpStream {
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    stream
}

/// All that comes, to the end.
async fn rest(stream: &mut TcpStream) -> Result<Vec<u8>, ErrorKind> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(patient(60), stream.read_to_end(&mut all)).await;
    match read.unwrap_or_else(|_| panic!("no end came after {} bytes", all.len())) {
        Ok(_) => Ok(all),
        Err(error) => Err(error.kind()),
    }
}

async fn said(stream: &mut TcpStream, what: &[u8]) {
    let mut said = vec![0; what.len()];
    let read = tokio::time::timeout(patient(60), stream.read_exact(&mut said)).await;
    read.expect("it said nothing").unwrap();
    assert_eq!(said, what);
}

/// What is answered to `what`. A reset is told to whoever connects, writes or reads next, and to nobody else.
async fn asked(host: SocketAddr, what: &[u8]) -> Result<Vec<u8>, ErrorKind> {
    let mut stream = TcpStream::connect(host).await.map_err(|error| error.kind())?;
    stream.write_all(what).await.map_err(|error| error.kind())?;
    rest(&mut stream).await
}

/// Whether whoever connects is refused.
async fn refuses(host: SocketAddr) -> bool {
    match asked(host, b"source 1\n").await {
        Ok(said) => {
            assert_eq!(said, [0]);
            false
        }
        Err(ErrorKind::ConnectionReset) => true,
        Err(error) => panic!("{error}"),
    }
}

/// A peer of the datagrams' server.
struct Peer(UdpSocket);

impl Peer {
    async fn of(host: SocketAddr) -> Self {
        let any: SocketAddr = if host.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any).await.unwrap();
        socket.connect(host).await.unwrap();
        Self(socket)
    }

    /// The answer to `what`, `None` if none comes for a while.
    async fn try_ask(&self, what: &[u8]) -> Option<Vec<u8>> {
        self.0.send(what).await.unwrap();
        let mut answer = vec![0; 65_536];
        let length = tokio::time::timeout(patient(2), self.0.recv(&mut answer)).await.ok()?.unwrap();
        answer.truncate(length);
        Some(answer)
    }

    /// The answer to `what`, which may have to be asked again: datagrams get lost.
    async fn ask(&self, what: &[u8]) -> Vec<u8> {
        for _ in 0..30 {
            if let Some(answer) = self.try_ask(what).await {
                return answer;
            }
        }
        panic!("no answer came to {} bytes", what.len());
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=255u8).cycle().take(length).collect()
}

/// A port of this machine that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub async fn a_port_of_the_host_leads_to_a_server_in_the_sandbox(host: &Host) {
    // Of the sandbox: on the engine without VMs that is this machine.
    let guest = free_port();
    let config = BoxConfig { port_map: vec![format!("0:{guest}")], ..small() };
    let sandbox = host.create(config).await.unwrap();
    let [port] = &sandbox.ports()[..] else { panic!("{:?}", sandbox.ports()) };
    assert_eq!((port.guest, port.protocol, &port.error), (guest, PortProtocol::Tcp, &None));
    assert!(port.host.ip().is_loopback() && port.host.port() != 0, "{}", port.host);
    assert_eq!(sandbox.info().ports, std::slice::from_ref(port));
    assert!(refuses(port.host).await, "nobody listens there yet");

    let serve = format!(
        "mkdir -p www; echo hello from the sandbox >www/x; cd www; exec python3 -m http.server {guest}"
    );
    let _runs = sandbox.exec(ExecRequest::new(bouvet_host::Program::Command, serve)).await.unwrap();
    let deadline = std::time::Instant::now() + patient(60);
    let answer = loop {
        match asked(port.host, b"GET /x HTTP/1.0\r\n\r\n").await {
            Ok(answer) => break String::from_utf8(answer).unwrap(),
            Err(error) => assert!(std::time::Instant::now() < deadline, "the server never answered: {error}"),
        }
    };
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("hello from the sandbox\n"), "{answer}");

    // What has it is named, and nothing is left of who wanted it.
    let taken = BoxConfig { port_map: vec!["0:1".into(), format!("{}:80", port.host)], ..small() };
    let error = host.create(taken).await.unwrap_err();
    assert!(matches!(&error, CreateError::Port(PortError::InUse { holder: Some(_), .. })), "{error}");
    assert!(error.to_string().contains(&format!("`{}:80/tcp`", port.host)), "{error}");
    assert_eq!(host.list().len(), 1);
    sandbox.destroy().await;
    TcpListener::bind(port.host).expect("the port of a sandbox that is gone is free");
}

pub async fn bytes_pass_through_a_port_both_ways(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "").await;
    let port = expose(&sandbox, server.port).host;
    for number in 0..200 {
        let mut stream = connected(port, "echo").await;
        let text = format!("number {number}");
        stream.write_all(text.as_bytes()).await.unwrap();
        said(&mut stream, text.as_bytes()).await;
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), b"");
    }
    let mut half = connected(port, "half").await;
    said(&mut half, b"begin ").await;
    half.write_all(b"and").await.unwrap();
    half.shutdown().await.unwrap();
    assert_eq!(rest(&mut half).await.unwrap(), b"and after");

    // Both ways at once, more than all buffers hold.
    let sent = pattern(8 * MIB);
    let stream = connected(port, "echo").await;
    let (mut reader, mut writer) = stream.into_split();
    let own = sent.clone();
    let sending = tokio::spawn(async move {
        writer.write_all(&own).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut came = Vec::new();
    tokio::time::timeout(patient(120), reader.read_to_end(&mut came))
        .await
        .expect("it took too long")
        .unwrap();
    sending.await.unwrap();
    assert!(came == sent, "{} bytes came", came.len());

    let mut sink = connected(port, &format!("sink {}", sent.len())).await;
    sink.write_all(&sent).await.unwrap();
    sandbox.write("sent", sent.into(), false).await.unwrap();
    let digest = sh(&sandbox, "sha256sum sent | cut -d ' ' -f 1").await;
    assert_eq!(rest(&mut sink).await.unwrap(), digest.as_bytes());
}

pub async fn a_connection_that_breaks_breaks_at_the_other_end(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "").await;
    let port = expose(&sandbox, server.port).host;
    let mut stream = connected(port, "reset").await;
    said(&mut stream, b"half an ans").await;
    stream.write_all(b"\n").await.unwrap();
    assert_eq!(rest(&mut stream).await, Err(ErrorKind::ConnectionReset), "that is no end");

    let mut stream = connected(port, "watch").await;
    said(&mut stream, b"watched").await;
    stream.write_all(b"12345").await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    eventually(&sandbox, "grep -q reset watched").await;
    let mut stream = connected(port, "watch").await;
    said(&mut stream, b"watched").await;
    stream.write_all(b"12345").await.unwrap();
    drop(stream);
    eventually(&sandbox, "grep -q 'ended after 5' watched").await;
}

pub async fn who_does_not_read_holds_nobody_else_up(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "").await;
    let port = expose(&sandbox, server.port).host;
    let mut unread = Vec::new();
    for _ in 0..MOST / 2 - 1 {
        unread.push(connected(port, "source 100000000").await);
        let mut stalled = connected(port, "stall").await;
        // As much as it takes, which has an end.
        let part = vec![0; 256 * 1024];
        let mut taken = 0;
        while let Ok(write) =
            tokio::time::timeout(std::time::Duration::from_millis(50), stalled.write(&part)).await
        {
            taken += write.unwrap();
            assert!(taken < 64 * MIB, "a program that reads nothing is sent everything");
        }
        unread.push(stalled);
    }
    assert_usable(&sandbox).await;
    let mut stream = connected(port, "echo").await;
    stream.write_all(b"still here").await.unwrap();
    said(&mut stream, b"still here").await;
    // One that is read goes on where it was.
    let mut first = unread.swap_remove(0);
    let mut came = vec![0; 4 * MIB];
    tokio::time::timeout(patient(60), first.read_exact(&mut came)).await.expect("it stood still").unwrap();
    assert!(came == pattern(4 * MIB));
}

pub async fn there_is_a_most_of_connections_through_ports(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "").await;
    // All ports together.
    let ports = [expose(&sandbox, server.port).host, expose(&sandbox, server.port).host];
    let mut open = Vec::new();
    for number in 0..MOST {
        let mut stream = connected(ports[number % 2], "echo").await;
        stream.write_all(b"x").await.unwrap();
        said(&mut stream, b"x").await;
        open.push(stream);
    }
    assert!(refuses(ports[0]).await && refuses(ports[1]).await, "there are as many as may be");
    for stream in &mut open {
        stream.write_all(b"y").await.unwrap();
        said(stream, b"y").await;
    }
    open.clear();
    let deadline = std::time::Instant::now() + patient(60);
    while refuses(ports[0]).await {
        assert!(std::time::Instant::now() < deadline, "there is never room again");
    }
}

/// HTTP/2 counts calls that are given up, and ends a link that has had too many.
pub async fn connections_given_up_by_the_thousand_leave_a_sandbox_whole(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "").await;
    let port = expose(&sandbox, server.port).host;
    // Whether there was room: who gives up has made it already, and the sandbox may be behind.
    let abandon = |number: usize| async move {
        let mut stream = TcpStream::connect(port).await?;
        if number.is_multiple_of(3) {
            return Ok(());
        }
        stream.write_all(b"source 100000000\n").await?;
        // In the middle of an answer, with an end or without.
        stream.read_exact(&mut [0; 1000]).await?;
        if number % 3 == 1 {
            stream.set_zero_linger()?;
        }
        Ok::<(), std::io::Error>(())
    };
    let all = stream::iter(0..3000).map(abandon).buffer_unordered(16);
    let all = tokio::time::timeout(patient(300), all.collect::<Vec<_>>()).await.expect("they took too long");
    let carried = all.iter().filter(|one| one.is_ok()).count();
    assert!(carried > 1500, "only {carried} of them had a place");
    let deadline = std::time::Instant::now() + patient(60);
    while refuses(port).await {
        assert!(std::time::Instant::now() < deadline, "their places are never free again");
    }
    assert_usable(&sandbox).await;
    let mut stream = connected(port, "echo").await;
    stream.write_all(b"x").await.unwrap();
    said(&mut stream, b"x").await;
}

pub async fn ports_are_added_and_closed_while_a_sandbox_runs(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "").await;
    let port = expose(&sandbox, server.port);
    let mut stream = connected(port.host, "half").await;
    said(&mut stream, b"begin ").await;
    let same: PortSpec = format!("{}:{}", port.host, server.port).parse().unwrap();
    assert!(matches!(sandbox.expose(same), Err(PortError::InUse { .. })));
    let nowhere = "192.0.2.1:0:80".parse().unwrap();
    assert!(matches!(sandbox.expose(nowhere), Err(PortError::NoAddress { .. })));
    sandbox.unexpose(server.port, PortProtocol::Tcp).await.unwrap();
    assert_eq!(rest(&mut stream).await, Err(ErrorKind::ConnectionReset), "it was closed");
    assert!(sandbox.ports().is_empty());
    TcpListener::bind(port.host).expect("it is free again");
    let error = sandbox.unexpose(server.port, PortProtocol::Tcp).await.unwrap_err();
    assert!(matches!(error, PortError::NotExposed { .. }), "{error}");

    for number in 1..=64 {
        expose(&sandbox, number);
    }
    let error = sandbox.expose("80".parse().unwrap()).unwrap_err();
    assert!(matches!(error, PortError::TooMany(64)), "{error}");
    let ports = sandbox.ports();
    sandbox.destroy().await;
    for port in ports {
        TcpListener::bind(port.host).expect("all are free again");
    }
    assert!(matches!(sandbox.expose("80".parse().unwrap()), Err(PortError::Refused(_))));
}

pub async fn a_server_may_listen_on_ipv6_alone_and_so_may_the_host(host: &Host) {
    let sandbox = create(host).await;
    let server = server(&sandbox, 0, "::1").await;
    for address in ["[::1]", "127.0.0.1", "[::]", "0.0.0.0"] {
        let port = sandbox.expose(format!("{address}:0:{}", server.port).parse().unwrap()).unwrap().host;
        let mut stream = connected(port, "echo").await;
        stream.write_all(b"x").await.unwrap();
        said(&mut stream, b"x").await;
        if address == "[::]" {
            TcpListener::bind(("0.0.0.0", port.port())).expect("that is another port");
        }
    }
}

pub async fn server_on_its_own_address_is_reached(host: &Host) {
    // The own address of a sandbox without a network. The loopback address refuses.
    const OWN: &str = "127.0.1.1";
    let sandbox = create(host).await;
    let own = server(&sandbox, 0, OWN).await;
    let port = expose(&sandbox, own.port).host;
    let mut stream = connected(port, "echo").await;
    stream.write_all(b"x").await.unwrap();
    said(&mut stream, b"x").await;

    let own = datagram_server(&sandbox, 0, OWN).await;
    let peer = Peer::of(one_of_both(&sandbox, own.port).await).await;
    for number in 0..20 {
        let text = number.to_string();
        assert_eq!(peer.ask(text.as_bytes()).await, text.as_bytes());
    }
}

pub async fn datagrams_pass_through_a_port_and_answers_find_their_way_back(host: &Host) {
    let sandbox = create(host).await;
    let server = datagram_server(&sandbox, 0, "").await;
    // The same port of TCP is another.
    let port = one_of_both(&sandbox, server.port).await;
    let [one, other] = [Peer::of(port).await, Peer::of(port).await];
    let [first, second] = [one.ask(b"who").await, other.ask(b"who").await];
    assert_ne!(first, second, "each has a socket of its own");
    assert_eq!(one.ask(b"who").await, first, "and keeps it");
    for number in 0..100 {
        for (name, peer) in [("one", &one), ("other", &other)] {
            let text = format!("{name} {number}");
            assert_eq!(peer.ask(text.as_bytes()).await, text.as_bytes());
        }
    }
    assert_eq!(one.ask(b"").await, b"");
    let largest = pattern(65_507);
    assert!(one.ask(&largest).await == largest);
    // More peers than may be: the oldest give way.
    for number in 0..300 {
        let text = format!("peer {number}");
        assert_eq!(Peer::of(port).await.ask(text.as_bytes()).await, text.as_bytes());
    }
    assert_eq!(one.ask(b"still").await, b"still");

    let taken = BoxConfig { port_map: vec![format!("{port}:1/udp")], ..small() };
    let error = host.create(taken).await.unwrap_err();
    assert!(matches!(&error, CreateError::Port(PortError::InUse { holder: Some(_), .. })), "{error}");
    sandbox.unexpose(server.port, PortProtocol::Udp).await.unwrap();
    UdpSocket::bind(port).await.expect("it is free again");
    assert_eq!(sandbox.ports().len(), 1);
}

/// Exposes a port of UDP that leads to `guest`, and the same of TCP that leads to port 1. Some that are free for one are not
/// for the other.
async fn one_of_both(sandbox: &Sandbox, guest: u16) -> SocketAddr {
    for _ in 0..100 {
        let port = sandbox.expose("1".parse().unwrap()).unwrap().host;
        match sandbox.expose(format!("{port}:{guest}/udp").parse().unwrap()) {
            Ok(_) => return port,
            Err(PortError::InUse { .. }) => sandbox.unexpose(1, PortProtocol::Tcp).await.unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no port was free for both");
}

pub async fn datagrams_are_lost_until_somebody_receives_them(host: &Host) {
    let sandbox = create(host).await;
    // Nobody has it: on the engine without VMs that is this machine.
    let guest = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let port = sandbox.expose(format!("[::1]:0:{guest}/udp").parse().unwrap()).unwrap().host;
    let peer = Peer::of(port).await;
    peer.0.send(b"lost").await.unwrap();
    assert_usable(&sandbox).await;
    let ipv6 = datagram_server(&sandbox, guest, "::1").await;
    assert_eq!(peer.ask(b"found").await, b"found");
    drop(ipv6);
    eventually(&sandbox, "! pgrep -f '[s]erver.py.*ipv6'").await;
    let _ipv4 = datagram_server(&sandbox, guest, "").await;
    assert_eq!(peer.ask(b"found again").await, b"found again");
}

pub async fn connections_survive_a_pause_and_new_ones_wait(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = create(&site.host).await;
    let server = server(&sandbox, 0, "").await;
    let port = expose(&sandbox, server.port).host;
    let mut open = connected(port, "echo").await;
    open.write_all(b"before").await.unwrap();
    said(&mut open, b"before").await;
    let mut large = connected(port, "source 20000000").await;
    said(&mut large, &pattern(1000)).await;
    let datagrams = datagram_server(&sandbox, 0, "").await;
    let peer = sandbox.expose(format!("{}/udp", datagrams.port).parse().unwrap()).unwrap();
    let peer = Peer::of(peer.host).await;
    assert_eq!(peer.ask(b"before").await, b"before");
    sandbox.pause().await.unwrap();
    peer.0.send(b"meanwhile").await.unwrap();
    open.write_all(b"meanwhile").await.unwrap();
    let mut new = connected(port, "echo").await;
    new.write_all(b"waited").await.unwrap();
    let early = tokio::time::timeout(std::time::Duration::from_secs(1), new.read_u8()).await;
    assert!(early.is_err(), "a paused sandbox answers nobody: {early:?}");
    sandbox.resume().await.unwrap();
    said(&mut open, b"meanwhile").await;
    said(&mut new, b"waited").await;
    let mut answer = [0; 64];
    let answered = tokio::time::timeout(patient(60), peer.0.recv(&mut answer)).await;
    assert_eq!(&answer[..answered.expect("it was lost").unwrap()], b"meanwhile");
    let came = rest(&mut large).await.unwrap();
    assert!(came.len() == 20_000_000 - 1000 && came[..] == pattern(20_000_000)[1000..]);
    site.end().await;
}

pub async fn a_stopped_sandbox_keeps_its_ports(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let config = BoxConfig { port_map: vec!["0:99".into()], ..small() };
    let sandbox = site.host.create(config).await.unwrap();
    let port = sandbox.ports()[0].host;
    let first = server(&sandbox, 99, "").await;
    let mut open = connected(port, "half").await;
    said(&mut open, b"begin ").await;
    sandbox.stop(patient(5)).await.unwrap();
    drop(first);
    assert_eq!(rest(&mut open).await, Err(ErrorKind::ConnectionReset), "its VM is gone");
    assert!(refuses(port).await, "it is stopped");
    TcpListener::bind(port).expect_err("it keeps its port");
    sandbox.start().await.unwrap();
    let _second = server(&sandbox, 99, "").await;
    assert_eq!(sandbox.ports()[0].host, port);
    let mut stream = connected(port, "echo").await;
    stream.write_all(b"again").await.unwrap();
    said(&mut stream, b"again").await;
    sandbox.destroy().await;
    TcpListener::bind(port).expect("destroyed, it keeps nothing");
    site.end().await;
}

pub async fn a_persistent_sandbox_has_its_ports_back_or_says_why_not(vmm: Vmm) {
    let data = tempfile::tempdir().unwrap();
    let Some(site) = Site::with_boxes(vmm, data.path()).await else { return };
    let wanted = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = BoxConfig {
        persistent: true,
        name: "db".into(),
        port_map: vec![format!("{}:99", wanted.port())],
        ..small()
    };
    site.host.create(config).await.unwrap();
    site.end().await;
    let taken = TcpListener::bind(wanted).expect("a host that has ended keeps no ports");

    let Some(site) = Site::with_boxes(vmm, data.path()).await else { return };
    let sandbox = site.host.find("db").unwrap();
    let [port] = &sandbox.ports()[..] else { panic!("{:?}", sandbox.ports()) };
    assert!(port.error.as_ref().is_some_and(|error| error.contains("is in use")), "{port:?}");
    let error = sandbox.start().await.unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    assert_eq!(sandbox.state().name(), "failed");
    drop(taken);
    sandbox.start().await.unwrap();
    assert_eq!((sandbox.ports()[0].host, &sandbox.ports()[0].error), (wanted, &None));
    let _server = server(&sandbox, 99, "").await;
    let mut stream = connected(wanted, "echo").await;
    stream.write_all(b"back").await.unwrap();
    said(&mut stream, b"back").await;
    sandbox.destroy().await;
    site.end().await;
}
