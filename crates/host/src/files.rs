//! Files of a sandbox, as its client sees them.

pub(crate) mod archive;
pub(crate) mod transfer;

use std::io;
use std::time::Duration;

use bouvet_wire::limits::{MAX_LIST_ENTRIES, MAX_PATH_BYTES};
use bouvet_wire::v1;
use bytes::Bytes;
use tonic::{Code, Status};

use self::transfer::FileReader;
use crate::boxconfig::InvalidConfig;
use crate::link::Client;
use crate::sandbox::state::Refusal;

/// Content of one read or write: the published limit of 10 MB.
///
/// ```no_run
/// use bouvet_host::MAX_CONTENT_BYTES;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let content = std::fs::read("model.bin")?;
/// for (number, part) in content.chunks(MAX_CONTENT_BYTES).enumerate() {
///     sandbox.write("/srv/model.bin", part.to_vec().into(), number > 0).await?;
/// }
/// # Ok(()) }
/// ```
pub const MAX_CONTENT_BYTES: usize = 10 * 1024 * 1024;
/// How long one file operation may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a file operation failed.
///
/// ```no_run
/// use bouvet_host::FileError;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.read("settings.json", 0, 65_536).await {
///     Ok(content) => println!("{} bytes", content.bytes.len()),
///     Err(FileError::NotFound(_)) => sandbox.write("settings.json", "{}".into(), false).await.map(drop)?,
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The sandbox cannot take it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It asks for what cannot be had.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// There is nothing at this path.
    #[error("{0}")]
    NotFound(String),
    /// The path names something of another kind.
    #[error("{0}")]
    WrongKind(String),
    /// The sandbox's disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// The sandbox's system refused it.
    #[error("{0}")]
    Failed(String),
    /// There are too many transfers already.
    #[error("{0} transfers of files are under way in the sandbox, which is the limit")]
    TooMany(usize),
    /// What was to be written could not be had, or did not come in time.
    #[error("could not read the content to write")]
    Content(#[source] io::Error),
    /// The guest did not answer.
    #[error("no answer from the sandbox for {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline,
    /// The link broke, or the guest broke its rules.
    #[error("the sandbox failed: {0}")]
    Link(String),
}

impl From<Status> for FileError {
    fn from(status: Status) -> Self {
        // With a cause it comes from our end of the link, not from the guest.
        if std::error::Error::source(&status).is_some() {
            return Self::Link(crate::link::said(&status));
        }
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound(text),
            Code::InvalidArgument => Self::WrongKind(text),
            Code::ResourceExhausted => Self::DiskFull(text),
            Code::PermissionDenied | Code::Unknown => Self::Failed(text),
            code => Self::Link(format!("{code}: {text}")),
        }
    }
}

/// A part of a file.
///
/// ```no_run
/// use bouvet_host::FileContent;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let FileContent { bytes, file_bytes } = sandbox.read("/var/log/dpkg.log", 0, 1024).await?;
/// println!("{} of {file_bytes} bytes", bytes.len());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// The bytes from the asked offset on.
    pub bytes: Vec<u8>,
    /// The size of the whole file.
    pub file_bytes: u64,
}

/// A directory's entries.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let listing = sandbox.list("/usr/bin").await?;
/// println!("{}{} entries", if listing.truncated { "more than " } else { "" }, listing.entries.len());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Sorted by name.
    pub entries: Vec<ListEntry>,
    /// Whether there are more than fit.
    pub truncated: bool,
}

/// One entry of a directory.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let entries = sandbox.list("/srv").await?.entries;
/// for entry in entries.iter().filter(|entry| !entry.is_dir) {
///     println!("{:o} {:>10} {}", entry.mode, entry.size, entry.name);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Its name, without the directory.
    pub name: String,
    /// `file`, `directory`, `symlink` or `other`: of the entry itself.
    pub kind: &'static str,
    /// Whether it is a directory, or a link to one.
    pub is_dir: bool,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// When its content changed, in seconds since 1970.
    pub modified_unix_s: i64,
    /// Where a link points to; empty for others.
    pub link_target: String,
}

async fn within_deadline<T>(call: impl Future<Output = Result<T, FileError>>) -> Result<T, FileError> {
    tokio::time::timeout(DEADLINE, call).await.unwrap_or(Err(FileError::Deadline))
}

fn check_path(path: &str) -> Result<(), FileError> {
    let allowed = format!("1 to {MAX_PATH_BYTES} bytes without NUL are allowed");
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains('\0') {
        let value = format!("{} bytes long", path.len());
        return Err(InvalidConfig { field: "path", value, allowed }.into());
    }
    Ok(())
}

/// Reads at most `limit_bytes` from `offset` on; no more than [`MAX_CONTENT_BYTES`].
pub(crate) async fn read(
    client: Client,
    path: String,
    offset: u64,
    limit_bytes: usize,
) -> Result<FileContent, FileError> {
    let limit = limit_bytes.min(MAX_CONTENT_BYTES);
    within_deadline(async {
        let mut reader = FileReader::open(client, path, offset, limit as u64).await?;
        let mut content = FileContent { bytes: Vec::new(), file_bytes: reader.file_bytes() };
        while let Some(bytes) = reader.next().await? {
            content.bytes.extend_from_slice(&bytes);
        }
        Ok(content)
    })
    .await
}

/// Writes `content`, whole or not at all; or adds it to the end of the file with `append`.
pub(crate) async fn write(
    client: Client,
    path: String,
    content: Bytes,
    append: bool,
) -> Result<u64, FileError> {
    if content.len() > MAX_CONTENT_BYTES {
        let value = format!("{} bytes long", content.len());
        let allowed = format!("{MAX_CONTENT_BYTES} bytes are allowed in one call");
        return Err(InvalidConfig { field: "content", value, allowed }.into());
    }
    let content = futures_util::stream::iter([Ok(content)]);
    within_deadline(transfer::write(client, v1::WriteStart { path, mode: 0, append }, content)).await
}

/// Lists a directory.
pub(crate) async fn list(mut client: Client, path: String) -> Result<Listing, FileError> {
    check_path(&path)?;
    within_deadline(async {
        let request = v1::ListRequest { path, limit_entries: MAX_LIST_ENTRIES };
        let reply = client.list(request).await?.into_inner();
        if reply.entries.len() > MAX_LIST_ENTRIES as usize {
            return Err(FileError::Link("it listed more than was asked for".into()));
        }
        let truncated = reply.truncated;
        Ok(Listing { entries: reply.entries.into_iter().map(ListEntry::from).collect(), truncated })
    })
    .await
}

fn kind_name(kind: v1::EntryKind) -> &'static str {
    match kind {
        v1::EntryKind::File => "file",
        v1::EntryKind::Directory => "directory",
        v1::EntryKind::Symlink => "symlink",
        v1::EntryKind::Other | v1::EntryKind::Unspecified => "other",
    }
}

impl From<v1::ListEntry> for ListEntry {
    fn from(entry: v1::ListEntry) -> Self {
        let kind = kind_name(entry.kind());
        Self {
            name: entry.name,
            kind,
            is_dir: entry.is_dir,
            size: entry.size,
            mode: entry.mode,
            modified_unix_s: entry.modified_unix_s,
            link_target: entry.link_target,
        }
    }
}
