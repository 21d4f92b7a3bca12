//! What comes back from a program.

use std::time::Duration;

use crate::context::Death;
use crate::results::RichOutput;

/// One stream of a program's output: its beginning, and its end if there was more than fits.
///
/// ```
/// use bouvet_host::Captured;
///
/// let (head, tail) = (b"first".to_vec(), b"last".to_vec());
/// let output = Captured { head, dropped_bytes: 7, tail, ..Captured::default() };
/// assert_eq!(output.text(), "first\n[… 7 bytes left out …]\nlast");
/// assert_eq!(output.clipped(2).dropped_bytes, 7 + 3 + 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes.
    pub head: Vec<u8>,
    /// Bytes left out between the head and the tail.
    pub dropped_bytes: u64,
    /// The last bytes.
    pub tail: Vec<u8>,
    /// In a context: how many of the first bytes were printed before the run began, by what earlier runs left running.
    pub earlier_bytes: u64,
    /// Bytes left out before those.
    pub earlier_dropped_bytes: u64,
}

impl Captured {
    /// The same with at most `part_bytes` of its beginning and of its end.
    pub fn clipped(mut self, part_bytes: usize) -> Self {
        if self.head.len() + self.tail.len() <= 2 * part_bytes {
            return self;
        }
        let rest = self.head.split_off(self.head.len().min(part_bytes));
        if self.dropped_bytes == 0 {
            // There is no gap between the two: the end may begin in what was the head.
            self.tail.splice(..0, rest);
        } else {
            self.dropped_bytes += rest.len() as u64;
        }
        let over = self.tail.len().saturating_sub(part_bytes);
        self.tail.drain(..over);
        self.dropped_bytes += over as u64;
        self
    }

    /// The output as text, with a line that says what was left out.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.earlier_dropped_bytes > 0 {
            text.push_str(&format!("[… {} bytes left out …]\n", self.earlier_dropped_bytes));
        }
        if self.dropped_bytes == 0 {
            // The boundary may fall into a character.
            text.push_str(&String::from_utf8_lossy(&[&self.head[..], &self.tail[..]].concat()));
            return text;
        }
        text.push_str(&String::from_utf8_lossy(&self.head));
        text.push_str(&format!("\n[… {} bytes left out …]\n", self.dropped_bytes));
        text.push_str(&String::from_utf8_lossy(&self.tail));
        text
    }

    /// Whether some of it was left out.
    pub fn truncated(&self) -> bool {
        self.dropped_bytes > 0 || self.earlier_dropped_bytes > 0
    }
}

/// How a program ended.
///
/// ```no_run
/// use bouvet_host::{ExecRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let request = ExecRequest::new(Program::Command, "make test");
/// let exit = sandbox.exec(request).await?.finish().await?.exit;
/// match exit.exit_code {
///     0 => println!("passed in {:?}", exit.duration),
///     _ if exit.timed_out => println!("was too slow"),
///     _ if exit.out_of_memory => println!("needs more memory"),
///     code => println!("failed with exit code {code}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecExit {
    /// Its exit code; 128 + the signal's number when a signal ended it.
    pub exit_code: i32,
    /// Whether its deadline ended it.
    pub timed_out: bool,
    /// Whether the kernel killed any of its processes for lack of memory.
    pub out_of_memory: bool,
    /// How long it ran, by the guest's clock.
    pub duration: Duration,
    /// How its context died, if that did not outlive it.
    pub context_death: Option<Death>,
}

/// All of a program's run.
///
/// ```no_run
/// use bouvet_host::{ExecRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let request = ExecRequest::new(Program::Command, "cat /var/log/dpkg.log");
/// let result = sandbox.exec(request).await?.finish().await?;
/// if result.truncated() {
///     println!("{} bytes of it were left out", result.stdout.dropped_bytes);
/// }
/// println!("{}", result.stdout.text());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// How it ended.
    pub exit: ExecExit,
    /// What it printed.
    pub stdout: Captured,
    /// What it printed as errors.
    pub stderr: Captured,
    /// What it showed, in a context.
    pub results: Vec<RichOutput>,
    /// Results beyond the limits.
    pub omitted_results: u32,
}

impl ExecResult {
    /// Whether some output was left out.
    pub fn truncated(&self) -> bool {
        self.stdout.truncated() || self.stderr.truncated()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_keeps_both_ends_and_counts_what_lies_between() {
        let of = |head: &[u8], dropped_bytes, tail: &[u8]| Captured {
            head: head.to_vec(),
            dropped_bytes,
            tail: tail.to_vec(),
            ..Captured::default()
        };
        assert_eq!(of(b"abc", 0, b"d").clipped(2), of(b"abc", 0, b"d"), "it fits");
        assert_eq!(of(b"abcdefg", 0, b"").clipped(2), of(b"ab", 3, b"fg"));
        assert_eq!(of(b"abcd", 0, b"e").clipped(2), of(b"ab", 1, b"de"));
        assert_eq!(of(b"abcd", 7, b"wxyz").clipped(2), of(b"ab", 11, b"yz"));
        assert_eq!(of(b"abcd", 7, b"z").clipped(2), of(b"ab", 9, b"z"));
    }

    #[test]
    fn text_joins_head_and_tail_across_a_character() {
        let of = |head: &[u8], tail: &[u8]| Captured {
            head: head.to_vec(),
            tail: tail.to_vec(),
            ..Captured::default()
        };
        assert_eq!(of(b"gr\xc3", b"\xbcn").text(), "grün");
        let captured = Captured { dropped_bytes: 7, ..of(b"a", b"z") };
        assert_eq!(captured.text(), "a\n[… 7 bytes left out …]\nz");
        let captured = Captured { earlier_dropped_bytes: 7, ..of(b"a", b"z") };
        assert_eq!((captured.text().as_str(), captured.truncated()), ("[… 7 bytes left out …]\naz", true));
    }
}
