//! The end of what a VM's console, or a VMM, has printed. Bounded in memory and in the work that a guest can
//! cause by printing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;
use tracing::info;

const KEPT_BYTES: usize = 16 * 1024;
/// After this much the reader rests, and the writer waits.
const BURST_BYTES: usize = 64 * 1024;
const REST: Duration = Duration::from_millis(100);
/// How long the last words of a process that is gone are waited for: its children may hold its streams open.
const SETTLE: Duration = Duration::from_millis(100);

/// The longest line that is repeated as one.
const MAX_LINE_BYTES: usize = 1024;

/// The last bytes of a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    /// Whose every line the host's log repeats.
    aloud: Option<Arc<str>>,
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Cancelled at the stream's end.
    ended: CancellationToken,
}

impl Log {
    /// Follows `stream` to its end in the background.
    pub(crate) fn follow(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let log = Self::default();
        tokio::spawn(log.clone().read(stream));
        log
    }

    /// Follows the console of the VM called `name`, and where it is `aloud` repeats it in the host's log.
    pub(crate) fn follow_console(
        stream: impl AsyncRead + Unpin + Send + 'static,
        name: &str,
        aloud: bool,
    ) -> Self {
        let log = Self { aloud: aloud.then(|| name.into()), ..Self::default() };
        tokio::spawn(log.clone().read(stream));
        log
    }

    async fn read(self, mut stream: impl AsyncRead + Unpin) {
        let (mut buffer, mut burst, mut line) = ([0; 4096], 0, Vec::new());
        // An error is an end too: of a console, when its VM dies.
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            self.push(&buffer[..read]);
            self.repeat(&buffer[..read], &mut line);
            burst += read;
            if burst >= BURST_BYTES {
                burst = 0;
                tokio::time::sleep(REST).await;
            }
        }
        self.ended.cancel();
    }

    /// Repeats the lines that `bytes` end; the rest waits in `line`.
    fn repeat(&self, bytes: &[u8], line: &mut Vec<u8>) {
        let Some(sandbox) = &self.aloud else { return };
        for byte in bytes {
            if *byte != b'\n' && line.len() < MAX_LINE_BYTES {
                line.push(*byte);
                continue;
            }
            let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
            if !text.trim().is_empty() {
                info!(%sandbox, console = %text);
            }
            line.clear();
        }
    }

    /// Waits for what a process has written that is gone.
    pub(crate) async fn settle(&self) {
        tokio::time::timeout(SETTLE, self.ended.cancelled()).await.ok(); // what is there must do
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let over = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..over);
    }

    /// The last `lines` lines, on one line, without control characters.
    pub(crate) fn last_lines(&self, lines: usize) -> String {
        let kept: Vec<u8> =
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&kept);
        let clean = text.lines().map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>());
        let clean: Vec<String> = clean.filter(|line| !line.trim().is_empty()).collect();
        clean[clean.len().saturating_sub(lines)..].join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_end_is_kept() {
        let log = Log::default();
        let text = format!("{}\x1b[31mlast\x07\r\nline\n", "x".repeat(3 * KEPT_BYTES));
        log.clone().read(text.as_bytes()).await;
        assert!(log.kept.lock().unwrap().len() <= KEPT_BYTES);
        assert!(log.last_lines(2).ends_with("[31mlast | line"));
    }
}
