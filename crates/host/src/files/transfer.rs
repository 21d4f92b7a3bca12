//! Files of any size, in chunks: no more of one is held than is on its way.

use std::io;

use bouvet_wire::limits::CHUNK_BYTES;
use bouvet_wire::v1::{self, WriteInput, WriteStart, write_input::Input};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{DEADLINE, FileError, check_path, within_deadline};
use crate::boxconfig::in_range;
use crate::link::Client;

/// The largest offset: the length of the largest file that ext4 can have (16 TiB less a block).
const MAX_OFFSET_BYTES: u64 = (1 << 44) - 4096;
/// Chunks that wait to be sent, beside those that the link holds.
pub(super) const WAITING_CHUNKS: usize = 4;

/// A file being read. Dropping it ends that.
///
/// ```no_run
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut reader = sandbox.read_stream("/srv/large", 0).await?;
/// let mut read_bytes = 0;
/// while let Some(part) = reader.next().await? {
///     read_bytes += part.len() as u64;
///     println!("{read_bytes} of {}", reader.file_bytes());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FileReader {
    chunks: Streaming<v1::ReadChunk>,
    /// What came with the size.
    first: Option<Bytes>,
    file_bytes: u64,
    left_bytes: u64,
    /// Its place among the transfers of its sandbox, until its end.
    permit: Option<OwnedSemaphorePermit>,
}

impl FileReader {
    /// Begins to read at most `limit_bytes` from `offset` on.
    pub(crate) async fn open(
        mut client: Client,
        path: String,
        offset: u64,
        limit_bytes: u64,
    ) -> Result<Self, FileError> {
        check_path(&path)?;
        in_range("offset", offset, 0..=MAX_OFFSET_BYTES, "")?;
        let mut chunks = within_deadline(async {
            Ok(client.read(v1::ReadRequest { path, offset, limit_bytes }).await?.into_inner())
        })
        .await?;
        let first = within_deadline(async { Ok(chunks.message().await?) }).await?.unwrap_or_default();
        let (file_bytes, first) = (first.file_bytes, Some(first.data));
        Ok(Self { chunks, first, file_bytes, left_bytes: limit_bytes, permit: None })
    }

    pub(crate) fn holding(mut self, permit: OwnedSemaphorePermit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// The size of the whole file when it was opened, as its guest says.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The next bytes, which are never none; `None` at the end. Waits at most 60 s for them.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut reader = sandbox.read_stream("/srv/large", 0).await?;
    /// let first = reader.next().await?.unwrap_or_default();
    /// println!("{:?}", first.get(..4));
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        // Only the chunk with the size may be empty: a guest that went on with such would hold its reader for good.
        let first = self.first.take().filter(|data| !data.is_empty());
        let data = match first {
            Some(data) => data,
            None => match within_deadline(async { Ok(self.chunks.message().await?) }).await? {
                Some(chunk) if chunk.data.is_empty() => {
                    return Err(FileError::Link("it sent a chunk of nothing".into()));
                }
                Some(chunk) => chunk.data,
                None => {
                    self.permit = None;
                    return Ok(None);
                }
            },
        };
        let left = self.left_bytes.checked_sub(data.len() as u64);
        self.left_bytes = left.ok_or_else(|| FileError::Link("it sent more than was asked for".into()))?;
        Ok(Some(data))
    }
}

/// Writes what `content` yields, whole or not at all; or adds it to the end of the file with `append`, as far as it
/// comes. Nothing may take longer than a minute: neither the next bytes of `content` nor for the guest to take them.
pub(crate) async fn write(
    mut client: Client,
    start: WriteStart,
    content: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<u64, FileError> {
    check_path(&start.path)?;
    let (sender, inputs) = mpsc::channel(WAITING_CHUNKS);
    let call = client.write(ReceiverStream::new(inputs));
    let open = sender.clone();
    let feed = feed(sender, start, content);
    tokio::pin!(call, feed);
    let fed = tokio::select! {
        biased;
        answer = &mut call => return early(answer),
        // When the content fails, the call is dropped while its stream is `open`, and the guest drops the file.
        fed = &mut feed => fed?,
    };
    drop(open);
    let answer = within_deadline(async { Ok(call.await) }).await?;
    if fed == Fed::Refused {
        return early(answer);
    }
    Ok(answer?.into_inner().written_bytes)
}

/// An answer before the end of the content says why the guest takes no more.
fn early<T>(answer: Result<tonic::Response<v1::WriteReply>, Status>) -> Result<T, FileError> {
    answer?;
    Err(FileError::Link("it was done before the content was".into()))
}

/// How the sending of content ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fed {
    All,
    /// The call is over: its answer says why.
    Refused,
}

async fn feed(
    sender: mpsc::Sender<WriteInput>,
    start: WriteStart,
    content: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<Fed, FileError> {
    let send =
        |input| within_deadline(async { Ok(sender.send(WriteInput { input: Some(input) }).await.is_ok()) });
    if !send(Input::Start(start)).await? {
        return Ok(Fed::Refused);
    }
    feed_chunks(&sender, |data| WriteInput { input: Some(Input::Data(data)) }, content).await
}

/// Sends `content` in chunks, each as `wrap` makes a message of it.
pub(super) async fn feed_chunks<M>(
    sender: &mpsc::Sender<M>,
    wrap: impl Fn(Bytes) -> M,
    content: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<Fed, FileError> {
    let send = |data| within_deadline(async { Ok(sender.send(wrap(data)).await.is_ok()) });
    tokio::pin!(content);
    // A message for each packet that a caller sends would cost the guest more than its content.
    let mut waiting = BytesMut::new();
    while let Some(mut part) = next_part(&mut content).await? {
        while let Some(chunk) = take_chunk(&mut waiting, &mut part) {
            if !send(chunk).await? {
                return Ok(Fed::Refused);
            }
        }
    }
    if !waiting.is_empty() && !send(waiting.freeze()).await? {
        return Ok(Fed::Refused);
    }
    Ok(Fed::All)
}

async fn next_part(
    content: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin),
) -> Result<Option<Bytes>, FileError> {
    let part = tokio::time::timeout(DEADLINE, content.next()).await;
    let part = part.map_err(|_| FileError::Content(io::ErrorKind::TimedOut.into()))?;
    part.transpose().map_err(FileError::Content)
}

/// A whole chunk, from what waits and `part`, if there is enough for one; the rest of `part` waits else.
fn take_chunk(waiting: &mut BytesMut, part: &mut Bytes) -> Option<Bytes> {
    if waiting.is_empty() && part.len() >= CHUNK_BYTES {
        return Some(part.split_to(CHUNK_BYTES));
    }
    let missing = CHUNK_BYTES - waiting.len();
    waiting.extend_from_slice(&part.split_to(missing.min(part.len())));
    (waiting.len() == CHUNK_BYTES).then(|| waiting.split().freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_of_any_size_become_whole_chunks(
            sizes in prop::collection::vec(0..3 * CHUNK_BYTES, 0..6),
        ) {
            let content: Vec<u8> = (0..=255).cycle().take(sizes.iter().sum()).collect();
            let (mut rest, mut waiting) = (Bytes::from(content.clone()), BytesMut::new());
            let mut sent = Vec::new();
            for size in sizes {
                let mut part = rest.split_to(size);
                while let Some(chunk) = take_chunk(&mut waiting, &mut part) {
                    prop_assert_eq!(chunk.len(), CHUNK_BYTES);
                    sent.extend_from_slice(&chunk);
                }
                prop_assert!(part.is_empty() && waiting.len() < CHUNK_BYTES);
            }
            sent.extend_from_slice(&waiting);
            prop_assert_eq!(sent, content);
        }
    }
}
