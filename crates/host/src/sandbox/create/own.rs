//! A guest becomes the guest of one sandbox.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bouvet_net::Network;
use bouvet_wire::v1;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{BringUpError, Wanted};
use crate::link::Client;
use crate::sandbox::SandboxId;

/// Its guest's first work: emulated, and with other VMs booting beside it, that takes a while.
const PERSONALISE_DEADLINE: Duration = Duration::from_secs(60);
const ENTROPY_BYTES: usize = 64;

/// What makes a guest one sandbox's, beside its id.
#[derive(Debug, Clone, Default)]
pub(super) struct Person {
    pub(super) hostname: String,
    env: HashMap<String, String>,
    /// On its network.
    addresses: Vec<String>,
    hosts: Vec<v1::HostEntry>,
}

impl Person {
    /// That of a guest that is nobody's yet.
    pub(super) fn nameless(id: SandboxId) -> Self {
        Self { hostname: hostname(id), ..Self::default() }
    }

    pub(super) fn of(wanted: &Wanted<'_>) -> Self {
        let (config, plan) = (&wanted.blueprint.config, &wanted.blueprint.plan);
        let said = [&config.hostname, &config.name].into_iter().find(|name| !name.is_empty());
        let addresses = wanted.network.map(Network::addresses);
        Self {
            hostname: said.cloned().unwrap_or_else(|| hostname(wanted.id)),
            env: wanted.blueprint.env.iter().cloned().collect(),
            addresses: addresses
                .map_or_else(Vec::new, |own| vec![own.ipv4.0.to_string(), own.ipv6.0.to_string()]),
            hosts: plan.hosts.iter().filter_map(|line| line.entry(addresses.as_ref())).collect(),
        }
    }
}

fn hostname(id: SandboxId) -> String {
    format!("sandbox-{}", id.short())
}

/// Has the guest become the sandbox `id`, and waits until it says so.
pub(super) async fn make_own(mut client: Client, id: SandboxId, person: &Person) -> Result<(), BringUpError> {
    let result = match request(id, person) {
        Ok(request) => match tokio::time::timeout(PERSONALISE_DEADLINE, client.personalise(request)).await {
            Ok(Ok(reply)) => check(&reply.into_inner()),
            Ok(Err(status)) => Err(crate::link::said(&status)),
            Err(_) => Err(format!("no answer within {PERSONALISE_DEADLINE:?}")),
        },
        Err(error) => Err(format!("no entropy for it: {error}")),
    };
    result.map_err(BringUpError::Personalise)
}

fn request(id: SandboxId, person: &Person) -> Result<v1::PersonaliseRequest, rustix::io::Errno> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    let (filled, _) = getrandom(&mut entropy[..], GetRandomFlags::empty()).map(|filled| (filled, ()))?;
    if filled != ENTROPY_BYTES {
        return Err(rustix::io::Errno::AGAIN);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(v1::PersonaliseRequest {
        entropy: entropy.into(),
        unix_time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        sandbox_id: id.to_string(),
        hostname: person.hostname.clone(),
        machine_id: id.machine_id(),
        env: person.env.clone(),
        addresses: person.addresses.clone(),
        hosts: person.hosts.clone(),
    })
}

fn check(reply: &v1::PersonaliseReply) -> Result<(), String> {
    if reply.generation == bouvet_wire::GENERATION {
        return Ok(());
    }
    Err(format!("it acknowledged generation {}", reply.generation))
}
