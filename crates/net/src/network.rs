//! The network of one sandbox, as whoever runs the sandbox holds it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::count::{Counters, Counts, Refused, add};
use crate::dns::{self, Ours, Resolver};
use crate::gateway::NameServer;
use crate::intercept::Interceptor;
use crate::judge::Judge;
use crate::limit::{Limits, Rate};
use crate::name::Name;
use crate::names::Names;
use crate::policy::Policy;
use crate::router::Router;
use crate::shared::{Addresses, Room, Shared};
use crate::sockets::Sockets;
use crate::switch::Member;

/// Batches of the sandbox's packets that wait for the router.
const INBOUND: usize = 4;
/// Packets that wait for the sandbox, of 16 KiB mostly.
const OUTBOUND: usize = 256;
/// A batch for the sandbox has no more bytes than this, and one packet.
const BATCH_BYTES: usize = 64 * 1024;

/// What a network is made of.
#[derive(Debug)]
pub struct NetworkOptions {
    /// Its place on a network of several. `None`: it is alone.
    pub member: Option<Member>,
    /// What the sandbox may reach.
    pub policy: Policy,
    /// What it may reach at most, whatever its policy becomes. `None`: anything.
    pub bound: Option<Policy>,
    /// How much of everything it may have.
    pub limits: Limits,
    /// What it may have sockets of, with all others that have the same.
    pub sockets: Sockets,
    /// Who is asked for names.
    pub resolver: Resolver,
    /// Puts secrets into requests.
    pub interceptor: Option<Interceptor>,
}

/// The network of one sandbox. It ends when the last copy of this is dropped.
///
/// ```no_run
/// use bouvet_net::dns::Resolver;
/// use bouvet_net::{Limits, Network, NetworkOptions, Policy, Sockets};
///
/// # async fn example() {
/// let network = Network::new(NetworkOptions {
///     member: None,
///     policy: Policy::default(),
///     bound: None,
///     limits: Limits::default(),
///     sockets: Sockets::new(4096),
///     resolver: Resolver::of_file("/etc/resolv.conf"),
///     interceptor: None,
/// });
/// let (inbound, mut outbound) = network.attach();
/// // What the sandbox sends goes in, what it is sent comes out.
/// inbound.send(vec![]).await.ok();
/// while let Some(packets) = outbound.next().await {
///     println!("{} packets for the sandbox", packets.len());
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    addresses: Addresses,
    member: Option<Arc<Member>>,
    limits: Limits,
    sockets: Sockets,
    judge: Arc<watch::Sender<Arc<Judge>>>,
    names: Arc<Mutex<Names>>,
    counters: Arc<Counters>,
    name_server: Arc<NameServer>,
    interceptor: Option<Arc<Interceptor>>,
}

/// The network has ended, or another has its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network has ended")]
pub struct Ended;

/// Takes what a sandbox sends. All that came of it ends when this is dropped.
#[derive(Debug)]
pub struct Inbound {
    packets: mpsc::Sender<Vec<Bytes>>,
    router: AbortHandle,
}

/// Has what a sandbox is sent.
#[derive(Debug)]
pub struct Outbound {
    packets: mpsc::Receiver<Bytes>,
    counters: Arc<Counters>,
    packet_rate: Rate,
    byte_rate: Rate,
}

impl Network {
    /// One that nobody is attached to yet.
    pub fn new(options: NetworkOptions) -> Self {
        let NetworkOptions { member, policy, bound, limits, sockets, resolver, interceptor } = options;
        let judge = Arc::new(watch::Sender::new(Arc::new(Judge { own: policy, bound })));
        let member = member.map(Arc::new);
        let addresses = member.as_ref().map_or_else(Addresses::default, |member| member.addresses());
        let (names, counters) = (Arc::<Mutex<Names>>::default(), Arc::<Counters>::default());
        let gateway = (addresses.gateway_ipv4, addresses.gateway_ipv6);
        let ours = Ours { gateway, member: member.clone() };
        let server = dns::NameServer::new(resolver, ours, judge.subscribe(), names.clone());
        let name_server =
            Arc::new(NameServer::new(server, counters.clone(), sockets.clone(), limits.queries_per_s));
        let interceptor = interceptor.map(Arc::new);
        Self(Arc::new(Inner {
            addresses,
            member,
            limits,
            sockets,
            judge,
            names,
            counters,
            name_server,
            interceptor,
        }))
    }

    /// Both ends of a sandbox's interface, for as long as they are held: one sandbox at a time, each time it is started.
    ///
    /// Must be called in a runtime.
    pub fn attach(&self) -> (Inbound, Outbound) {
        let inner = &*self.0;
        let (packets, inbound) = mpsc::channel(INBOUND);
        let (outbound, received) = mpsc::channel(OUTBOUND);
        if let Some(member) = &inner.member {
            member.attach(&outbound);
        }
        let shared = Shared {
            addresses: inner.addresses,
            member: inner.member.clone(),
            limits: inner.limits,
            sockets: inner.sockets.clone(),
            judge: inner.judge.clone(),
            names: inner.names.clone(),
            counters: inner.counters.clone(),
            name_server: inner.name_server.clone(),
            interceptor: inner.interceptor.clone(),
            echoes: Rate::per_second(inner.limits.echoes_per_s),
            room: Room::default(),
            outbound,
        };
        let router = tokio::spawn(Router::new(Arc::new(shared)).run(inbound)).abort_handle();
        let outbound = Outbound {
            packets: received,
            counters: inner.counters.clone(),
            packet_rate: Rate::per_second(inner.limits.packets_per_s),
            byte_rate: Rate::per_second(inner.limits.bytes_per_s),
        };
        (Inbound { packets, router }, outbound)
    }

    /// Who is who in it.
    pub fn addresses(&self) -> Addresses {
        self.0.addresses
    }

    /// What others on its network may call it.
    pub fn set_names(&self, names: Vec<Name>) {
        if let Some(member) = &self.0.member {
            member.set_names(names);
        }
    }

    /// Gives its place on a network of several back, for good.
    pub fn leave(&self) {
        if let Some(member) = &self.0.member {
            member.leave();
        }
    }

    /// The certificate, in PEM, that the sandbox's programs have to trust.
    pub fn authority(&self) -> Option<String> {
        self.0.interceptor.as_ref().map(|interceptor| interceptor.certificate())
    }

    /// The variables of the sandbox's programs that stand for secrets.
    pub fn placeholders(&self) -> Vec<(String, String)> {
        let secrets = self.0.interceptor.iter().flat_map(|interceptor| interceptor.secrets());
        secrets.map(|secret| (secret.name().to_owned(), secret.placeholder().to_owned())).collect()
    }

    /// What the sandbox may reach now.
    pub fn policy(&self) -> Policy {
        self.0.judge.borrow().own.clone()
    }

    /// What it may reach from now on. What it reaches already, and may not any more, is broken off.
    pub fn set_policy(&self, policy: Policy) {
        self.0.judge.send_modify(|judge| {
            *judge = Arc::new(Judge { own: policy, bound: judge.bound.clone() });
        });
    }

    /// How much there was of what.
    pub fn counts(&self) -> Counts {
        self.0.counters.read()
    }

    /// What was refused last, the oldest first.
    pub fn refusals(&self) -> Vec<Refused> {
        self.0.counters.refusals()
    }
}

impl Inbound {
    /// Takes packets, as fast as they may come.
    pub async fn send(&self, packets: Vec<Bytes>) -> Result<(), Ended> {
        self.packets.send(packets).await.map_err(|_| Ended)
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.router.abort();
    }
}

impl Outbound {
    /// The next packets, as fast as they may go; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Vec<Bytes>> {
        let mut packets = vec![self.packets.recv().await?];
        let mut bytes = packets[0].len();
        while bytes < BATCH_BYTES
            && let Ok(packet) = self.packets.try_recv()
        {
            bytes += packet.len();
            packets.push(packet);
        }
        self.packet_rate.take(packets.len()).await;
        self.byte_rate.take(bytes).await;
        add(&self.counters.received_packets, packets.len());
        add(&self.counters.received_bytes, bytes);
        Some(packets)
    }
}
