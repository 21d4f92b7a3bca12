//! Signals that this process gets and passes on to the program that it stands for.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What is passed on.
const PASSED: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];
/// Signals that wait to be passed on. Of more, people do not mean each.
const QUEUED_SIGNALS: usize = 16;

/// The kernel's report on this process, which contains the mask of ignored signals.
const STATUS: &str = "/proc/self/status";

/// Signals that come, by number.
#[derive(Debug)]
pub(super) struct Signals(mpsc::Receiver<i32>);

impl Signals {
    /// From now on none of them ends this process by itself. Signals that this process was started to ignore, as by
    /// `nohup`, stay ignored.
    pub(super) fn listen() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUED_SIGNALS);
        let status = std::fs::read_to_string(STATUS).unwrap_or_default();
        for kind in PASSED.into_iter().filter(|kind| !is_ignored(&status, kind.as_raw_value())) {
            let (mut signals, sender) = (signal(kind)?, sender.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    // Full: it is one of too many.
                    sender.try_send(kind.as_raw_value()).ok();
                }
            });
        }
        Ok(Self(receiver))
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> i32 {
        match self.0.recv().await {
            Some(number) => number,
            None => std::future::pending().await,
        }
    }
}

/// Whether the process with this `status` ignores a signal: proc(5), `SigIgn`.
fn is_ignored(status: &str, number: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    u32::try_from(number - 1).is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
}

/// The exit code of what a signal ended.
pub(super) fn code(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_stay_ignored() {
        // A process under `nohup`: SIGHUP is 1. Rust ignores SIGPIPE, 13.
        let status = "Name:\tbouvet\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        let ignored: Vec<_> = (1..=64).filter(|number| is_ignored(status, *number)).collect();
        assert_eq!(ignored, [1, 13]);
        assert!(!is_ignored("", 1));
    }
}
