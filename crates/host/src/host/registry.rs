//! The sandboxes of a host, and the numbers that tell its VMs apart.

use std::collections::{BTreeSet, HashMap};

use super::CreateError;
use crate::sandbox::state::State;
use crate::sandbox::{Sandbox, SandboxId};

/// Failed sandboxes that stay known; the oldest are forgotten first.
const MAX_FAILED: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) sandboxes: HashMap<SandboxId, Sandbox>,
    used_slots: BTreeSet<u32>,
}

impl Registry {
    /// Whether there may be one more sandbox. Failed ones hold nothing and do not count.
    pub(super) fn make_room(&self, limit: u32) -> Result<(), CreateError> {
        let failed = |sandbox: &&Sandbox| matches!(sandbox.state(), State::Failed(_));
        let mut old: Vec<_> = self.sandboxes.values().filter(failed).cloned().collect();
        if self.sandboxes.len() - old.len() >= limit as usize {
            return Err(CreateError::AtCapacity(limit));
        }
        old.sort_by_key(|sandbox| sandbox.info().created_at);
        for forgotten in old.iter().rev().skip(MAX_FAILED) {
            // Its owner removes it.
            forgotten.request_destroy();
        }
        Ok(())
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
