//! How many clones should wait, by how many were asked for and found none. Pure: the time is told.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::boxconfig::{PoolConfig, ScalingPolicy};

/// Requests that are remembered, however long the window is.
const MAX_REMEMBERED: usize = 4096;

/// What a pool was told of the demand for its clones.
#[derive(Debug)]
pub(super) struct Demand {
    policy: Option<ScalingPolicy>,
    least: usize,
    most: usize,
    target: usize,
    /// When each came, and whether one was ready for it.
    requests: VecDeque<(Instant, bool)>,
    changed: Option<Instant>,
}

impl Demand {
    /// Always `count`.
    pub(super) fn fixed(count: usize) -> Self {
        let (requests, changed) = (VecDeque::new(), None);
        Self { policy: None, least: count, most: count, target: count, requests, changed }
    }

    /// As `config` has it.
    pub(super) fn new(config: &PoolConfig) -> Self {
        let policy = config.scaling.enabled.then(|| config.scaling.clone());
        let most = config.scaling.max_min_idle.unwrap_or(config.max_size);
        Self { policy, most: most.max(config.min_idle), ..Self::fixed(config.min_idle) }
    }

    /// How many should wait.
    pub(super) fn target(&self) -> usize {
        self.target
    }

    /// Takes note of a request at `now`, for which one was ready or not.
    pub(super) fn request(&mut self, now: Instant, was_ready: bool) {
        let Some(policy) = &self.policy else { return };
        self.requests.push_back((now, was_ready));
        let window = Duration::from_secs(policy.window_secs);
        let is_old = |at: &Instant| now.duration_since(*at) > window;
        while self.requests.front().is_some_and(|(at, _)| is_old(at)) || self.requests.len() > MAX_REMEMBERED
        {
            self.requests.pop_front();
        }
        let cooldown = Duration::from_secs(policy.cooldown_secs);
        if self.changed.is_some_and(|at| now.duration_since(at) < cooldown) {
            return;
        }
        let missed = self.requests.iter().filter(|(_, was_ready)| !was_ready).count();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        let missed = missed as f64 / self.requests.len() as f64;
        let next = match () {
            () if missed > policy.scale_up_threshold => (self.target + 1).min(self.most),
            () if missed < policy.scale_down_threshold => self.target.saturating_sub(1).max(self.least),
            () => self.target,
        };
        if next != self.target {
            (self.target, self.changed) = (next, Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(cooldown_secs: u64) -> Demand {
        let scaling =
            ScalingPolicy { enabled: true, cooldown_secs, window_secs: 10, ..ScalingPolicy::default() };
        Demand::new(&PoolConfig { enabled: true, min_idle: 1, max_size: 3, scaling, ..PoolConfig::default() })
    }

    #[tokio::test]
    async fn more_wait_when_callers_find_none_and_less_when_all_find_one() {
        let (mut demand, mut now) = (demand(0), Instant::now());
        let mut ask = |was_ready| {
            now += Duration::from_secs(1);
            demand.request(now, was_ready);
            demand.target()
        };
        assert_eq!([ask(false), ask(false), ask(false)], [2, 3, 3], "up to the most");
        // Of eleven in the window, the first three fall out of it one by one.
        let later: Vec<_> = (0..14).map(|_| ask(true)).collect();
        assert_eq!(later.last(), Some(&1), "down to the least: {later:?}");
    }

    #[tokio::test]
    async fn a_change_is_followed_by_a_rest() {
        let (mut demand, now) = (demand(60), Instant::now());
        demand.request(now, false);
        demand.request(now + Duration::from_secs(59), false);
        assert_eq!(demand.target(), 2);
        demand.request(now + Duration::from_secs(60), false);
        assert_eq!(demand.target(), 3);
    }

    #[tokio::test]
    async fn without_a_policy_it_is_always_the_same() {
        let mut demand = Demand::fixed(2);
        demand.request(Instant::now(), false);
        assert_eq!(demand.target(), 2);
    }
}
