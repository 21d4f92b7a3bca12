//! Tests: a sandbox and its owner, without a host.

use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::life::{Life, Runs};
use super::owner::Owner;
use super::state::State;
use super::{Birth, Sandbox, SandboxId};
use crate::boxconfig::BoxConfig;
use crate::event::Events;
use crate::journal::Journals;
use crate::ports::Led;

/// A sandbox in `state`, as `config` describes it. Nobody obeys its orders until its owner does.
pub(crate) fn sandbox(config: BoxConfig, state: State, runs: Runs) -> (Sandbox, Owner) {
    let id = SandboxId::random();
    let (life, runs) = Life::new(config.name.clone(), runs);
    let (state, watched) = watch::channel(state);
    let (orders, ordered) = mpsc::channel(16);
    let journals = Journals::default();
    let closing = CancellationToken::new();
    let doom = closing.child_token();
    let owner = Owner {
        id,
        state,
        orders: ordered,
        journals: journals.clone(),
        runs,
        events: Events::default(),
        log_level: config.log_level,
        doomed: false,
        closing,
        doom: doom.clone(),
        resting: None,
    };
    let birth = Birth {
        id,
        config,
        created_at: SystemTime::now(),
        journals,
        life,
        network: None,
        doom,
        ports: Vec::new(),
        led: Led::default(),
        user: String::new(),
    };
    (Sandbox::new(birth, watched, orders), owner)
}
