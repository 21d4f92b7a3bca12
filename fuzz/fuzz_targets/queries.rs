//! A hostile guest's question, and what a hostile name server answers: the guest learns of no address that its policy
//! keeps from it.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use bouvet_net::Policy;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use libfuzzer_sys::fuzz_target;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy { allow: rules(&["*", "10.1.0.0/16", "host:80"]), deny: rules(&["evil.example"]) }
});

// First the length of the question, in one byte.
fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first() else { return };
    let Some((query, upstream)) = rest.split_at_checked((*length).into()) else { return };
    let Some(answer) = bouvet_net::dns::fuzz(query, upstream, &POLICY) else { return };
    let answer = Message::from_vec(&answer).expect("an answer is a message");
    assert!(answer.authorities.is_empty() && answer.additionals.is_empty());
    for record in answer.answers {
        let address: IpAddr = match record.data {
            RData::A(address) => address.0.into(),
            RData::AAAA(address) => address.0.into(),
            _ => continue,
        };
        let gateway = ["10.0.2.2", "::1"].iter().any(|own| own.parse() == Ok(address));
        assert!(gateway || POLICY.admits_answer(address, false), "{address}");
    }
});
