//! Output of a process through pipes that it keeps, assigned to one run at a time. Output between two runs is
//! kept for the next one, within a limit.

use bouvet_wire::limits::MAX_EARLIER_BYTES;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::output::Tail;

const READ_BYTES: usize = 32 * 1024;
/// Reads as a run ends: enough for what a pipe can hold (64 KiB), too few to follow a process that never stops
/// printing.
const MAX_LATE_READS: u32 = 4;

/// Part of a run's output that was printed before the run began.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Earlier {
    /// The first bytes of the output.
    pub(super) bytes: u64,
    /// Bytes before those, of which nothing is left.
    pub(super) dropped_bytes: u64,
}

/// A run that is to get what comes from now on, and whom to tell that it does.
type Switch = (Option<pipe::Sender>, oneshot::Sender<Earlier>);

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

    /// Returns when what comes goes to `run`; what was there before goes to the run before or, without one, to `run`
    /// first. `None` ends a run: its reader finds the end of its stream.
    pub(super) async fn switch(&self, run: Option<pipe::Sender>) -> Earlier {
        let (done, switched) = oneshot::channel();
        // Failing means that the process has closed its stream: `run` ends at once.
        match self.0.send((run, done)).await {
            Ok(()) => switched.await.unwrap_or_default(),
            Err(_) => Earlier::default(),
        }
    }
}

async fn relay(mut from: pipe::Receiver, mut switches: mpsc::Receiver<Switch>) {
    let mut buffer = vec![0; READ_BYTES];
    let mut target = Target::default();
    loop {
        tokio::select! {
            switch = switches.recv() => {
                let Some((next, done)) = switch else { return };
                for _ in 0..MAX_LATE_READS {
                    // Asked of the system itself: the runtime may not have heard yet that there is something.
                    let Ok(read @ 1..) = rustix::io::read(&from, &mut buffer) else { break };
                    target.pass(&buffer[..read]).await;
                }
                target.switch(next, done).await;
            }
            read = from.read(&mut buffer) => match read {
                Ok(read @ 1..) => target.pass(&buffer[..read]).await,
                _ => return,
            },
        }
    }
}

/// Where output goes: to a run or, between two, where it is kept for the next.
#[derive(Default)]
struct Target {
    run: Option<pipe::Sender>,
    kept: Tail,
}

impl Target {
    async fn pass(&mut self, data: &[u8]) {
        let Some(pipe) = &mut self.run else { return self.kept.push(data, MAX_EARLIER_BYTES) };
        if pipe.write_all(data).await.is_err() {
            self.run = None;
        }
    }

    async fn switch(&mut self, next: Option<pipe::Sender>, done: oneshot::Sender<Earlier>) {
        self.run = next;
        let kept = if self.run.is_some() {
            std::mem::take(&mut self.kept).trimmed(MAX_EARLIER_BYTES)
        } else {
            Tail::default()
        };
        // The caller may have been dropped. It reads what is passed only after this.
        done.send(Earlier { bytes: kept.bytes.len() as u64, dropped_bytes: kept.dropped_bytes }).ok();
        self.pass(&kept.bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (pipe::Sender, pipe::Receiver) {
        pipe::pipe().unwrap()
    }

    async fn rest(mut reader: pipe::Receiver) -> Vec<u8> {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        got
    }

    #[tokio::test]
    async fn output_between_runs_belongs_to_the_next() {
        let (mut process, from) = pipe();
        let relay = Relay::start(from);
        for (before, printed) in [("", "the first"), ("between", "the second"), ("", "the third")] {
            process.write_all(before.as_bytes()).await.unwrap();
            let (run, reader) = pipe();
            let earlier = relay.switch(Some(run)).await;
            assert_eq!(earlier, Earlier { bytes: before.len() as u64, dropped_bytes: 0 });
            process.write_all(printed.as_bytes()).await.unwrap();
            assert_eq!(relay.switch(None).await, Earlier::default());
            assert_eq!(rest(reader).await, format!("{before}{printed}").as_bytes());
        }
        drop(process);
        let (run, reader) = pipe();
        relay.switch(Some(run)).await;
        assert_eq!(rest(reader).await, b"", "a process that has gone prints nothing");
    }

    #[tokio::test]
    async fn earlier_output_is_kept_up_to_its_limit() {
        for over in [0, 1] {
            let (mut process, from) = pipe();
            let relay = Relay::start(from);
            let printed = [vec![b'a'; over], vec![b'b'; MAX_EARLIER_BYTES]].concat();
            process.write_all(&printed).await.unwrap();
            let (run, reader) = pipe();
            let earlier = relay.switch(Some(run)).await;
            let (bytes, dropped_bytes) = (MAX_EARLIER_BYTES as u64, over as u64);
            assert_eq!(earlier, Earlier { bytes, dropped_bytes });
            let reading = tokio::spawn(rest(reader));
            relay.switch(None).await;
            assert_eq!(reading.await.unwrap(), printed[over..]);
        }
    }
}
