//! Which names were resolved to which addresses, and until when they count. Pure: the time is given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::name::Name;

/// How long an answer counts, whatever it says: a connection follows its answer, and is not to be late.
pub(crate) const MIN_TTL: Duration = Duration::from_secs(30);
/// See [`MIN_TTL`].
pub(crate) const MAX_TTL: Duration = Duration::from_secs(3600);
/// Pairs of a name and an address; beyond them the one that ends first goes.
pub(crate) const MAX_PINS: usize = 4096;
/// Names of one address, all of which a policy looks at for each connection; beyond them the one that ends first goes.
pub(crate) const MAX_NAMES: usize = 64;

/// How long an answer counts that says `ttl`.
pub(crate) fn ttl(ttl: Duration) -> Duration {
    ttl.clamp(MIN_TTL, MAX_TTL)
}

/// Names with the addresses that they were resolved to.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pins: HashMap<IpAddr, Vec<(Name, Instant)>>,
    count: usize,
}

impl Names {
    /// `name` is at these addresses for `ttl`, within bounds.
    pub(crate) fn pin(&mut self, name: &Name, addresses: &[IpAddr], ttl: Duration, now: Instant) {
        let until = now + self::ttl(ttl);
        for address in addresses {
            let mut pinned = self.pins.get_mut(address).into_iter().flatten();
            if let Some((_, end)) = pinned.find(|(pinned, _)| pinned == name) {
                *end = until.max(*end);
                continue;
            }
            if self.count >= MAX_PINS {
                self.make_room(now);
            }
            let pins = self.pins.entry(*address).or_default();
            if pins.len() >= MAX_NAMES
                && let Some(first) = (0..pins.len()).min_by_key(|index| pins[*index].1)
            {
                pins[first] = (name.clone(), until);
                continue;
            }
            pins.push((name.clone(), until));
            self.count += 1;
        }
    }

    /// The names that are at `address` now.
    pub(crate) fn of(&self, address: IpAddr, now: Instant) -> Vec<Name> {
        let pins = self.pins.get(&address).into_iter().flatten();
        pins.filter(|(_, until)| *until > now).map(|(name, _)| name.clone()).collect()
    }

    /// Removes what has ended; if nothing has, what ends first.
    fn make_room(&mut self, now: Instant) {
        self.retain(|until| until > now);
        if self.count >= MAX_PINS {
            let first = self.pins.values().flatten().map(|(_, until)| *until).min();
            self.retain(|until| Some(until) != first);
        }
    }

    fn retain(&mut self, keep: impl Fn(Instant) -> bool) {
        self.pins.retain(|_, pins| {
            pins.retain(|(_, until)| keep(*until));
            !pins.is_empty()
        });
        self.count = self.pins.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn an_answer_counts_as_long_as_it_says_within_bounds() {
        let (now, at) = (Instant::now(), IpAddr::from([93, 184, 215, 14]));
        for (said, counts) in [(0, MIN_TTL), (60, Duration::from_secs(60)), (86_400, MAX_TTL)] {
            let mut names = Names::default();
            names.pin(&name("a.example"), &[at], Duration::from_secs(said), now);
            assert_eq!(names.of(at, now + counts - Duration::from_millis(1)), [name("a.example")]);
            assert!(names.of(at, now + counts).is_empty());
        }
    }

    #[test]
    fn names_share_addresses_and_a_second_answer_lasts_longer() {
        let (now, at) = (Instant::now(), IpAddr::from([93, 184, 215, 14]));
        let mut names = Names::default();
        for text in ["a.example", "b.example", "a.example"] {
            names.pin(&name(text), &[at], Duration::from_secs(60), now);
        }
        names.pin(&name("a.example"), &[at], Duration::from_secs(300), now);
        assert_eq!(names.of(at, now), [name("a.example"), name("b.example")]);
        assert_eq!(names.of(at, now + Duration::from_secs(200)), [name("a.example")]);
        assert!(names.of(IpAddr::from([1, 2, 3, 4]), now).is_empty());
    }

    #[test]
    fn there_are_no_more_than_may_be() {
        let (now, mut names) = (Instant::now(), Names::default());
        for n in 0..u32::try_from(MAX_PINS).unwrap() + 100 {
            let at = IpAddr::from(n.to_be_bytes());
            names.pin(&name("a.example"), &[at], Duration::from_secs((60 + n).into()), now);
            assert!(names.count <= MAX_PINS);
            assert_eq!(names.of(at, now).len(), 1);
        }
        assert!(names.of(IpAddr::from(0_u32.to_be_bytes()), now).is_empty(), "the first to end is gone");
    }

    #[test]
    fn an_address_has_no_more_names_than_are_looked_at() {
        let (now, at, mut names) = (Instant::now(), IpAddr::from([93, 184, 215, 14]), Names::default());
        let numbered = |n: usize| name(&format!("n{n}.example"));
        for n in 0..=MAX_NAMES {
            let seconds = 60 + u64::try_from(n).unwrap();
            names.pin(&numbered(n), &[at], Duration::from_secs(seconds), now);
        }
        let kept = names.of(at, now);
        assert_eq!((kept.len(), names.count), (MAX_NAMES, MAX_NAMES));
        assert!(!kept.contains(&numbered(0)), "the first to end is gone");
        // Whatever it says, who has just been told an address can use it.
        names.pin(&name("late.example"), &[at], Duration::ZERO, now);
        assert!(names.of(at, now).contains(&name("late.example")));
        // One that is there needs no room.
        names.pin(&name("late.example"), &[at], MAX_TTL, now);
        assert_eq!(names.of(at, now).len(), MAX_NAMES);
    }

    proptest! {
        #[test]
        fn no_pin_outlives_its_answer(
            answers in prop::collection::vec((0..4_u8, prop::collection::vec(0..4_u8, 0..3), 0..200_000_u64, 0..5000_u64), 0..40),
            later in 0..8000_u64,
        ) {
            let (begun, mut names) = (Instant::now(), Names::default());
            let (at, numbered) = (|n: u8| IpAddr::from([10, 0, 0, n]), |n: u8| name(&format!("n{n}.example")));
            // What must be, from all that was said.
            let mut said = Vec::new();
            let mut now = begun;
            for (who, wheres, ttl, pause) in answers {
                now += Duration::from_secs(pause);
                let wheres: Vec<_> = wheres.into_iter().map(at).collect();
                names.pin(&numbered(who), &wheres, Duration::from_secs(ttl), now);
                let end = now + Duration::from_secs(ttl.clamp(30, 3600));
                said.extend(wheres.into_iter().map(|address| (numbered(who), address, end)));
            }
            let now = now + Duration::from_secs(later);
            for address in (0..4).map(at) {
                let mut expected: Vec<_> = said.iter().filter(|(_, other, end)| *other == address && *end > now).collect();
                expected.sort_unstable();
                expected.dedup_by(|a, b| a.0 == b.0);
                let mut found = names.of(address, now);
                found.sort_unstable();
                prop_assert_eq!(found, expected.into_iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn pins_are_counted(answers in prop::collection::vec((any::<u16>(), any::<u8>()), 0..200), many: u32) {
            let (now, mut names) = (Instant::now(), Names::default());
            for n in 0..MAX_PINS - 50 {
                let address = many.wrapping_add(u32::try_from(n).unwrap_or_default());
                names.pin(&name("many.example"), &[IpAddr::from(address.to_be_bytes())], MAX_TTL, now);
            }
            for (seconds, who) in answers {
                let ttl = Duration::from_secs(seconds.into());
                names.pin(&name(&format!("n{who}.example")), &[IpAddr::from([10, 0, 0, 1])], ttl, now);
                prop_assert!(names.count <= MAX_PINS);
                prop_assert_eq!(names.count, names.pins.values().map(Vec::len).sum::<usize>());
            }
            prop_assert!(names.of(IpAddr::from([10, 0, 0, 1]), now).len() <= MAX_NAMES);
        }
    }
}
