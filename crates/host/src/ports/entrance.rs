//! How what comes to a port gets into its sandbox.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bouvet_wire::limits::{MAX_PEERS, MAX_PORT_CONNECTIONS};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::link::Client;
use crate::sandbox::Ends;
use crate::sandbox::state::State;

/// Connections that wait for another's place, and how long.
const MAX_WAITING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(1);

/// The way into one sandbox, for all its ports.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    state: watch::Receiver<State>,
    ends: Arc<Mutex<Ends>>,
    room: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    peers: Arc<Semaphore>,
}

/// Whether the way is open.
#[derive(Debug)]
pub(super) enum Door {
    /// It runs.
    Open(Box<Client>),
    /// It will run in a moment, or when it is resumed.
    Ajar,
    /// It has no VM.
    Shut,
}

impl Entrance {
    pub(crate) fn new(state: watch::Receiver<State>, ends: Arc<Mutex<Ends>>) -> Self {
        let room = Arc::new(Semaphore::new(MAX_PORT_CONNECTIONS));
        let (waiting, peers) = (Semaphore::new(MAX_WAITING), Semaphore::new(MAX_PEERS));
        Self { state, ends, room, waiting: Arc::new(waiting), peers: Arc::new(peers) }
    }

    /// How it is now.
    pub(super) fn door(&mut self) -> Door {
        match &*self.state.borrow_and_update() {
            State::Running => {
                let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
                ends.client.clone().map_or(Door::Ajar, |client| Door::Open(Box::new(client)))
            }
            State::Starting | State::Paused | State::Stopping => Door::Ajar,
            State::Created | State::Stopped(_) | State::Failed(_) | State::Destroying | State::Destroyed => {
                Door::Shut
            }
        }
    }

    /// Waits until that may have changed. `false`: it will not any more.
    pub(super) async fn changed(&mut self) -> bool {
        self.state.changed().await.is_ok()
    }

    /// Waits until it runs, or has no VM.
    pub(super) async fn awake(&mut self) {
        while matches!(self.door(), Door::Ajar) && self.changed().await {}
    }

    /// A place for one more connection, as soon as there is one: those that have just ended have it a little longer.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.room.clone().try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = self.waiting.try_acquire().ok()?;
        let permit = tokio::time::timeout(PATIENCE, self.room.clone().acquire_owned()).await;
        permit.ok()?.ok()
    }

    /// A place for one more peer.
    pub(super) fn peer(&self) -> Option<OwnedSemaphorePermit> {
        self.peers.clone().try_acquire_owned().ok()
    }
}
