//! Which names were resolved to which addresses, and until when they count. Pure: the time is given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::name::Name;

/// How long an answer counts, whatever it says: a connection follows its answer, and is not to be late.
pub const MIN_TTL: Duration = Duration::from_secs(30);
/// See [`MIN_TTL`].
pub const MAX_TTL: Duration = Duration::from_secs(3600);
/// Pairs of a name and an address; beyond them the one that ends first goes.
pub const MAX_PINS: usize = 4096;

/// How long an answer counts that says `ttl`.
pub fn ttl(ttl: Duration) -> Duration {
    ttl.clamp(MIN_TTL, MAX_TTL)
}

/// Names with the addresses that they were resolved to.
#[derive(Debug, Default)]
pub struct Names {
    pins: HashMap<IpAddr, Vec<(Name, Instant)>>,
    count: usize,
}

impl Names {
    /// `name` is at these addresses for `ttl`, within bounds.
    pub fn pin(&mut self, name: &Name, addresses: &[IpAddr], ttl: Duration, now: Instant) {
        let until = now + self::ttl(ttl);
        for address in addresses {
            if self.count >= MAX_PINS {
                self.make_room(now);
            }
            let pins = self.pins.entry(*address).or_default();
            match pins.iter_mut().find(|(pinned, _)| pinned == name) {
                Some((_, end)) => *end = until.max(*end),
                None => {
                    pins.push((name.clone(), until));
                    self.count += 1;
                }
            }
        }
    }

    /// The names that are at `address` now.
    pub fn of(&self, address: IpAddr, now: Instant) -> Vec<Name> {
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
}
