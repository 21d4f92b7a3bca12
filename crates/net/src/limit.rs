//! How much of everything one sandbox's network may have.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $field:ident: $least:literal..=$most:literal, $default:literal;)+) => {
        /// How much of everything one sandbox's network may have.
        ///
        /// What a sandbox can make the host hold is at most `3 * buffer_bytes` for each connection (256 KiB
        /// more for one whose requests are read), 128 KiB for each flow of datagrams, and 40 MiB of packets that are on
        /// their way: 16 MiB that wait for a task, 16 MiB that wait for the sandbox, and the batches of the link. With the
        /// defaults that is some 270 MiB, of which a sandbox at rest has next to nothing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $field: u32,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Limits {
            /// Whether each is within what makes sense.
            ///
            /// ```
            /// use bouvet_net::Limits;
            ///
            /// assert!(Limits::default().validate().is_ok());
            /// let error = Limits { max_connections: 0, ..Limits::default() }.validate().unwrap_err();
            /// assert_eq!(error.to_string(), "`max_connections` is 0; 1 to 65536 are allowed");
            /// ```
            pub fn validate(&self) -> Result<(), LimitError> {
                $(check(stringify!($field), self.$field, $least, $most)?;)+
                Ok(())
            }

            /// Each with what it may be at least and at most, and all others as they are by default.
            #[cfg(test)]
            fn each() -> Vec<(&'static str, [u32; 2], fn(u32) -> Self)> {
                vec![$((
                    stringify!($field),
                    [$least, $most],
                    |value| Self { $field: value, ..Self::default() },
                ),)+]
            }
        }
    };
}

limits! {
    /// Connections of TCP at once, those that are being made among them.
    max_connections: 1..=65536, 512;
    /// Pairs of ends between which datagrams of UDP go at once.
    max_datagram_flows: 1..=65536, 256;
    /// Bytes that wait in each direction of one connection.
    buffer_bytes: 16384..=4194304, 131072;
    /// Packets in a second, of each direction.
    packets_per_s: 100..=10000000, 200000;
    /// Bytes in a second, of each direction: 1 Gbit/s.
    bytes_per_s: 262144..=4000000000, 125000000;
    /// Names that are asked for in a second. As many may come at once.
    queries_per_s: 1..=10000, 100;
    /// Echoes that are asked for in a second. As many may come at once.
    echoes_per_s: 1..=1000, 10;
    /// How long a connection may take to be made, in milliseconds.
    dial_timeout_ms: 100..=120000, 10000;
    /// How long a connection may say nothing in either direction, in seconds.
    idle_connection_s: 10..=604800, 7200;
    /// The same for datagrams.
    idle_datagrams_s: 5..=3600, 60;
}

/// A limit with a value that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is {value}; {least} to {most} are allowed")]
pub struct LimitError {
    /// Which.
    pub field: &'static str,
    /// What it was set to.
    pub value: u32,
    /// What it may be at least.
    pub least: u32,
    /// What it may be at most.
    pub most: u32,
}

fn check(field: &'static str, value: u32, least: u32, most: u32) -> Result<(), LimitError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(LimitError { field, value, least, most }),
    }
}

/// So many in a second, and as many at once.
#[derive(Debug)]
pub(crate) struct Rate {
    limiter: DefaultDirectRateLimiter,
    /// What comes in a second.
    most: NonZeroU32,
}

impl Rate {
    pub(crate) fn per_second(count: u32) -> Self {
        let most = NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        Self { limiter: RateLimiter::direct(Quota::per_second(most)), most }
    }

    /// Takes one, if there is one now.
    pub(crate) fn try_take(&self) -> bool {
        self.limiter.check().is_ok()
    }

    /// Waits until `count` may pass. More than come in a second are taken second by second.
    pub(crate) async fn take(&self, count: usize) {
        let mut left = count;
        while let Some(part) = NonZeroU32::new(u32::try_from(left).unwrap_or(u32::MAX)) {
            let part = part.min(self.most);
            self.take_part(part).await;
            left -= part.get() as usize;
        }
    }

    /// Takes no more than come in a second.
    async fn take_part(&self, part: NonZeroU32) {
        // It has room for as many: the outer result is never an error.
        while let Ok(Err(not_yet)) = self.limiter.check_n(part) {
            let wait = not_yet.wait_time_from(DefaultClock::default().now());
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn each_limit_holds_at_its_edge_and_not_past_it() {
        let all = serde_json::to_value(Limits::default()).unwrap();
        assert_eq!(all.as_object().unwrap().len(), Limits::each().len());
        for (field, [least, most], of) in Limits::each() {
            for edge in [least, most] {
                assert_eq!(of(edge).validate(), Ok(()), "{field} {edge}");
                assert_eq!(serde_json::to_value(of(edge)).unwrap()[field], edge, "{field}");
            }
            // None may be nothing, nor anything.
            for value in [0, least - 1, most + 1, u32::MAX] {
                let error = LimitError { field, value, least, most };
                assert_eq!(of(value).validate(), Err(error), "{field}");
            }
        }
        assert!(serde_json::from_str::<Limits>(r#"{"max_conections": 1}"#).is_err());
    }

    #[tokio::test]
    async fn a_rate_is_so_many_and_then_none() {
        let rate = Rate::per_second(3);
        assert_eq!([(); 4].map(|()| rate.try_take()), [true, true, true, false]);
        // It does wait for those that are spent, and comes to an end.
        rate.take(1).await;
        rate.take(0).await;
    }

    #[tokio::test]
    async fn more_than_come_in_a_second_are_charged_too() {
        let (rate, began) = (Rate::per_second(10), Instant::now());
        rate.take(10).await;
        assert!(began.elapsed() < Duration::from_secs(1), "as many as that come at once");
        rate.take(12).await;
        assert!(began.elapsed() >= Duration::from_millis(1150), "{:?}", began.elapsed());
        assert!(!rate.try_take(), "they are spent");
    }
}
