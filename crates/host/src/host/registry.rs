//! The sandboxes of a host, and the numbers that tell its VMs apart.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{CreateError, FindError, rest};
use crate::boxconfig::PortSpec;
use crate::boxconfig::restart::Restart;
use crate::ports::{Led, MappedPort};
use crate::sandbox::state::State;
use crate::sandbox::{Sandbox, SandboxId};

/// Sandboxes without a VM that stay known, but for persistent ones. Those that ended first are forgotten first.
const MAX_ENDED: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) sandboxes: HashMap<SandboxId, Sandbox>,
    used_slots: BTreeSet<u32>,
    /// Names that sandboxes are about to have.
    reserved_names: HashSet<String>,
    pub(super) led: Led,
}

impl Registry {
    /// Whether there may be one more sandbox that holds a VM.
    pub(super) fn make_room(&self, limit: u32) -> Result<(), CreateError> {
        // One that was never started has its ports and its network already.
        let counts = |state: &State| state.is_live() || *state == State::Created;
        let live = self.sandboxes.values().filter(|sandbox| counts(&sandbox.state())).count();
        if live >= limit as usize {
            return Err(CreateError::AtCapacity(limit));
        }
        let policy = |sandbox: &Sandbox| Restart::parse(&sandbox.config().restart).unwrap_or_default();
        let ended = |sandbox: &&Sandbox| {
            matches!(sandbox.state(), State::Failed(_) | State::Stopped(_))
                && !sandbox.info().config.persistent
                // One that is about to start again has not ended.
                && !rest::wants_restart(sandbox, policy(sandbox), true)
        };
        let mut old: Vec<_> = self.sandboxes.values().filter(ended).cloned().collect();
        old.sort_by_key(|sandbox| sandbox.life().runs().finished_at);
        for forgotten in old.iter().rev().skip(MAX_ENDED) {
            // Its owner removes it.
            forgotten.request_destroy();
        }
        Ok(())
    }

    /// Whether a sandbox may have this name.
    pub(super) fn check_name(&self, name: &str) -> Result<(), CreateError> {
        let taken = |sandbox: &Sandbox| sandbox.name() == name && sandbox.state() != State::Destroyed;
        let is_taken = self.reserved_names.contains(name) || self.sandboxes.values().any(taken);
        match !name.is_empty() && is_taken {
            true => Err(CreateError::NameTaken(name.to_owned())),
            false => Ok(()),
        }
    }

    /// Lets nobody else have `name` until it is released.
    pub(super) fn reserve_name(&mut self, name: &str) -> Result<(), CreateError> {
        self.check_name(name)?;
        self.reserved_names.insert(name.to_owned());
        Ok(())
    }

    pub(super) fn release_name(&mut self, name: &str) {
        self.reserved_names.remove(name);
    }

    /// See [`Host::find`](super::Host::find).
    pub(super) fn find(&self, text: &str) -> Result<Sandbox, FindError> {
        if let Some(sandbox) = text.parse().ok().and_then(|id: SandboxId| self.sandboxes.get(&id)) {
            return Ok(sandbox.clone());
        }
        let none = || FindError::None(text.escape_debug().to_string());
        if text.is_empty() {
            return Err(none());
        }
        if let Some(sandbox) = self.sandboxes.values().find(|sandbox| sandbox.name() == text) {
            return Ok(sandbox.clone());
        }
        let mut fitting =
            self.sandboxes.values().filter(|sandbox| sandbox.id().to_string().starts_with(text));
        match (fitting.next(), fitting.next()) {
            (Some(sandbox), None) => Ok(sandbox.clone()),
            (None, _) => Err(none()),
            (Some(_), Some(_)) => Err(FindError::Ambiguous(text.to_owned())),
        }
    }

    /// The sandbox that keeps `wanted` from being had, by the name that people know it by.
    pub(super) fn holder(&self, wanted: PortSpec) -> Option<String> {
        let meets = |port: &MappedPort| {
            let (one, other) = (port.host.ip(), wanted.host.ip());
            port.host.port() == wanted.host.port()
                && port.protocol == wanted.protocol
                && port.error.is_none()
                && (one == other || one.is_unspecified() || other.is_unspecified())
        };
        let holder = self.sandboxes.values().find(|sandbox| sandbox.ports().iter().any(meets))?;
        Some(holder.known_as())
    }

    pub(super) fn forget(&mut self, id: SandboxId, slot: u32) {
        self.sandboxes.remove(&id);
        self.free_slot(slot);
    }

    /// A number that no other VM of this host has. A free one is near: there are never more VMs than
    /// sandboxes may be and clones may wait.
    pub(super) fn take_slot(&mut self) -> u32 {
        let slot = (0..).find(|slot| !self.used_slots.contains(slot)).unwrap_or_default();
        self.used_slots.insert(slot);
        slot
    }

    pub(super) fn free_slot(&mut self, slot: u32) {
        self.used_slots.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::boxconfig::BoxConfig;
    use crate::sandbox::life::Runs;
    use crate::sandbox::order::Order;
    use crate::sandbox::owner::Owner;
    use crate::sandbox::scripted;
    use crate::sandbox::state::Stop;

    /// Adds a sandbox that failed `age_s` seconds ago.
    fn end(registry: &mut Registry, restart: &str, age_s: u64, was_asked: bool) -> Owner {
        let config = BoxConfig { restart: restart.into(), ..BoxConfig::default() };
        let finished_at = SystemTime::now().checked_sub(Duration::from_secs(age_s));
        let runs = Runs { finished_at, was_asked, ..Runs::default() };
        let state = State::Stopped(Stop { exit_code: 1, out_of_memory: false });
        let (sandbox, owner) = scripted::sandbox(config, state, runs);
        registry.sandboxes.insert(sandbox.id(), sandbox);
        owner
    }

    fn is_destroyed(owner: &mut Owner) -> bool {
        matches!(owner.orders.try_recv(), Ok((Order::Destroy, _)))
    }

    #[tokio::test]
    async fn reserved_name_is_taken_until_released() {
        let mut registry = Registry::default();
        registry.reserve_name("web").unwrap();
        assert!(matches!(registry.check_name("web"), Err(CreateError::NameTaken(name)) if name == "web"));
        assert!(registry.reserve_name("web").is_err());
        registry.check_name("").unwrap();
        registry.release_name("web");
        registry.reserve_name("web").unwrap();
    }

    /// A service that crashed and waited for its restart was the oldest of the ended ones, and was removed.
    #[tokio::test]
    async fn sandbox_awaiting_its_restart_is_not_forgotten() {
        let mut registry = Registry::default();
        let mut waiting = end(&mut registry, "always", 3000, false);
        let mut stopped = end(&mut registry, "always", 2000, true);
        let mut ended: Vec<_> =
            (0..MAX_ENDED as u64 - 1).map(|age| end(&mut registry, "", age, false)).collect();
        registry.make_room(1).unwrap();
        assert!(!is_destroyed(&mut waiting) && !is_destroyed(&mut stopped), "at the limit all stay");
        ended.push(end(&mut registry, "no", 1000, false));
        registry.make_room(1).unwrap();
        assert!(!is_destroyed(&mut waiting), "it is about to start");
        assert!(is_destroyed(&mut stopped), "it ended first of those that stay down");
        assert!(!ended.iter_mut().any(is_destroyed));
    }
}
