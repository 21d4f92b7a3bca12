//! Ports of the host that lead into a sandbox, through the link: on every engine, and without a network.
//!
//! A port is listened on before its sandbox is made, and for as long as there is that sandbox, with or without a VM. Who
//! connects while it starts or is paused waits; while it has no VM he is refused.

mod entrance;
mod error;
mod led;
mod listen;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bouvet_wire::limits::MAX_PORTS;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use self::entrance::Entrance;
pub use self::error::PortError;
pub(crate) use self::led::Led;
use self::listen::Listening;
use crate::boxconfig::{InvalidConfig, PortProtocol, PortSpec};
use crate::sandbox::state::Refusal;

/// A port of the host that leads into a sandbox.
///
/// ```no_run
/// use bouvet_host::BoxConfig;
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let config = BoxConfig { image: "nginx:alpine".into(), port_map: vec!["80".into()], ..BoxConfig::default() };
/// for port in host.create(config).await?.ports() {
///     println!("http://{}/ is its port {}", port.host, port.guest);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedPort {
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where it leads.
    pub guest: u16,
    /// What it carries.
    pub protocol: PortProtocol,
    /// Why the host does not listen: something else had the port when a persistent sandbox was taken in. It is tried
    /// again when the sandbox is started.
    pub error: Option<String>,
}

/// A port that was asked for, and what came of it.
#[derive(Debug)]
pub(crate) struct Claim {
    wanted: PortSpec,
    got: Result<Listening, PortError>,
}

impl Claim {
    /// Listens on `wanted`, if that can be.
    pub(crate) fn stake(wanted: PortSpec) -> Self {
        Self { wanted, got: Listening::on(wanted) }
    }

    /// Why it is not listened on.
    pub(crate) fn error(&self) -> Option<&PortError> {
        self.got.as_ref().err()
    }

    /// All of `wanted`, or none.
    pub(crate) fn stake_all(wanted: &[PortSpec]) -> Result<Vec<Self>, PortError> {
        let stake = |wanted: &PortSpec| Ok(Self { wanted: *wanted, got: Ok(Listening::on(*wanted)?) });
        wanted.iter().map(stake).collect()
    }
}

/// The ports of one sandbox. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Ports {
    entrance: Entrance,
    led: Led,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    mappings: Vec<Mapping>,
    /// Whether its sandbox is no more.
    closed: bool,
}

#[derive(Debug)]
struct Mapping {
    wanted: PortSpec,
    served: Result<Served, PortError>,
}

/// A port that is listened on.
#[derive(Debug)]
struct Served {
    host: SocketAddr,
    task: JoinHandle<()>,
    closes: DropGuard,
}

impl Served {
    fn begin(listening: Listening, entrance: Entrance, led: &Led) -> Self {
        let (host, closes) = (listening.host(), CancellationToken::new());
        if listening.protocol() == PortProtocol::Tcp {
            led.add(host.port());
        }
        let task = tokio::spawn(listening.serve(entrance, closes.clone()));
        Self { host, task, closes: closes.drop_guard() }
    }

    /// Ends it, with the connections through it.
    async fn close(self) {
        drop(self.closes);
        // What it listened on is closed even if it came to a bad end.
        self.task.await.ok();
    }
}

impl Mapping {
    fn view(&self) -> MappedPort {
        let PortSpec { host, guest, protocol } = self.wanted;
        match &self.served {
            Ok(served) => MappedPort { host: served.host, guest, protocol, error: None },
            Err(error) => MappedPort { host, guest, protocol, error: Some(crate::chain(error)) },
        }
    }
}

impl Ports {
    pub(crate) fn new(claims: Vec<Claim>, entrance: Entrance, led: Led) -> Self {
        let begin = |Claim { wanted, got }| Mapping {
            wanted,
            served: got.map(|listening| Served::begin(listening, entrance.clone(), &led)),
        };
        let mappings = claims.into_iter().map(begin).collect();
        Self { table: Mutex::new(Table { mappings, closed: false }), entrance, led }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn list(&self) -> Vec<MappedPort> {
        self.table().mappings.iter().map(Mapping::view).collect()
    }

    /// Adds one.
    pub(crate) fn expose(&self, wanted: PortSpec) -> Result<MappedPort, PortError> {
        if wanted.guest == 0 {
            let allowed = "1 to 65535 are allowed".to_owned();
            return Err(InvalidConfig { field: "port", value: "0".into(), allowed }.into());
        }
        let mut table = self.table();
        if table.closed {
            return Err(Refusal::Destroyed.into());
        }
        if table.mappings.len() >= MAX_PORTS {
            return Err(PortError::TooMany(MAX_PORTS));
        }
        let served = Served::begin(Listening::on(wanted)?, self.entrance.clone(), &self.led);
        let mapping = Mapping { wanted, served: Ok(served) };
        let view = mapping.view();
        table.mappings.push(mapping);
        Ok(view)
    }

    /// Closes all that lead to `guest`.
    pub(crate) async fn unexpose(&self, guest: u16, protocol: PortProtocol) -> Result<(), PortError> {
        let leads_there =
            |mapping: &mut Mapping| (mapping.wanted.guest, mapping.wanted.protocol) == (guest, protocol);
        let removed: Vec<_> = self.table().mappings.extract_if(.., leads_there).collect();
        if removed.is_empty() {
            return Err(PortError::NotExposed { guest, protocol: protocol.name() });
        }
        end(removed).await;
        Ok(())
    }

    /// Listens where that could not be done before.
    pub(crate) fn retry(&self) -> Result<(), PortError> {
        for mapping in self.table().mappings.iter_mut().filter(|mapping| mapping.served.is_err()) {
            let listening = Listening::on(mapping.wanted)?;
            mapping.served = Ok(Served::begin(listening, self.entrance.clone(), &self.led));
        }
        Ok(())
    }

    /// Closes all, for good.
    pub(crate) async fn close(&self) {
        let mappings = {
            let mut table = self.table();
            table.closed = true;
            std::mem::take(&mut table.mappings)
        };
        end(mappings).await;
    }
}

async fn end(mappings: Vec<Mapping>) {
    let served = mappings.into_iter().filter_map(|mapping| mapping.served.ok());
    futures_util::future::join_all(served.map(Served::close)).await;
}
