//! Trees of files as tar streams: stated, packed and unpacked by the guest.

use std::io;

use bouvet_wire::limits::{MAX_PATH_BYTES, MAX_SKIPPED_NAMES};
use bouvet_wire::v1::{self, UnpackInput, pack_output, unpack_input::Input};
use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::transfer::{Fed, WAITING_CHUNKS, feed_chunks};
use super::{FileError, check_path, within_deadline};
use crate::link::Client;
use crate::sandbox::archive::Lease;

/// The file at a path of a sandbox.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let stat = sandbox.stat("/bin/sh").await?;
/// if stat.kind == "symlink" {
///     println!("{} leads to a {}", stat.link_target, stat.target_kind.unwrap_or("nowhere"));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    /// `file`, `directory`, `symlink` or `other`: of the entry itself.
    pub kind: &'static str,
    /// The same of what a link leads to at last; `None`: nothing.
    pub target_kind: Option<&'static str>,
    /// Path of that, without links; empty: nothing.
    pub target: String,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When the content changed, in seconds since 1970.
    pub modified_unix_s: i64,
    /// Where a link points to, as the link has it; empty for others.
    pub link_target: String,
}

/// A file that was left out of an archive.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let archive = futures_util::stream::iter([Ok(std::fs::read("site.tar")?.into())]);
/// for file in sandbox.unpack("/srv", "", true, archive).await?.skipped {
///     println!("{} {}", file.path, file.reason);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedFile {
    /// Path, as the guest has it. May have any characters.
    pub path: String,
    /// The reason, as a sentence's end: `is a socket`.
    pub reason: String,
}

impl From<v1::SkippedFile> for SkippedFile {
    fn from(file: v1::SkippedFile) -> Self {
        let clip = |text: String| text.chars().take(MAX_PATH_BYTES / 4).collect();
        Self { path: clip(file.path), reason: clip(file.reason) }
    }
}

/// Result of unpacking an archive.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let archive = futures_util::stream::iter([Ok(std::fs::read("site.tar")?.into())]);
/// println!("{} entries", sandbox.unpack("/srv", "", true, archive).await?.entries);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// The first of those that were left out.
    pub skipped: Vec<SkippedFile>,
    /// Number of files that were left out.
    pub skipped_count: u64,
}

/// A part of an archive that is being packed.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut reader = sandbox.pack("/srv", "srv").await?;
/// if let Some(bouvet_host::PackPart::Data(bytes)) = reader.next().await? {
///     println!("{} bytes", bytes.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackPart {
    /// Bytes of the stream.
    Data(Bytes),
    /// A file that was left out.
    Skipped(SkippedFile),
}

/// An archive that is being packed. Dropping it ends that.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut reader = sandbox.pack("/srv", ".").await?;
/// while reader.next().await?.is_some() {}
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PackReader {
    outputs: Streaming<v1::PackOutput>,
    /// Its place among the transfers of its sandbox, and its hold on a stopped one, until its end.
    held: Option<(OwnedSemaphorePermit, Option<Lease>)>,
}

impl PackReader {
    pub(crate) async fn open(mut client: Client, path: String, name: String) -> Result<Self, FileError> {
        check_path(&path)?;
        check_path(&name)?;
        let request = v1::PackRequest { path, name };
        let outputs = within_deadline(async { Ok(client.pack(request).await?.into_inner()) }).await?;
        Ok(Self { outputs, held: None })
    }

    pub(crate) fn holding(mut self, permit: OwnedSemaphorePermit, lease: Option<Lease>) -> Self {
        self.held = Some((permit, lease));
        self
    }

    /// The next part; `None` at the end. Waits at most 60 s for it.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut reader = sandbox.pack("/srv", "srv").await?;
    /// println!("{:?}", reader.next().await?);
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Result<Option<PackPart>, FileError> {
        let output = within_deadline(async { Ok(self.outputs.message().await?) }).await?;
        match output.map(|output| output.output) {
            None => {
                self.held = None;
                Ok(None)
            }
            // A guest that went on with nothing would hold its reader for good.
            Some(Some(pack_output::Output::Data(data))) if !data.is_empty() => Ok(Some(PackPart::Data(data))),
            Some(Some(pack_output::Output::Skipped(file))) => Ok(Some(PackPart::Skipped(file.into()))),
            Some(_) => Err(FileError::Link("it sent a chunk of nothing".into())),
        }
    }
}

/// States what is at `path`.
pub(crate) async fn stat(mut client: Client, path: String) -> Result<FileStat, FileError> {
    check_path(&path)?;
    within_deadline(async {
        let stat = client.stat(v1::StatRequest { path }).await?.into_inner();
        let target_kind = match stat.target_kind() {
            v1::EntryKind::Unspecified => None,
            kind => Some(super::kind_name(kind)),
        };
        Ok(FileStat {
            kind: super::kind_name(stat.kind()),
            target_kind,
            target: stat.target,
            size: stat.size,
            mode: stat.mode,
            modified_unix_s: stat.modified_unix_s,
            link_target: stat.link_target,
        })
    })
    .await
}

/// Unpacks `content` as `start` says. Nothing may take longer than a minute: neither the next bytes of `content` nor for
/// the guest to take them.
pub(crate) async fn unpack(
    mut client: Client,
    start: v1::UnpackStart,
    content: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<Unpacked, FileError> {
    check_path(&start.path)?;
    let (sender, inputs) = mpsc::channel(WAITING_CHUNKS);
    let call = client.unpack(ReceiverStream::new(inputs));
    let open = sender.clone();
    let wrap = |input| UnpackInput { input: Some(input) };
    let feed = async move {
        let first = within_deadline(async { Ok(sender.send(wrap(Input::Start(start))).await.is_ok()) });
        match first.await? {
            true => feed_chunks(&sender, |data| wrap(Input::Data(data)), content).await,
            false => Ok(Fed::Refused),
        }
    };
    tokio::pin!(call, feed);
    let fed = tokio::select! {
        biased;
        answer = &mut call => Err(answer),
        // When the content fails, the call is dropped while its stream is `open`, and the guest drops the file.
        fed = &mut feed => Ok(fed?),
    };
    drop(open);
    let answer = match fed {
        // An answer before the end of the content says why the guest takes no more; or its archive ended before.
        Err(answer) => answer,
        Ok(_) => within_deadline(async { Ok(call.await) }).await?,
    };
    let reply = answer?.into_inner();
    if reply.skipped.len() > MAX_SKIPPED_NAMES {
        return Err(FileError::Link("it named more files than are allowed".into()));
    }
    let skipped = reply.skipped.into_iter().map(SkippedFile::from).collect();
    Ok(Unpacked { entries: reply.entries, skipped, skipped_count: reply.skipped_count })
}
