//! Signals of a server: which end it, and which do not.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | the server ends in order; the second one ends what waits for a grace period |
//! | SIGHUP | ignored by a server over HTTP; the server of one client on stdio ends in order |
//! | SIGUSR1, SIGUSR2, SIGALRM, SIGIO, real-time and other signals whose default is to kill | ignored |

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::config::Transport;

/// Signals that others may send by mistake, and whose default action kills a process without its clean-up.
const IGNORED: [(&str, i32); 9] = [
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGALRM", 14),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGIO", 29),
    ("SIGPWR", 30),
];
/// Real-time signals that glibc leaves to programs.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Cancels `end` at the first signal that ends the server, and `haste` at the second.
pub(crate) fn listen(
    transport: Transport,
    end: &CancellationToken,
    haste: &CancellationToken,
) -> io::Result<()> {
    for (name, number) in IGNORED.into_iter().chain(REAL_TIME.map(|number| ("a real-time signal", number))) {
        ignore(name, SignalKind::from_raw(number))?;
    }
    // The terminal of a client on stdio is gone; over HTTP there is nothing to reload.
    let mut hang_up = match transport.http() {
        true => {
            ignore("SIGHUP", SignalKind::hangup())?;
            None
        }
        false => Some(signal(SignalKind::hangup())?),
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let (mut interrupt, mut quit) = (signal(SignalKind::interrupt())?, signal(SignalKind::quit())?);
    let (end, haste) = (end.clone(), haste.clone());
    tokio::spawn(async move {
        for token in [end, haste] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = quit.recv() => "SIGQUIT",
                () = received(hang_up.as_mut()) => "SIGHUP",
            };
            info!("{name}");
            token.cancel();
        }
        debug!("further signals change nothing");
    });
    Ok(())
}

async fn received(signal: Option<&mut tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Lets a signal pass. It is handled rather than ignored, as programs that this process starts would inherit that.
fn ignore(name: &'static str, kind: SignalKind) -> io::Result<()> {
    let mut signals = signal(kind)?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            info!("{name} is ignored");
        }
    });
    Ok(())
}
