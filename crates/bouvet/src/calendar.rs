//! Times as RFC 3339 writes them, for every surface.
//!
//! `humantime` panics on a time that RFC 3339 cannot write. Some times come from files and guests, so a time outside
//! 1970 to 9999 is written as the nearest time within.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last second that RFC 3339 can write: 9999-12-31T23:59:59Z.
pub(crate) const LAST_UNIX_SECS: u64 = 253_402_300_799;

/// `time` in whole seconds.
pub(crate) fn seconds(time: SystemTime) -> String {
    #[expect(clippy::disallowed_methods, reason = "the time is within the calendar")]
    humantime::format_rfc3339_seconds(within(time)).to_string()
}

/// `time` with three digits of a second.
pub(crate) fn millis(time: SystemTime) -> String {
    #[expect(clippy::disallowed_methods, reason = "the time is within the calendar")]
    humantime::format_rfc3339_millis(within(time)).to_string()
}

/// `time` with nine digits of a second.
pub(crate) fn nanos(time: SystemTime) -> String {
    #[expect(clippy::disallowed_methods, reason = "the time is within the calendar")]
    humantime::format_rfc3339_nanos(within(time)).to_string()
}

fn within(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + since.min(Duration::from_secs(LAST_UNIX_SECS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_the_calendar_are_clamped() {
        let after = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        for (time, text) in [
            (UNIX_EPOCH - Duration::from_secs(1), "1970-01-01T00:00:00Z"),
            (UNIX_EPOCH, "1970-01-01T00:00:00Z"),
            (after(LAST_UNIX_SECS), "9999-12-31T23:59:59Z"),
            (after(LAST_UNIX_SECS + 1), "9999-12-31T23:59:59Z"),
            (after(i64::MAX.unsigned_abs()), "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(seconds(time), text);
            assert_eq!(millis(time), text.replace('Z', ".000Z"));
            assert_eq!(nanos(time), text.replace('Z', ".000000000Z"));
        }
        assert_eq!(nanos(UNIX_EPOCH + Duration::from_nanos(1)), "1970-01-01T00:00:00.000000001Z");
    }
}
