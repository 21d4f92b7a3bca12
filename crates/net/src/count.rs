//! What a network has done, and what it has refused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::flow::Flow;
use crate::name::Name;
use crate::refusal::Refusal;

/// Refusals that are remembered.
pub const MAX_REFUSALS: usize = 256;

/// How much there was of what, since the network began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Packets that the sandbox sent.
    pub sent_packets: u64,
    /// See `sent_packets`.
    pub sent_bytes: u64,
    /// Packets that it was sent.
    pub received_packets: u64,
    /// See `received_packets`.
    pub received_bytes: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Those that are open, or being made.
    pub open_connections: u64,
    /// Pairs of ends between which datagrams went.
    pub datagram_flows: u64,
    /// Those that are still known.
    pub open_datagram_flows: u64,
    /// Names that were asked for.
    pub queries: u64,
    /// Echoes that were asked for.
    pub echoes: u64,
    /// What was refused, by its reason.
    pub refused: BTreeMap<Refusal, u64>,
}

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When, last.
    pub at: SystemTime,
    /// Why.
    pub refusal: Refusal,
    /// What. `None`: it was no packet of a flow.
    pub flow: Option<Flow>,
    /// The name that was asked for, or that a connection said.
    pub name: Option<Name>,
    /// How often in a row.
    pub times: u64,
}

/// Counts as they are made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent_packets: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_packets: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) open_connections: AtomicU64,
    pub(crate) datagram_flows: AtomicU64,
    pub(crate) open_datagram_flows: AtomicU64,
    pub(crate) queries: AtomicU64,
    pub(crate) echoes: AtomicU64,
    refused: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    counts: BTreeMap<Refusal, u64>,
    last: VecDeque<Refused>,
}

/// One more of what is counted, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Open {
    counters: Arc<Counters>,
    count: fn(&Counters) -> &AtomicU64,
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.count)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn open(self: &Arc<Self>, count: fn(&Self) -> &AtomicU64) -> Open {
        add(count(self), 1);
        Open { counters: self.clone(), count }
    }

    pub(crate) fn refuse(&self, refusal: Refusal, flow: Option<Flow>, name: Option<&Name>) {
        let mut log = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *log.counts.entry(refusal).or_default() += 1;
        // A source port says nothing, and is another each time.
        let what = |flow: Option<Flow>| flow.map(|flow| (flow.protocol, flow.source.ip(), flow.destination));
        let same = |last: &&mut Refused| {
            last.refusal == refusal && what(last.flow) == what(flow) && last.name.as_ref() == name
        };
        match log.last.back_mut().filter(same) {
            Some(last) => (last.at, last.times) = (SystemTime::now(), last.times + 1),
            None => {
                if log.last.len() == MAX_REFUSALS {
                    log.last.pop_front();
                }
                let name = name.cloned();
                log.last.push_back(Refused { at: SystemTime::now(), refusal, flow, name, times: 1 });
            }
        }
    }

    pub(crate) fn refusals(&self) -> Vec<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).last.iter().cloned().collect()
    }

    pub(crate) fn read(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            sent_packets: read(&self.sent_packets),
            sent_bytes: read(&self.sent_bytes),
            received_packets: read(&self.received_packets),
            received_bytes: read(&self.received_bytes),
            connections: read(&self.connections),
            open_connections: read(&self.open_connections),
            datagram_flows: read(&self.datagram_flows),
            open_datagram_flows: read(&self.open_datagram_flows),
            queries: read(&self.queries),
            echoes: read(&self.echoes),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).counts.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;

    #[test]
    fn what_is_open_is_counted_until_it_is_dropped() {
        let counters = Arc::<Counters>::default();
        let open = || counters.open(|counters| &counters.open_connections);
        let (one, other) = (open(), open());
        assert_eq!((counters.read().open_connections, counters.read().open_datagram_flows), (2, 0));
        drop(one);
        assert_eq!(counters.read().open_connections, 1);
        drop(other);
        assert_eq!(counters.read().open_connections, 0);
    }

    #[test]
    fn refusals_are_counted_all_and_remembered_some() {
        let counters = Counters::default();
        let flow = |port| Flow {
            protocol: Protocol::Tcp,
            source: ([10, 0, 2, 15], 1000 + port).into(),
            destination: ([10, 0, 0, 1], port).into(),
        };
        for _ in 0..3 {
            counters.refuse(Refusal::Private, Some(flow(1)), None);
        }
        assert_eq!(counters.refusals().len(), 1);
        assert_eq!(counters.refusals()[0].times, 3);
        for port in 0..u16::try_from(MAX_REFUSALS).unwrap() + 5 {
            counters.refuse(Refusal::Private, Some(flow(port)), None);
        }
        assert_eq!(counters.refusals().len(), MAX_REFUSALS);
        assert_eq!(counters.refusals()[0].flow, Some(flow(5)));
        assert_eq!(counters.read().refused[&Refusal::Private], 3 + 5 + MAX_REFUSALS as u64);
    }
}
