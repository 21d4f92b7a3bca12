//! What a sandbox's main program prints: kept within bounds, read by those who come later, and followed by those who stay.
//!
//! Readers who are attached hold the program up rather than miss anything, as the reader of a pipe does; other readers
//! miss what has left the journal when they come to it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// What is kept of the end of the output.
const MAX_BYTES: usize = 1024 * 1024;
/// Pieces that are kept: what a program prints byte by byte takes far more than a byte each.
const MAX_RECORDS: usize = 16 * 1024;
/// The longest piece that is kept as one.
const MAX_PIECE_BYTES: usize = 64 * 1024;
/// How far an attached reader may be behind, in bytes and in pieces, before the program waits for it.
const MAX_BEHIND_BYTES: u64 = (MAX_BYTES / 2) as u64;
const MAX_BEHIND_RECORDS: usize = MAX_RECORDS / 2;
/// How long the program waits for one that does not read. Then it misses what it misses.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a program printed something.
///
/// ```no_run
/// use bouvet_host::{LogOptions, LogStream};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut log = sandbox.logs(LogOptions::default());
/// while let Some(record) = log.next().await {
///     if record.stream == LogStream::Stderr {
///         print!("{}", String::from_utf8_lossy(&record.data));
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Its standard output, or its terminal.
    Stdout,
    /// Its standard errors.
    Stderr,
}

/// Something that a program printed at once.
///
/// ```no_run
/// use bouvet_host::{LogOptions, LogRecord};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut log = sandbox.logs(LogOptions::default());
/// while let Some(LogRecord { time, stream, data }) = log.next().await {
///     println!("{time:?} {stream:?} {}", String::from_utf8_lossy(&data));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// When it reached the host.
    pub time: SystemTime,
    /// Where it was printed.
    pub stream: LogStream,
    /// What it was.
    pub data: Bytes,
}

/// What of a log is read.
///
/// ```no_run
/// use std::time::{Duration, SystemTime};
///
/// use bouvet_host::LogOptions;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let since = Some(SystemTime::now() - Duration::from_secs(60));
/// let mut log = sandbox.logs(LogOptions { since, follow: true, ..LogOptions::default() });
/// while let Some(record) = log.next().await {
///     print!("{}", String::from_utf8_lossy(&record.data));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Whether to go on with what is printed later, until the program has ended.
    pub follow: bool,
    /// Only so many lines of what is there. `None`: all that is kept.
    pub tail_lines: Option<usize>,
    /// Only what was printed after this.
    pub since: Option<SystemTime>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Each with the bytes that were printed before it.
    records: VecDeque<(u64, LogRecord)>,
    /// Bytes that were printed in all.
    end: u64,
    /// Whether a program may print yet.
    open: bool,
    attached: Vec<Weak<AtomicU64>>,
}

impl Inner {
    /// Bytes that were printed before the first record.
    fn start(&self) -> u64 {
        self.records.front().map_or(self.end, |(at, _)| *at)
    }

    fn push(&mut self, record: LogRecord) {
        let at = self.end;
        self.end += record.data.len() as u64;
        self.records.push_back((at, record));
        while self.end - self.start() > MAX_BYTES as u64 || self.records.len() > MAX_RECORDS {
            self.records.pop_front();
        }
    }

    /// Whether an attached reader is so far behind that the program is to wait for it.
    fn is_too_far_ahead(&mut self) -> bool {
        self.attached.retain(|place| place.strong_count() > 0);
        let places = self.attached.iter().filter_map(Weak::upgrade);
        let Some(slowest) = places.map(|place| place.load(Ordering::Relaxed)).min() else { return false };
        self.end.saturating_sub(slowest) > MAX_BEHIND_BYTES
            || self.records.len() - self.first_after(slowest) > MAX_BEHIND_RECORDS
    }

    /// The record with what was printed after the first `at` bytes.
    fn first_after(&self, at: u64) -> usize {
        self.records.partition_point(|(start, record)| start + record.data.len() as u64 <= at)
    }

    fn begin(&self, options: LogOptions) -> u64 {
        let mut at = self.end;
        let mut lines_left = options.tail_lines.unwrap_or(usize::MAX);
        // A last line that has no end yet is one too.
        let mut last = true;
        for (_, record) in self.records.iter().rev() {
            if lines_left == 0 || options.since.is_some_and(|since| record.time < since) {
                break;
            }
            for byte in record.data.iter().rev() {
                if *byte == b'\n' && !std::mem::take(&mut last) {
                    lines_left -= 1;
                    if lines_left == 0 {
                        break;
                    }
                }
                last = false;
                at -= 1;
            }
        }
        at
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a program may print from now on.
    pub(crate) fn open(&self) {
        self.lock().open = true;
    }

    /// Says that the program has ended.
    pub(crate) fn close(&self) {
        self.lock().open = false;
        self.changed.notify_waiters();
    }

    /// Keeps what was printed. Waits for readers who are attached and far behind, within reason.
    pub(crate) async fn add(&self, stream: LogStream, mut data: Bytes) {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_PIECE_BYTES));
            self.lock().push(LogRecord { time: SystemTime::now(), stream, data: piece });
            self.changed.notify_waiters();
            if tokio::time::timeout(PATIENCE, self.caught_up()).await.is_err() {
                self.lock().attached.clear();
            }
        }
    }

    async fn caught_up(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change goes unnoticed.
            changed.as_mut().enable();
            if !self.lock().is_too_far_ahead() {
                return;
            }
            changed.await;
        }
    }

    /// Reads what `options` says.
    pub(crate) fn read(self: &Arc<Self>, options: LogOptions) -> LogReader {
        let at = self.lock().begin(options);
        LogReader { journal: self.clone(), at, follow: options.follow, place: None }
    }

    /// Reads all that is kept, and all that comes; the program waits for this reader.
    pub(crate) fn attach(self: &Arc<Self>) -> LogReader {
        let mut inner = self.lock();
        let at = inner.start();
        let place = Arc::new(AtomicU64::new(at));
        inner.attached.push(Arc::downgrade(&place));
        LogReader { journal: self.clone(), at, follow: true, place: Some(place) }
    }

    /// All that is kept.
    pub(crate) fn records(&self) -> Vec<LogRecord> {
        self.lock().records.iter().map(|(_, record)| record.clone()).collect()
    }

    /// One that has `records` already.
    pub(crate) fn with(records: Vec<LogRecord>) -> Self {
        let mut inner = Inner::default();
        records.into_iter().for_each(|record| inner.push(record));
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }
}

/// Those of a sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journals {
    /// Of its main program.
    pub(crate) main: Arc<Journal>,
    pub(crate) sidecar: Arc<Journal>,
}

impl Journals {
    /// Says that its programs have ended.
    pub(crate) fn close(&self) {
        self.main.close();
        self.sidecar.close();
    }
}

/// Reads a log.
#[derive(Debug)]
pub struct LogReader {
    journal: Arc<Journal>,
    /// Bytes before what is read next.
    at: u64,
    follow: bool,
    place: Option<Arc<AtomicU64>>,
}

impl LogReader {
    /// What comes next; `None` when there is no more, which whoever follows learns when the program has ended.
    ///
    /// ```no_run
    /// use bouvet_host::LogOptions;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut log = sandbox.logs(LogOptions { follow: true, ..LogOptions::default() });
    /// while let Some(record) = log.next().await {
    ///     if record.data.starts_with(b"listening") {
    ///         break;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Option<LogRecord> {
        let journal = self.journal.clone();
        loop {
            let changed = journal.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change goes unnoticed.
            changed.as_mut().enable();
            match self.look() {
                Some(record) => return Some(record),
                None if !self.follow || !journal.lock().open => return None,
                None => changed.await,
            }
        }
    }

    fn look(&mut self) -> Option<LogRecord> {
        let (end, record) = {
            let inner = self.journal.lock();
            let (at, record) = inner.records.get(inner.first_after(self.at))?;
            let skip = usize::try_from(self.at.saturating_sub(*at)).unwrap_or(0);
            (at + record.data.len() as u64, LogRecord { data: record.data.slice(skip..), ..record.clone() })
        };
        self.moved_to(end);
        Some(record)
    }

    fn moved_to(&mut self, at: u64) {
        self.at = at;
        if let Some(place) = &self.place {
            place.store(at, Ordering::Relaxed);
            self.journal.changed.notify_waiters();
        }
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        // Nobody waits for it any more.
        self.place = None;
        self.journal.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut reader: LogReader) -> String {
        let mut text = Vec::new();
        while let Some(record) = reader.next().await {
            text.extend_from_slice(&record.data);
        }
        String::from_utf8(text).unwrap()
    }

    fn journal() -> Arc<Journal> {
        let journal = Arc::new(Journal::default());
        journal.open();
        journal
    }

    #[tokio::test]
    async fn what_is_kept_is_read_and_what_comes_is_followed() {
        let journal = journal();
        journal.add(LogStream::Stdout, "one\n".into()).await;
        assert_eq!(all(journal.read(LogOptions::default())).await, "one\n");
        let follower = tokio::spawn(all(journal.read(LogOptions { follow: true, ..LogOptions::default() })));
        journal.add(LogStream::Stderr, "two\n".into()).await;
        journal.close();
        assert_eq!(follower.await.unwrap(), "one\ntwo\n");
        assert_eq!(all(Arc::new(Journal::with(journal.records())).attach()).await, "one\ntwo\n");
    }

    #[tokio::test]
    async fn the_last_lines_are_found_wherever_they_were_cut() {
        let journal = journal();
        for piece in ["a\nb", "b\nc\n", "d"] {
            journal.add(LogStream::Stdout, piece.into()).await;
        }
        let tail = |lines| journal.read(LogOptions { tail_lines: Some(lines), ..LogOptions::default() });
        assert_eq!(all(tail(0)).await, "");
        assert_eq!(all(tail(1)).await, "d");
        assert_eq!(all(tail(2)).await, "c\nd");
        assert_eq!(all(tail(3)).await, "bb\nc\nd");
        assert_eq!(all(tail(9)).await, "a\nbb\nc\nd");
        journal.add(LogStream::Stdout, "\n".into()).await;
        assert_eq!(all(tail(1)).await, "d\n");
        let later = SystemTime::now() + Duration::from_secs(9);
        assert_eq!(all(journal.read(LogOptions { since: Some(later), ..LogOptions::default() })).await, "");
    }

    #[tokio::test]
    async fn a_journal_is_bounded() {
        let journal = journal();
        for _ in 0..40 {
            journal.add(LogStream::Stdout, vec![b'x'; MAX_PIECE_BYTES].into()).await;
        }
        assert_eq!(all(journal.read(LogOptions::default())).await.len(), MAX_BYTES);
    }

    #[tokio::test]
    async fn the_program_waits_for_who_is_attached_and_for_nobody_else() {
        let journal = journal();
        let (attached, other) = (journal.attach(), journal.read(LogOptions::default()));
        let writer = journal.clone();
        let printed = MAX_BYTES * 3;
        let mut writing = tokio::spawn(async move {
            writer.add(LogStream::Stdout, vec![b'x'; printed].into()).await;
            writer.close();
        });
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut writing).await;
        assert!(waits.is_err(), "nothing would be left of what it has not read");
        assert_eq!(all(attached).await.len(), printed, "it misses nothing");
        writing.await.unwrap();
        assert!(all(other).await.len() <= MAX_BYTES);
    }

    #[tokio::test]
    async fn who_is_attached_misses_nothing_of_what_is_printed_byte_by_byte() {
        let journal = journal();
        let (attached, writer) = (journal.attach(), journal.clone());
        let printed = MAX_RECORDS * 2;
        let mut writing = tokio::spawn(async move {
            for _ in 0..printed {
                writer.add(LogStream::Stdout, "x".into()).await;
            }
            writer.close();
        });
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut writing).await;
        assert!(waits.is_err(), "nothing would be left of what it has not read");
        assert_eq!(all(attached).await.len(), printed);
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn who_leaves_holds_nobody_up() {
        let journal = journal();
        let attached = journal.attach();
        let writer = journal.clone();
        let writing =
            tokio::spawn(async move { writer.add(LogStream::Stdout, vec![0; MAX_BYTES * 2].into()).await });
        tokio::task::yield_now().await;
        drop(attached);
        tokio::time::timeout(Duration::from_secs(10), writing).await.expect("it waits for nobody").unwrap();
    }
}
