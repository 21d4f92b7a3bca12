//! A large file goes to disk while it is written, so that its last `fsync` has little left to do.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;

/// Written before it is sent to disk: more than a disk takes in the time of a few seeks.
const AHEAD_BYTES: u64 = 64 << 20;

/// Told what was written, by whoever writes.
#[derive(Debug)]
pub(crate) struct Writeback {
    wake: SyncSender<()>,
    sent_bytes: AtomicU64,
}

impl Writeback {
    /// So many bytes were written by now. Does not wait.
    pub(crate) fn wrote(&self, bytes: u64) {
        if bytes.saturating_sub(self.sent_bytes.load(Ordering::Relaxed)) >= AHEAD_BYTES {
            self.sent_bytes.store(bytes, Ordering::Relaxed);
            // One that is under way is followed by one more, which takes all that there is by then.
            self.wake.try_send(()).ok();
        }
    }
}

/// Has `work` write to `file`, and sends that to disk meanwhile. What was written last is left to the caller's `fsync`.
///
/// The kernel reports each failure to write once: one that was met meanwhile is returned, as that `fsync` would not
/// tell it.
pub(crate) fn while_written<T, E: From<io::Error>>(
    file: &File,
    work: impl FnOnce(&Writeback) -> Result<T, E>,
) -> Result<T, E> {
    let (wake, woken) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let syncing = scope.spawn(move || woken.iter().try_for_each(|()| file.sync_data()));
        let done = work(&Writeback { wake, sent_bytes: AtomicU64::new(0) });
        let synced = syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let done = done?;
        synced?;
        Ok(done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_work_returns_is_returned() {
        let file = tempfile::tempfile().unwrap();
        let done = while_written(&file, |writeback| {
            (1..=10).for_each(|piece| writeback.wrote(piece * AHEAD_BYTES));
            Ok::<_, io::Error>(7)
        });
        assert_eq!(done.unwrap(), 7);
        let failed = while_written(&file, |_| Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull)));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_failure_to_reach_the_disk_is_returned() {
        // What is no file on a disk cannot be synced.
        let file = File::options().write(true).open("/dev/null").unwrap();
        let ended = |bytes| {
            while_written(&file, |writeback| {
                writeback.wrote(bytes);
                Ok::<_, io::Error>(())
            })
        };
        assert_eq!(ended(AHEAD_BYTES).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(ended(AHEAD_BYTES - 1).is_ok(), "so little waits for the end");
    }
}
