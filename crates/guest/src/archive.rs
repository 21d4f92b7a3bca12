//! Trees of files in and out, as tar streams.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use bouvet_archive::{
    ChunkReader, ChunkWriter, Destination, Links, Owner, PackError, Skipped, Source, UnpackError,
};
use bouvet_wire::limits::{CHUNK_BYTES, MAX_PATH_BYTES, MAX_SKIPPED_NAMES};
use bouvet_wire::v1::{self, pack_output::Output, unpack_input::Input};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::answers::Answers;
use crate::enter;
use crate::files::{Place, resolve, status};

/// Chunks that wait, beside those that the link holds.
const WAITING_CHUNKS: usize = 4;
// Both crates are this one's, and neither depends on the other.
const _: () = assert!(bouvet_archive::format::MAX_ID == bouvet_wire::owner::MAX_ID);
/// Permission bits that files may get: the host's caller owns this sandbox.
const MODE_MASK: u32 = 0o7777;

/// Reports the file at a path.
pub(crate) fn stat(place: &Place, request: &v1::StatRequest) -> Result<v1::StatReply, Status> {
    let path = resolve(place, &request.path)?;
    let about = fs::symlink_metadata(&path).map_err(|error| status(&path, &error))?;
    let target = fs::canonicalize(&path).ok();
    let target_kind = target.as_ref().and_then(|target| fs::symlink_metadata(target).ok());
    let link = about.is_symlink().then(|| fs::read_link(&path).ok()).flatten();
    Ok(v1::StatReply {
        kind: kind(&about).into(),
        target_kind: target_kind.as_ref().map_or(v1::EntryKind::Unspecified, kind).into(),
        target: target.map(|target| target.to_string_lossy().into_owned()).unwrap_or_default(),
        size: about.len(),
        mode: about.mode() & 0o7777,
        modified_unix_s: about.mtime(),
        link_target: link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default(),
    })
}

fn kind(about: &fs::Metadata) -> v1::EntryKind {
    match about.file_type() {
        kind if kind.is_file() => v1::EntryKind::File,
        kind if kind.is_dir() => v1::EntryKind::Directory,
        kind if kind.is_symlink() => v1::EntryKind::Symlink,
        _ => v1::EntryKind::Other,
    }
}

/// Packs a tree into a stream of chunks.
pub(crate) fn pack(place: &Place, request: v1::PackRequest) -> Result<Answers<v1::PackOutput>, Status> {
    let path = resolve(place, &request.path)?;
    fs::symlink_metadata(&path).map_err(|error| status(&path, &error))?;
    let source = Source { path, name: PathBuf::from(request.name) };
    let (answers, stream) = mpsc::channel(WAITING_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let out = ChunkWriter::new(CHUNK_BYTES, |chunk| {
            let output = Some(Output::Data(chunk.into()));
            let sent = answers.blocking_send(Ok(v1::PackOutput { output }));
            sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
        });
        let mut skip = |skipped: Skipped| {
            let output = Some(Output::Skipped(named(skipped)));
            // The caller may have gone, which the next chunk shows.
            answers.blocking_send(Ok(v1::PackOutput { output })).ok();
        };
        if let Err(error) = bouvet_archive::pack(&source, out, &mut skip) {
            answers.blocking_send(Err(pack_status(&error))).ok();
        }
    });
    Ok(ReceiverStream::new(stream))
}

fn named(skipped: Skipped) -> v1::SkippedFile {
    let clip = |text: String| text.chars().take(MAX_PATH_BYTES / 4).collect();
    v1::SkippedFile { path: clip(skipped.path), reason: clip(skipped.reason) }
}

fn pack_status(error: &PackError) -> Status {
    match error {
        PackError::Read(path, error) => status(path, error),
        error => Status::unknown(crate::chain(error)),
    }
}

/// Unpacks the stream that the messages of `input` carry.
pub(crate) async fn unpack(
    place: &Place,
    mut input: Streaming<v1::UnpackInput>,
) -> Result<v1::UnpackReply, Status> {
    let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    let destination = destination(place, &start)?;
    let (chunks, received) = mpsc::channel(WAITING_CHUNKS);
    let unpacking = tokio::task::spawn_blocking(move || unpack_from(received, &destination));
    // When unpacking ends early, `chunks` is closed and the rest need not come.
    let fed = feed(&mut input, &chunks).await;
    if let Err(status) = fed {
        // The stream broke off: that is not the archive's end.
        chunks.send(Err(io::ErrorKind::ConnectionAborted.into())).await.ok();
        drop(chunks);
        drop(unpacking.await);
        return Err(status);
    }
    drop(chunks);
    unpacking.await.map_err(|error| Status::internal(error.to_string()))?
}

async fn feed(
    input: &mut Streaming<v1::UnpackInput>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Status> {
    while let Some(message) = input.message().await? {
        let Some(Input::Data(data)) = message.input else {
            return Err(Status::invalid_argument("only the first message may be `start`"));
        };
        if chunks.send(Ok(data)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn destination(place: &Place, start: &v1::UnpackStart) -> Result<Destination, Status> {
    let path = resolve(place, &start.path)?;
    let about = fs::metadata(&path).map_err(|error| status(&path, &error))?;
    if !about.is_dir() {
        return Err(Status::invalid_argument(format!("`{}` is not a directory", path.display())));
    }
    let owner = match start.owner.as_str() {
        "" => Owner::Archive,
        user => {
            let (uid, gid) = enter::owner(user).map_err(Status::invalid_argument)?;
            Owner::Ids(uid, gid)
        }
    };
    let name = (!start.name.is_empty()).then(|| PathBuf::from(&start.name));
    Ok(Destination { path, name, owner, links: Links::Follow, mode_mask: MODE_MASK })
}

fn unpack_from(
    mut chunks: mpsc::Receiver<io::Result<Bytes>>,
    destination: &Destination,
) -> Result<v1::UnpackReply, Status> {
    let mut reply = v1::UnpackReply::default();
    let stream = ChunkReader::new(|| chunks.blocking_recv());
    let unpacked = bouvet_archive::unpack(stream, destination, &mut |skipped| {
        reply.skipped_count += 1;
        if reply.skipped.len() < MAX_SKIPPED_NAMES {
            reply.skipped.push(named(skipped));
        }
    });
    reply.entries = unpacked.map_err(|error| match error {
        UnpackError::Write(path, error) => status(&path, &error),
        error => Status::invalid_argument(crate::chain(&error)),
    })?;
    Ok(reply)
}
