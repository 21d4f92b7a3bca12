use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::*;
use crate::dns::{self, Resolver};
use crate::flow::Protocol;
use crate::gateway::NameServer;
use crate::judge::Judge;
use crate::limit::{Limits, Rate};
use crate::names::{MAX_TTL, Names};
use crate::policy::Policy;
use crate::shared::{Addresses, Room};
use crate::sockets::Sockets;

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Policy { allow: rules(allow), deny: rules(deny) }
}

/// What a network shares with this policy, to which nobody is attached.
fn shared(own: Policy) -> Shared {
    let judge = Arc::new(watch::Sender::new(Arc::new(Judge { own, bound: None })));
    let (names, counters) = (Arc::<Mutex<Names>>::default(), Arc::default());
    let (addresses, sockets) = (Addresses::default(), Sockets::new(8));
    let ours = dns::Ours { gateway: (addresses.gateway_ipv4, addresses.gateway_ipv6), member: None };
    let server =
        dns::NameServer::new(Resolver::of_servers(Vec::new()), ours, judge.subscribe(), names.clone());
    Shared {
        member: None,
        addresses,
        limits: Limits::default(),
        sockets: sockets.clone(),
        judge,
        names,
        name_server: Arc::new(NameServer::new(server, Arc::clone(&counters), sockets, 1)),
        counters,
        interceptor: None,
        echoes: Rate::per_second(1),
        room: Room::default(),
        outbound: mpsc::channel(1).0,
    }
}

impl Shared {
    fn pin(&self, name: &str, address: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.pin(&name.parse().unwrap(), &[address.parse().unwrap()], MAX_TTL, Instant::now());
    }

    /// As if an hour had passed.
    fn forget_names(&self) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = Names::default();
    }

    fn set_policy(&self, own: Policy) {
        self.judge.send_replace(Arc::new(Judge { own, bound: None }));
    }
}

fn flow(protocol: Protocol) -> Flow {
    let at = |text: &str| text.parse().unwrap();
    Flow { protocol, source: at("10.0.2.15:1000"), destination: at("93.184.215.14:7") }
}

#[test]
fn what_was_allowed_by_a_name_goes_on_by_it_when_its_answer_has_ended() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (shared, flow) = (shared(policy(&["a.example", "b.example"], &[])), flow(protocol));
        shared.pin("a.example", "93.184.215.14");
        let mut way = Way::of(&shared, flow).unwrap();
        shared.forget_names();
        assert_eq!(Way::of(&shared, flow).unwrap_err(), Refusal::NotAllowed, "a new one is not");
        // What is not about it changes nothing, however often.
        for allow in [&["a.example"][..], &["a.example:7", "c.example"], &["*.example"], &[]] {
            shared.set_policy(policy(allow, &["10.0.0.0/8"]));
            way = way.again(&shared, flow).unwrap();
        }
        shared.set_policy(policy(&["b.example"], &[]));
        assert_eq!(way.again(&shared, flow).unwrap_err(), Refusal::NotAllowed);
        shared.set_policy(policy(&["*"], &["a.example"]));
        assert_eq!(way.again(&shared, flow).unwrap_err(), Refusal::Denied);
        shared.set_policy(policy(&["a.example"], &["93.184.215.0/24"]));
        assert_eq!(way.again(&shared, flow).unwrap_err(), Refusal::Denied);
    }
}

#[test]
fn names_that_an_address_gets_later_count_too_up_to_a_bound() {
    let (shared, flow) = (shared(Policy::default()), flow(Protocol::Tcp));
    let mut way = Way::of(&shared, flow).unwrap();
    for round in 0..3 {
        for number in 0..50 {
            shared.pin(&format!("n{number}.r{round}.example"), "93.184.215.14");
        }
        way = way.again(&shared, flow).unwrap();
        shared.forget_names();
    }
    let Way::Out(permit) = &way else { panic!("{way:?}") };
    assert_eq!(permit.names.len(), crate::names::MAX_NAMES);
    shared.set_policy(policy(&["n0.r0.example"], &[]));
    assert!(way.again(&shared, flow).is_ok());
}
