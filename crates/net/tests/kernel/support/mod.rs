//! A real kernel in front of a [`Network`], and an internet behind it, each in a network namespace of its own. Nothing
//! leaves the machine, and nothing of the machine is changed.
//!
//! ```text
//! guest: sockets ─▶ TUN ══ Network ══▶ sockets: host ── cable ── internet: servers
//! ```

mod names;
mod serve;
mod skip;
mod tun;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bouvet_net::dns::Resolver;
use bouvet_net::{Addresses, Counts, Limits, Network, NetworkOptions, Policy, Refusal, Sockets};
use rustix::thread::UnshareFlags;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) use self::names::{GATEWAY, addresses, query, resolve};
pub(crate) use self::serve::{connect, converse, echo, narrow, pattern};
use self::tun::Tun;

/// How long anything may take that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The addresses of the internet. The last is not public.
pub(crate) const SERVERS: [&str; 4] = ["93.184.215.14", "93.184.215.15", "2606:2800:21f::14", "10.9.9.9"];
/// One of the host's own.
pub(crate) const HOST: &str = "203.0.113.1";
/// An address there that says nothing at all.
pub(crate) const SILENT: &str = "93.184.215.99";
/// That of the guest's interface, as in a sandbox.
const MTU_BYTES: u32 = 65_535;

/// What a test has. Its own thread is the host's.
#[derive(Debug)]
pub(crate) struct World {
    /// What is tested.
    pub(crate) network: Network,
    guest: Handle,
    internet: Handle,
    tun: Arc<Tun>,
    pump: JoinHandle<()>,
}

/// What a test wants of its network.
#[derive(Debug, Clone)]
pub(crate) struct Wants {
    /// What may be reached.
    pub(crate) policy: Policy,
    /// How much of it.
    pub(crate) limits: Limits,
    /// The MTU of the guest's interface.
    pub(crate) mtu_bytes: u32,
    /// Whether the host may ping.
    pub(crate) pings: bool,
}

impl Default for Wants {
    fn default() -> Self {
        Self { policy: Policy::default(), limits: Limits::default(), mtu_bytes: MTU_BYTES, pings: true }
    }
}

/// A policy of these rules.
pub(crate) fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Policy { allow: rules(allow), deny: rules(deny) }
}

/// Runs `test` in threads of its own, or says why it cannot.
pub(crate) fn with_world<T, F>(wants: Wants, test: T)
where
    T: FnOnce(World) -> F + Send + 'static,
    F: Future<Output = ()>,
{
    if let Some(lack) = lacks() {
        return skip::skipped("REQUIRE_VM", &lack);
    }
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let host_side = move || {
        leave_network();
        let (internet, _internet_end) = elsewhere("internet");
        let (guest, _guest_end) = elsewhere("guest");
        lay_cable(&internet);
        allow_pings(wants.pings);
        let tun = there(&guest.0, async move { make_guest(wants.mtu_bytes) });
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let world = runtime.block_on(async { World::new(wants, tun, guest.0, internet.0) });
        runtime.block_on(async { tokio::time::timeout(DEADLINE * 4, test(world)).await }).unwrap();
    };
    let thread = std::thread::Builder::new().name(name).spawn(host_side).unwrap();
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun: {error}"));
    }
    match program("ip").arg("-V").output() {
        Ok(output) if output.status.success() => None,
        _ => Some("there is no `ip`: the package iproute2 has it".into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "namespaces are arranged by the system's own tool")]
fn program(name: &str) -> Command {
    Command::new(name)
}

/// Runs `ip`, which must succeed, and says what it said.
fn ip(arguments: &str) -> String {
    let output = program("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Gives this thread a network namespace of its own, which those that it starts share.
fn leave_network() {
    #[expect(unsafe_code, reason = "threads of one process may differ in this")]
    // SAFETY: of namespaces that threads share, a new one of the network touches no memory and no descriptor.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET).unwrap();
    }
}

/// A thread with a namespace of its own: its runtime, its number, and what it lasts as long as.
fn elsewhere(name: &str) -> ((Handle, i32), oneshot::Sender<()>) {
    let (ready, is_ready) = mpsc::channel();
    let (end, ended) = oneshot::channel::<()>();
    let side = move || {
        leave_network();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        ready.send((runtime.handle().clone(), tid)).unwrap();
        // Whoever holds the other end is gone, or has let go: both are the end.
        runtime.block_on(ended).ok();
    };
    std::thread::Builder::new().name(name.into()).spawn(side).unwrap();
    (is_ready.recv().unwrap(), end)
}

/// Does `work` there, and waits for it without a runtime.
fn there<T, F>(side: &Handle, work: F) -> T
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let (done, is_done) = mpsc::channel();
    side.spawn(async move { done.send(work.await) });
    is_done.recv().unwrap()
}

fn lay_cable((internet, tid): &(Handle, i32)) {
    ip("link set lo up");
    let ends = [("02:00:00:00:00:01", "1"), ("02:00:00:00:00:02", "2")];
    let [(near, _), (far, _)] = ends;
    ip(&format!("link add cable address {near} type veth peer name cable address {far} netns {tid}"));
    ip(&format!("addr add {HOST}/24 dev cable"));
    ip("addr add 2001:db8:1::1/64 dev cable nodad");
    ip("link set cable up");
    // Both know each other: a first packet that waits to be told where to could wait for a second.
    let know = |(address, end)| {
        ip(&format!("neigh replace 203.0.113.{end} lladdr {address} dev cable"));
        ip(&format!("neigh replace 2001:db8:1::{end} lladdr {address} dev cable"));
    };
    there(internet, async move {
        ip("link set lo up");
        ip("addr add 203.0.113.2/24 dev cable");
        ip("addr add 2001:db8:1::2/64 dev cable nodad");
        ip("link set cable up");
        wait_for_cable("2001:db8:1::2");
        know(ends[0]);
        for address in SERVERS {
            let address: IpAddr = address.parse().unwrap();
            ip(&format!("addr add {address}/{} dev lo", if address.is_ipv4() { 32 } else { 128 }));
        }
        ip(&format!("route add blackhole {SILENT}"));
    });
    wait_for_cable("2001:db8:1::1");
    know(ends[1]);
    ip("route add default via 203.0.113.2");
    ip("-6 route add default via 2001:db8:1::2");
}

/// Waits until `ip` says what it is to say: its kernel does some of what it was told to do later, and loses what is sent
/// meanwhile.
fn wait_for(arguments: &str, said: &str) {
    let until = Instant::now() + DEADLINE;
    while !ip(arguments).contains(said) {
        assert!(Instant::now() < until, "ip {arguments}: never `{said}`");
        std::thread::yield_now();
    }
}

/// Until it is known that somebody is at the other end, and both addresses are in use.
fn wait_for_cable(ipv6: &str) {
    wait_for("-o link show dev cable", "state UP");
    wait_for("-6 route show table local", &format!("local {ipv6} "));
}

/// Whether sockets of this namespace that need no rights may ping (icmp(7)).
fn allow_pings(allowed: bool) {
    let groups = if allowed { "0 2147483647" } else { "1 0" };
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", groups).unwrap();
}

fn make_guest(mtu_bytes: u32) -> Arc<Tun> {
    let tun = Tun::open("eth0").unwrap();
    ip("link set lo up");
    std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1").unwrap();
    ip(&format!("link set eth0 mtu {mtu_bytes} up"));
    let Addresses { ipv4, ipv6, gateway_ipv4, gateway_ipv6 } = Addresses::default();
    ip(&format!("addr add {}/{} dev eth0", ipv4.0, ipv4.1));
    ip(&format!("addr add {}/{} dev eth0 nodad", ipv6.0, ipv6.1));
    ip(&format!("route add default via {gateway_ipv4}"));
    ip(&format!("-6 route add default via {gateway_ipv6}"));
    wait_for("-6 route show table local", &format!("local {} ", ipv6.0));
    allow_pings(true);
    Arc::new(tun)
}

impl World {
    fn new(wants: Wants, tun: Arc<Tun>, guest: Handle, internet: Handle) -> Self {
        let network = Network::new(NetworkOptions {
            member: None,
            policy: wants.policy,
            bound: None,
            limits: wants.limits,
            sockets: Sockets::new(4096),
            resolver: Resolver::of_servers(vec![format!("{}:53", SERVERS[1]).parse().unwrap()]),
            interceptor: None,
        });
        let pump = tokio::spawn(tun::pump(tun.clone(), network.clone()));
        Self { network, guest, internet, tun, pump }
    }

    /// Does `work` with the guest's sockets.
    pub(crate) async fn guest<T, F>(&self, work: F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        joined(self.guest.spawn(work)).await
    }

    /// Does `work` on the internet.
    pub(crate) async fn internet<T, F>(&self, work: F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        joined(self.internet.spawn(work)).await
    }

    /// Begins `work` with the guest's sockets, to be waited for later.
    pub(crate) fn begin<T, F>(&self, work: F) -> JoinHandle<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        self.guest.spawn(work)
    }

    /// Takes the network from the guest, and waits until nobody carries its packets.
    pub(crate) async fn detach(&mut self) {
        self.pump.abort();
        (&mut self.pump).await.ok();
    }

    /// Gives the guest its network again.
    pub(crate) fn attach(&mut self) {
        self.pump = tokio::spawn(tun::pump(self.tun.clone(), self.network.clone()));
    }

    /// Waits until the counts are as they must become.
    pub(crate) async fn counts(&self, what: &str, are_right: impl Fn(&Counts) -> bool) -> Counts {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let counts = self.network.counts();
            if are_right(&counts) {
                return counts;
            }
            assert!(tokio::time::Instant::now() < until, "never {what}: {counts:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has `address`, which was silent, be an echo's.
    pub(crate) async fn appear(&self, address: &'static str, port: u16) {
        self.internet(async move {
            // First the server: whoever came between would be refused.
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.set_freebind_v4(true).unwrap();
            let address: IpAddr = address.parse().unwrap();
            socket.bind(&SocketAddr::new(address, port).into()).unwrap();
            socket.listen(16).unwrap();
            let listener = TcpListener::from_std(socket.into()).unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(echo(stream));
                }
            });
            ip(&format!("route del blackhole {address}"));
            ip(&format!("addr add {address}/32 dev lo"));
        })
        .await;
    }

    /// How often something was refused so.
    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.network.counts().refused.get(&refusal).copied().unwrap_or(0)
    }
}

/// What a task on another side came to.
pub(crate) async fn joined<T>(task: JoinHandle<T>) -> T {
    match tokio::time::timeout(DEADLINE * 2, task).await.expect("it came to no end") {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.pump.abort();
    }
}
