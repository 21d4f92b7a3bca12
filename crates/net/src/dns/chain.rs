//! What of a name server's answer belongs to a question: its aliases, one leading to the next, and the records at their
//! end. All else in an answer is left behind. Pure.

use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// Aliases that are followed; a browser follows as many redirects.
const MAX_ALIASES: usize = 16;
/// Records that are passed on.
pub(super) const MAX_RECORDS: usize = 64;

/// The part of an answer that belongs to its question.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Chain {
    /// Aliases in the order in which they lead on, then what the last one has of the type that was asked for.
    pub(super) records: Vec<Record>,
    /// The names that they lead over, without the one that was asked for.
    pub(super) names: Vec<Name>,
}

/// Aliases that lead nowhere: in a circle, or on and on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endless;

/// Types that are passed on. None of them tells where and how to connect beside A and AAAA, of which the addresses are
/// judged: HTTPS and SVCB would (RFC 9460: addresses, keys that hide the name from TLS, protocols).
pub(super) fn is_passed_on(kind: RecordType) -> bool {
    use RecordType::{A, AAAA, CAA, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    matches!(kind, A | AAAA | CAA | CNAME | MX | NS | PTR | SOA | SRV | TXT)
}

/// Follows the aliases of `query` through the records of an answer, in whatever order they are.
pub(super) fn follow(query: &Query, records: &[Record]) -> Result<Chain, Endless> {
    let mut chain = Chain::default();
    let mut at = &query.name;
    if query.query_type != RecordType::CNAME {
        while let Some((alias, target)) = records.iter().find_map(|record| target(record, at)) {
            if chain.names.len() == MAX_ALIASES || target == &query.name || chain.names.contains(target) {
                return Err(Endless);
            }
            chain.names.push(target.clone());
            chain.records.push(alias.clone());
            at = target;
        }
    }
    let last = records.iter().filter(|record| is_at(record, at) && record.record_type() == query.query_type);
    let room = MAX_RECORDS - chain.records.len();
    let last = last.take(room).cloned();
    chain.records.extend(last);
    // As it was asked for, letter by letter, which some clients compare.
    for record in &mut chain.records {
        if record.name == query.name {
            record.name = query.name.clone();
        }
    }
    Ok(chain)
}

fn is_at(record: &Record, name: &Name) -> bool {
    record.dns_class == DNSClass::IN && &record.name == name
}

fn target<'a>(record: &'a Record, of: &Name) -> Option<(&'a Record, &'a Name)> {
    match &record.data {
        RData::CNAME(target) if is_at(record, of) => Some((record, &target.0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn alias(of: &str, to: &str) -> Record {
        Record::from_rdata(name(of), 60, RData::CNAME(CNAME(name(to))))
    }

    fn address(of: &str, last: u8) -> Record {
        Record::from_rdata(name(of), 60, RData::A(A::new(198, 51, 100, last)))
    }

    fn query(text: &str) -> Query {
        Query::query(name(text), RecordType::A)
    }

    #[test]
    fn aliases_lead_to_addresses_in_any_order() {
        let records = [address("c.", 1), alias("b.", "c."), alias("a.", "b."), address("c.", 2)];
        let chain = follow(&query("A."), &records).expect("it ends");
        let [first, second, third, fourth] = &chain.records[..] else { panic!("{chain:?}") };
        assert_eq!((&first.data, first.name.to_ascii()), (&records[2].data, "A.".into()));
        assert_eq!((second, third, fourth), (&records[1], &records[0], &records[3]));
        assert_eq!(chain.names, [name("b."), name("c.")]);
    }

    #[test]
    fn what_belongs_to_nobody_who_was_asked_for_is_left_behind() {
        let mut chaos = address("a.", 3);
        chaos.dns_class = DNSClass::CH;
        let records = [address("evil.", 1), alias("evil.", "a."), chaos, address("a.", 2)];
        let chain = follow(&query("a."), &records).expect("it ends");
        assert_eq!((chain.records.as_slice(), chain.names.len()), (&records[3..], 0));
        assert_eq!(follow(&query("b."), &records), Ok(Chain::default()));
        let mut only_alias = query("evil.");
        only_alias.query_type = RecordType::CNAME;
        let chain = follow(&only_alias, &records).expect("it ends");
        assert_eq!((chain.records.as_slice(), chain.names.len()), (&records[1..2], 0));
    }

    #[test]
    fn aliases_end_at_the_limit_and_not_in_circles() {
        let long = |length: usize| -> Vec<_> {
            (0..length).map(|n| alias(&format!("n{n}."), &format!("n{}.", n + 1))).collect()
        };
        assert_eq!(follow(&query("n0."), &long(MAX_ALIASES)).map(|chain| chain.names.len()), Ok(MAX_ALIASES));
        assert_eq!(follow(&query("n0."), &long(MAX_ALIASES + 1)), Err(Endless));
        for circle in [vec![alias("a.", "a.")], vec![alias("a.", "b."), alias("b.", "a.")]] {
            assert_eq!(follow(&query("a."), &circle), Err(Endless));
        }
        let late = [alias("a.", "b."), alias("b.", "c."), alias("c.", "b.")];
        assert_eq!(follow(&query("a."), &late), Err(Endless));
    }

    #[test]
    fn records_beyond_the_limit_are_left_behind() {
        let many: Vec<_> = (0..=u8::MAX).map(|last| address("a.", last)).collect();
        assert_eq!(follow(&query("a."), &many).map(|chain| chain.records.len()), Ok(MAX_RECORDS));
    }
}
