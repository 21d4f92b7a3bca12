//! When a sandbox is started again by itself. Pure.

use std::time::Duration;

use super::InvalidConfig;

/// Before the first restart, as Docker has it. Doubled each time.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait before a restart.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A sandbox that ran so long has recovered: its next restart waits for [`MIN_PAUSE`] again.
const RECOVERED: Duration = Duration::from_secs(10);

/// When a sandbox is started again that stopped or failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Restart {
    /// Never.
    #[default]
    No,
    /// Unless somebody stopped it; and when its host starts.
    Always,
    /// The same, but not when its host starts if somebody had stopped it before.
    UnlessStopped,
    /// When its main program failed, so many times at most.
    OnFailure(Option<u32>),
}

impl Restart {
    /// Parses `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:NUMBER`; empty is `no`.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let allowed = "`no`, `always`, `unless-stopped`, `on-failure` and `on-failure:NUMBER` are allowed";
        let wrong = || InvalidConfig::text("restart", text, allowed);
        match text.split_once(':') {
            None => match text {
                "" | "no" => Ok(Self::No),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                "on-failure" => Ok(Self::OnFailure(None)),
                _ => Err(wrong()),
            },
            Some(("on-failure", number)) => {
                // As in Docker, 0 means without limit.
                let number = number.parse().map_err(|_| wrong())?;
                Ok(Self::OnFailure((number > 0).then_some(number)))
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Whether a sandbox is started again that has come down, `failed` or not, after so many restarts.
    pub(crate) fn wants(self, failed: bool, was_asked: bool, restarts: u32) -> bool {
        match self {
            _ if was_asked => false,
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(limit) => failed && limit.is_none_or(|limit| restarts < limit),
        }
    }

    /// Whether a persistent sandbox is started when its host is.
    pub(crate) fn starts_with_host(self, was_asked: bool) -> bool {
        match self {
            Self::Always => true,
            Self::UnlessStopped => !was_asked,
            Self::No | Self::OnFailure(_) => false,
        }
    }
}

/// Delay before each restart.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// The wait before a restart of a sandbox that ran for `ran`.
    pub(crate) fn next(&mut self, ran: Duration) -> Duration {
        self.0 = match ran >= RECOVERED || self.0.is_zero() {
            true => MIN_PAUSE,
            false => (self.0 * 2).min(MAX_PAUSE),
        };
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_refused() {
        assert_eq!(Restart::parse(""), Ok(Restart::No));
        assert_eq!(Restart::parse("on-failure:3"), Ok(Restart::OnFailure(Some(3))));
        assert_eq!(Restart::parse("on-failure:0"), Ok(Restart::OnFailure(None)));
        for wrong in ["Always", "on-failure:", "on-failure:-1", "always:3", "sometimes"] {
            assert!(Restart::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn policies_restart_as_dockers_do() {
        for (policy, failed, asked, restarts, wanted) in [
            (Restart::No, true, false, 0, false),
            (Restart::Always, false, false, 1000, true),
            (Restart::Always, true, true, 0, false),
            (Restart::UnlessStopped, false, false, 0, true),
            (Restart::OnFailure(None), false, false, 0, false),
            (Restart::OnFailure(None), true, false, 1000, true),
            (Restart::OnFailure(Some(2)), true, false, 1, true),
            (Restart::OnFailure(Some(2)), true, false, 2, false),
        ] {
            assert_eq!(
                policy.wants(failed, asked, restarts),
                wanted,
                "{policy:?} {failed} {asked} {restarts}"
            );
        }
        assert!(Restart::Always.starts_with_host(true) && !Restart::UnlessStopped.starts_with_host(true));
        assert!(
            Restart::UnlessStopped.starts_with_host(false)
                && !Restart::OnFailure(None).starts_with_host(false)
        );
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut backoff = Backoff::default();
        let short = RECOVERED - Duration::from_millis(1);
        let waits: Vec<_> = (0..12).map(|_| backoff.next(short).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[9..], [51_200, 60_000, 60_000]);
        assert_eq!(backoff.next(RECOVERED), MIN_PAUSE, "it has recovered");
    }
}
