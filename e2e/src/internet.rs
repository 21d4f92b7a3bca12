//! An internet for tests: a network namespace of its own in which the test runs, and another at the far end of a cable,
//! with public addresses, servers and names. Nothing leaves the machine, and nothing of the machine is changed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, mpsc};

use bytes::BytesMut;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;

use crate::registry::command;
use crate::skip::skipped;
use crate::zone::Zone;

/// What somebody at the far end received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// To which address and port of the far end it came.
    pub to: SocketAddr,
    /// All that came, of a connection.
    pub bytes: Vec<u8>,
}

/// The far end of the cable.
#[derive(Debug, Clone)]
pub struct Internet {
    far: Handle,
    seen: Arc<Mutex<Vec<Seen>>>,
    zone: Zone,
}

/// The addresses at the far end that are public.
pub const PUBLIC: [&str; 6] =
    ["93.184.215.14", "93.184.215.15", "151.101.1.1", "9.9.9.9", "2606:2800:21f::14", "2606:2800:21f::15"];
/// Those that are not.
pub const NOT_PUBLIC: [&str; 7] = [
    "10.9.9.9",
    "172.16.9.9",
    "192.168.9.9",
    "100.64.9.9",
    "169.254.169.254",
    "fd12:3456::9",
    "64:ff9b::a09:909",
];
/// A public address of the near end's own.
pub const OWN: &str = "151.101.1.99";
/// Where names are asked for.
pub const NAME_SERVER: &str = "9.9.9.9";

/// Runs `test` with an internet, in threads of their own. It is skipped where namespaces cannot be made.
pub fn with_internet<T, F>(test: T)
where
    T: FnOnce(Internet) -> F + Send + 'static,
    F: Future<Output = ()>,
{
    on_internet(move |internet, runtime| runtime.block_on(test(internet)));
}

/// The same for a test that has its own way to run.
pub fn on_internet<T>(test: T)
where
    T: FnOnce(Internet, &Runtime) + Send + 'static,
{
    if let Some(lack) = lacks() {
        return skipped("REQUIRE_VM", &lack);
    }
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        leave_network();
        let (internet, _end) = Internet::begin();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        test(internet, &runtime.unwrap());
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// What an internet needs and this machine lacks.
pub fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    match command("ip").arg("-V").output() {
        Ok(output) if output.status.success() => None,
        _ => Some("there is no `ip`: the package iproute2 has it".into()),
    }
}

/// Gives this thread a network namespace of its own, which those that it starts share.
fn leave_network() {
    #[expect(unsafe_code, reason = "threads of one process may differ in this")]
    // SAFETY: of namespaces that threads share, a new one of the network touches no memory and no descriptor.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET).unwrap()
    };
}

/// Runs `ip`, which must succeed.
fn ip(arguments: &str) {
    let output = command("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Internet {
    /// Lays the cable from this thread's namespace to a new one, which lasts until the sender is dropped.
    fn begin() -> (Self, oneshot::Sender<()>) {
        let (ready, is_ready) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let far_side = move || {
            leave_network();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            ready.send((tid, runtime.handle().clone())).unwrap();
            // Whoever holds the other end is gone, or has let go: both are the end.
            runtime.block_on(ended).ok();
        };
        std::thread::Builder::new().name("internet".into()).spawn(far_side).unwrap();
        let (tid, far) = is_ready.recv().unwrap();
        ip("link set lo up");
        ip(&format!("link add cable type veth peer name cable netns {tid}"));
        ip("addr add 203.0.113.1/24 dev cable");
        ip("addr add 2001:db8:1::1/64 dev cable nodad");
        ip("link set cable up");
        ip(&format!("addr add {OWN}/32 dev cable"));
        // So that it may ping, which the kernel lets nobody do in a namespace that is new.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        let internet = Self { far, seen: Arc::default(), zone: Zone::default() };
        internet.there(async {
            ip("link set lo up");
            ip("addr add 203.0.113.2/24 dev cable");
            ip("addr add 2001:db8:1::2/64 dev cable nodad");
            ip("link set cable up");
            for address in PUBLIC.iter().chain(&NOT_PUBLIC) {
                let address: IpAddr = address.parse().unwrap();
                ip(&format!("addr add {address}/{} dev lo", if address.is_ipv4() { 32 } else { 128 }));
            }
        });
        ip("route add default via 203.0.113.2");
        ip("-6 route add default via 2001:db8:1::2");
        let zone = internet.zone.clone();
        internet.there(async move { zone.serve(NAME_SERVER.parse().unwrap()).await });
        (internet, end)
    }

    /// Does `work` at the far end, and waits for it.
    pub fn there<T, F>(&self, work: F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let (done, is_done) = mpsc::channel();
        self.far.spawn(async move { done.send(work.await) });
        is_done.recv().unwrap()
    }

    /// The names of this internet.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// What has come to the far end so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Listens on `port` of every address there, of both protocols, records who comes, and answers what comes with
    /// `answer`. The name server's own port is left to it.
    pub fn listen(&self, port: u16, answer: &'static [u8]) {
        let all = PUBLIC.into_iter().chain(NOT_PUBLIC);
        let all: Vec<_> = all.filter(|address| (*address, port) != (NAME_SERVER, 53)).collect();
        self.listen_at(&all, port, answer);
    }

    /// The same on some of the addresses.
    pub fn listen_at(&self, addresses: &[&str], port: u16, answer: &'static [u8]) {
        let seen = self.seen.clone();
        let at = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), port));
        let at: Vec<_> = at.collect();
        self.there(async move {
            for at in at {
                let tcp = TcpListener::bind(at).await.unwrap();
                let udp = UdpSocket::bind(at).await.unwrap();
                tokio::spawn(accept(tcp, answer, seen.clone()));
                tokio::spawn(receive(udp, answer, seen.clone()));
            }
        });
    }

    /// Records all echoes that come to the far end over IPv4 from now on.
    pub fn watch_echoes(&self) {
        let seen = self.seen.clone();
        self.there(async move {
            let icmp = rustix::net::ipproto::ICMP;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(icmp)).unwrap();
            // It has the same calls as one of UDP.
            let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket)).unwrap();
            tokio::spawn(async move {
                let mut bytes = vec![0; 65536];
                while let Ok(length) = socket.recv(&mut bytes).await {
                    let to = SocketAddr::from(([0; 4], 0));
                    record(&seen, Seen { protocol: "icmp", to, bytes: bytes[..length].to_vec() });
                }
            });
        });
    }

    /// Has `serve` take the connections to `port` of every address there.
    pub fn serve<S, F>(&self, port: u16, serve: S)
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        self.there(async move {
            let listener = TcpListener::bind(("::", port)).await.unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // What a client breaks off is its own affair.
                    let served = serve(stream);
                    tokio::spawn(async move { served.await.ok() });
                }
            });
        });
    }
}

async fn accept(listener: TcpListener, answer: &'static [u8], seen: Arc<Mutex<Vec<Seen>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let seen = seen.clone();
        tokio::spawn(async move {
            let to = stream.local_addr().unwrap();
            // A connection counts, whether anything comes by it or not.
            let index = record(&seen, Seen { protocol: "tcp", to, bytes: Vec::new() });
            let mut bytes = BytesMut::with_capacity(4096);
            while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                seen.lock().unwrap()[index].bytes.extend_from_slice(&bytes.split());
                if stream.write_all(answer).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn receive(socket: UdpSocket, answer: &'static [u8], seen: Arc<Mutex<Vec<Seen>>>) {
    let to = socket.local_addr().unwrap();
    let mut bytes = vec![0; 65536];
    while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
        record(&seen, Seen { protocol: "udp", to, bytes: bytes[..length].to_vec() });
        socket.send_to(answer, from).await.ok();
    }
}

fn record(seen: &Mutex<Vec<Seen>>, what: Seen) -> usize {
    let mut seen = seen.lock().unwrap();
    seen.push(what);
    seen.len() - 1
}
