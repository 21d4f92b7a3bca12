//! Sessions of MCP clients: how many there may be, and which one ends when there are too many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::HeaderValue;
use rmcp::transport::streamable_http_server::session::SessionManager as _;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;

/// Sessions at once.
const MAX_SESSIONS: usize = 1000;
/// Sessions of one caller.
const MAX_CALLER_SESSIONS: usize = 100;
/// Sessions of all programs on this machine: many callers may have this address.
const MAX_LOOPBACK_SESSIONS: usize = 500;
/// Leading bits of an IPv6 address that one caller has: a network of the usual size.
const CALLER_BITS: u32 = 64;

/// Who begins a session, as far as limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    Loopback,
    Address(IpAddr),
}

impl Caller {
    fn max_sessions(self) -> usize {
        match self {
            Self::Loopback => MAX_LOOPBACK_SESSIONS,
            Self::Address(_) => MAX_CALLER_SESSIONS,
        }
    }
}

impl From<IpAddr> for Caller {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Self::Loopback,
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << (u128::BITS - CALLER_BITS));
                Self::Address(IpAddr::V6(network.into()))
            }
            address @ IpAddr::V4(_) => Self::Address(address),
        }
    }
}

#[derive(Debug)]
struct Known {
    caller: Caller,
    /// Requests under way, an open stream of events among them.
    requests: usize,
    /// When it was used last, as a number that grows.
    used: u64,
}

/// What is known of each session. Pure.
#[derive(Debug, Default)]
struct Ledger {
    sessions: HashMap<String, Known>,
    /// Sessions that begin, by caller.
    beginning: Vec<Caller>,
    clock: u64,
}

impl Ledger {
    fn count(&self, caller: Option<Caller>) -> usize {
        let is_meant = |of: Caller| caller.is_none_or(|caller| caller == of);
        self.sessions.values().filter(|known| is_meant(known.caller)).count()
            + self.beginning.iter().filter(|of| is_meant(**of)).count()
    }

    /// Takes the place of a session for `caller`, and those out that must end for it. `None`: there is no place.
    fn begin(&mut self, caller: Caller) -> Option<Vec<String>> {
        let mut ended = Vec::new();
        for (of, limit) in [(Some(caller), caller.max_sessions()), (None, MAX_SESSIONS)] {
            if self.count(of) < limit {
                continue;
            }
            let idle = self
                .sessions
                .iter()
                .filter(|(_, known)| known.requests == 0 && of.is_none_or(|caller| caller == known.caller));
            let oldest = idle.min_by_key(|(_, known)| known.used).map(|(id, _)| id.clone())?;
            self.sessions.remove(&oldest);
            ended.push(oldest);
        }
        self.beginning.push(caller);
        Some(ended)
    }

    /// The session of a place that was taken has begun, or has not.
    fn begun(&mut self, caller: Caller, id: Option<String>) {
        if let Some(at) = self.beginning.iter().position(|of| *of == caller) {
            self.beginning.swap_remove(at);
        }
        if let Some(id) = id {
            self.clock += 1;
            self.sessions.insert(id, Known { caller, requests: 0, used: self.clock });
        }
    }

    fn request(&mut self, id: &str, is_begin: bool) {
        self.clock += 1;
        if let Some(known) = self.sessions.get_mut(id) {
            known.used = self.clock;
            known.requests = match is_begin {
                true => known.requests + 1,
                false => known.requests.saturating_sub(1),
            };
        }
    }
}

/// The sessions of a server.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    pub(super) library: Arc<LocalSessionManager>,
    ledger: Arc<Mutex<Ledger>>,
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// Whether the session that a request names goes on.
    pub(super) async fn has(&self, id: Option<&HeaderValue>) -> bool {
        let Some(id) = id.and_then(|id| id.to_str().ok()) else { return false };
        self.library.has_session(&id.to_owned().into()).await.is_ok_and(|has| has)
    }

    /// Takes a place for a session of `caller`; the idle session that was not used for longest ends for it. `None`: all are in
    /// use.
    pub(super) async fn begin(&self, caller: Caller) -> Option<Beginning> {
        // Those that ended by themselves are not known to have ended.
        let there = self.library.sessions.read().await;
        lock(&self.ledger).sessions.retain(|id, _| there.contains_key(id.as_str()));
        drop(there);
        let ended = lock(&self.ledger).begin(caller)?;
        let beginning = Beginning { ledger: self.ledger.clone(), caller, is_over: false };
        for id in ended {
            tracing::debug!(session = id, "ending the session that was not used for longest");
            if let Err(error) = self.library.close_session(&id.into()).await {
                tracing::debug!(%error, "the session had ended already");
            }
        }
        Some(beginning)
    }

    /// Keeps the session from ending for others until this is dropped.
    pub(super) fn request(&self, id: Option<&HeaderValue>) -> Option<Use> {
        let id = id?.to_str().ok()?.to_owned();
        lock(&self.ledger).request(&id, true);
        Some(Use { ledger: self.ledger.clone(), id })
    }
}

/// A place that was taken for a session.
#[derive(Debug)]
pub(super) struct Beginning {
    ledger: Arc<Mutex<Ledger>>,
    caller: Caller,
    is_over: bool,
}

impl Beginning {
    /// The session has begun with this id, or has not begun.
    pub(super) fn begun(mut self, id: Option<&HeaderValue>) {
        let id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
        lock(&self.ledger).begun(self.caller, id);
        self.is_over = true;
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if !self.is_over {
            lock(&self.ledger).begun(self.caller, None);
        }
    }
}

/// A request of a session.
#[derive(Debug)]
pub(super) struct Use {
    ledger: Arc<Mutex<Ledger>>,
    id: String,
}

impl Drop for Use {
    fn drop(&mut self) {
        lock(&self.ledger).request(&self.id, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(number: usize) -> Caller {
        let [.., high, low] = number.to_be_bytes();
        Caller::from(IpAddr::from([192, 0, high, low]))
    }

    /// Begins a session, and names those that ended for it.
    fn begin(ledger: &mut Ledger, caller: Caller, id: &str) -> Option<Vec<String>> {
        let ended = ledger.begin(caller)?;
        ledger.begun(caller, Some(id.to_owned()));
        Some(ended)
    }

    #[test]
    fn callers_are_told_apart_by_network() {
        let of = |text: &str| Caller::from(text.parse::<IpAddr>().unwrap());
        for text in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(text), Caller::Loopback, "{text}");
        }
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn oldest_idle_session_of_a_caller_ends() {
        for (caller, limit) in [(caller(1), MAX_CALLER_SESSIONS), (Caller::Loopback, MAX_LOOPBACK_SESSIONS)] {
            let mut ledger = Ledger::default();
            assert_eq!(begin(&mut ledger, super::tests::caller(2), "other"), Some(vec![]));
            for number in 0..limit {
                assert_eq!(begin(&mut ledger, caller, &number.to_string()), Some(vec![]));
            }
            // The first is used again, the second is in use.
            ledger.request("0", true);
            ledger.request("0", false);
            ledger.request("1", true);
            assert_eq!(begin(&mut ledger, caller, "one past"), Some(vec!["2".to_owned()]));
            assert!(ledger.sessions.contains_key("other"));
        }
    }

    #[test]
    fn no_session_begins_while_all_are_in_use() {
        let mut ledger = Ledger::default();
        for number in 0..MAX_CALLER_SESSIONS {
            begin(&mut ledger, caller(1), &number.to_string()).unwrap();
            ledger.request(&number.to_string(), true);
        }
        assert_eq!(ledger.begin(caller(1)), None);
        ledger.request("7", false);
        assert_eq!(ledger.begin(caller(1)), Some(vec!["7".to_owned()]));
        assert_eq!(ledger.begin(caller(1)), None, "a session that begins counts");
        ledger.begun(caller(1), None);
        assert_eq!(ledger.begin(caller(1)), Some(vec![]), "a session that did not begin does not");
    }

    #[test]
    fn oldest_idle_session_of_all_ends() {
        let mut ledger = Ledger::default();
        for number in 0..MAX_SESSIONS {
            assert_eq!(begin(&mut ledger, caller(number), &number.to_string()), Some(vec![]));
        }
        assert_eq!(begin(&mut ledger, caller(MAX_SESSIONS), "one past"), Some(vec!["0".to_owned()]));
        assert_eq!(ledger.count(None), MAX_SESSIONS);
    }
}
