//! The memory that bodies of requests share while they are read and parsed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One sixteenth of the budget is left to small bodies, so that large ones do not keep them out.
const SMALL_SHARE: u64 = 16;

/// Bytes that bodies may take together.
#[derive(Debug)]
pub(crate) struct Budget {
    total_bytes: u64,
    used_bytes: AtomicU64,
}

impl Budget {
    pub(crate) fn new(total_bytes: u64) -> Arc<Self> {
        Arc::new(Self { total_bytes, used_bytes: AtomicU64::new(0) })
    }

    /// What one large body may take at most.
    pub(crate) fn large_bytes(&self) -> u64 {
        self.total_bytes - self.total_bytes / SMALL_SHARE
    }

    /// Takes `bytes` for a body, if they are free.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64, is_small: bool) -> Option<Charge> {
        let limit = if is_small { self.total_bytes } else { self.large_bytes() };
        let take = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Charge { budget: self.clone(), bytes })
    }
}

/// A part of the budget, until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// Gives back all but `bytes`.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let free = self.bytes.saturating_sub(bytes);
        self.budget.used_bytes.fetch_sub(free, Ordering::Relaxed);
        self.bytes -= free;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_holds_at_its_limit() {
        let budget = Budget::new(1600);
        assert!(budget.charge(1501, false).is_none());
        let mut large = budget.charge(1500, false).unwrap();
        assert!(budget.charge(1, false).is_none(), "the rest is for small bodies");
        let small = budget.charge(100, true).unwrap();
        assert!(budget.charge(1, true).is_none());
        large.shrink(1000);
        assert!(budget.charge(501, true).is_none() && budget.charge(500, true).is_some());
        drop((large, small));
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 0);
        assert!(budget.charge(u64::MAX, true).is_none());
    }
}
