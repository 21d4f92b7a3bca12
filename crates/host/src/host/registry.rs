//! The sandboxes of a host, and the numbers that tell its VMs apart.

use std::collections::{BTreeSet, HashMap};

use super::{CreateError, FindError, rest};
use crate::boxconfig::PortSpec;
use crate::boxconfig::restart::Restart;
use crate::ports::{Led, MappedPort};
use crate::sandbox::state::State;
use crate::sandbox::{Sandbox, SandboxId};

/// Sandboxes without a VM that stay known; the oldest are forgotten first, but not those that are persistent.
const MAX_ENDED: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) sandboxes: HashMap<SandboxId, Sandbox>,
    used_slots: BTreeSet<u32>,
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
        old.sort_by_key(|sandbox| sandbox.info().created_at);
        for forgotten in old.iter().rev().skip(MAX_ENDED) {
            // Its owner removes it.
            forgotten.request_destroy();
        }
        Ok(())
    }

    /// Whether a sandbox may have this name.
    pub(super) fn check_name(&self, name: &str) -> Result<(), CreateError> {
        let taken = |sandbox: &Sandbox| sandbox.name() == name && sandbox.state() != State::Destroyed;
        match !name.is_empty() && self.sandboxes.values().any(taken) {
            true => Err(CreateError::NameTaken(name.to_owned())),
            false => Ok(()),
        }
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
