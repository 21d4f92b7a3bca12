//! The terminal of this process.

use std::io::{self, IsTerminal as _, Read as _};

use bytes::Bytes;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// What is read at once.
const READ_BYTES: usize = 16 * 1024;
/// Reads that wait.
const QUEUED_KEYS: usize = 4;

/// A terminal that forwards every key, until this is dropped: also when a panic unwinds.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Makes standard input's terminal so.
    pub(super) fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

/// A terminal that does not show what is typed, until this is dropped.
#[derive(Debug)]
pub(super) struct Hidden(Termios);

impl Hidden {
    /// Makes standard input's terminal so.
    pub(super) fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

/// Whether standard input is one.
pub(super) fn is_input() -> bool {
    io::stdin().is_terminal()
}

/// Its rows and columns: of whichever standard stream is one.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// What comes on standard input, to its end. Read by a thread of its own, which nobody waits for at the end: it may hang
/// in a read that never returns.
pub(super) fn input() -> io::Result<mpsc::Receiver<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUED_KEYS);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })?;
    Ok(receiver)
}

/// The keys that leave a program without ending it: Ctrl-P Ctrl-Q.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Finds them in what is typed.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    /// Whether the first was typed.
    begun: bool,
}

impl DetachKeys {
    /// What of `typed` is for the program; `None` after both keys.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            if std::mem::take(&mut self.begun) {
                if *byte == LEAVE[1] {
                    return (passed, true);
                }
                passed.push(LEAVE[0]);
            }
            match *byte == LEAVE[0] {
                true => self.begun = true,
                false => passed.push(*byte),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_one_is_typed() {
        let filter = |parts: &[&[u8]]| {
            let mut keys = DetachKeys::default();
            let mut passed = Vec::new();
            for part in parts {
                let (bytes, left) = keys.filter(part);
                passed.extend(bytes);
                if left {
                    return (passed, true);
                }
            }
            (passed, false)
        };
        assert_eq!(filter(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(filter(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(filter(&[b"\x10", b"b"]), (b"\x10b".to_vec(), false));
        assert_eq!(filter(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(filter(&[b"\x11"]), (b"\x11".to_vec(), false));
    }
}
