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
const WAITING: usize = 16;

/// Signals that come, by number.
#[derive(Debug)]
pub(super) struct Signals(mpsc::Receiver<i32>);

impl Signals {
    /// From now on none of them ends this process by itself.
    pub(super) fn listen() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(WAITING);
        for kind in PASSED {
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

/// The exit code of what a signal ended.
pub(super) fn code(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}
