//! What a process prints through pipes that it keeps, handed to one run at a time. Between runs it is read and
//! dropped, so that nobody waits for a reader and no run finds what another printed.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

const READ_BYTES: usize = 32 * 1024;
/// Reads as a run ends: enough for what a pipe can hold (64 KiB), too few to follow a process that never stops
/// printing.
const MAX_LATE_READS: u32 = 4;

/// A run that is to get what comes from now on, and whom to tell that it does.
type Switch = (Option<pipe::Sender>, oneshot::Sender<()>);

/// Where one stream of a process goes. Dropped, it ends the run that it went to.
#[derive(Debug)]
pub(super) struct Relay(mpsc::Sender<Switch>);

impl Relay {
    /// Reads `from` in the background, to its end.
    pub(super) fn start(from: pipe::Receiver) -> Self {
        let (sender, switches) = mpsc::channel(1);
        tokio::spawn(relay(from, switches));
        Self(sender)
    }

    /// Returns when what comes goes to `run`; what was there before goes to the run before. `None` is the end of
    /// one: its reader finds the end of its stream.
    pub(super) async fn switch(&self, run: Option<pipe::Sender>) {
        let (done, switched) = oneshot::channel();
        // Failing means that the process has closed its stream: `run` ends at once.
        if self.0.send((run, done)).await.is_ok() {
            switched.await.ok();
        }
    }
}

async fn relay(mut from: pipe::Receiver, mut switches: mpsc::Receiver<Switch>) {
    let mut buffer = vec![0; READ_BYTES];
    let mut run = None;
    loop {
        tokio::select! {
            switch = switches.recv() => {
                let Some((next, done)) = switch else { return };
                for _ in 0..MAX_LATE_READS {
                    // Asked of the system itself: the runtime may not have heard yet that there is something.
                    let Ok(read @ 1..) = rustix::io::read(&from, &mut buffer) else { break };
                    pass(&mut run, &buffer[..read]).await;
                }
                run = next;
                // Whoever asked may have gone.
                done.send(()).ok();
            }
            read = from.read(&mut buffer) => match read {
                Ok(read @ 1..) => pass(&mut run, &buffer[..read]).await,
                _ => return,
            },
        }
    }
}

async fn pass(run: &mut Option<pipe::Sender>, data: &[u8]) {
    if let Some(pipe) = run
        && pipe.write_all(data).await.is_err()
    {
        *run = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (pipe::Sender, pipe::Receiver) {
        pipe::pipe().unwrap()
    }

    #[tokio::test]
    async fn each_run_gets_its_own_and_none_what_came_between() {
        let (mut process, from) = pipe();
        let relay = Relay::start(from);
        for printed in ["the first", "the second"] {
            process.write_all(b"between").await.unwrap();
            let (run, mut reader) = pipe();
            relay.switch(Some(run)).await;
            process.write_all(printed.as_bytes()).await.unwrap();
            relay.switch(None).await;
            let mut got = String::new();
            reader.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, printed);
        }
        drop(process);
        let (run, mut reader) = pipe();
        relay.switch(Some(run)).await;
        assert_eq!(reader.read(&mut [0; 1]).await.unwrap(), 0, "a process that has gone says nothing");
    }
}
