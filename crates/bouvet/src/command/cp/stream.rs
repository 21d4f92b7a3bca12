//! Streams between the link, which is asynchronous, and archives, which are read and written by threads.

use std::io::{self, Read, Write};

use bouvet_archive::{ChunkReader, ChunkWriter};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Chunks that wait between the two.
pub(super) const WAITING_CHUNKS: usize = 8;
/// Bytes of one chunk.
pub(super) const CHUNK_BYTES: usize = 128 * 1024;

/// Reads the chunks that are received.
pub(super) fn reader(mut chunks: mpsc::Receiver<io::Result<Bytes>>) -> impl Read {
    ChunkReader::new(move || chunks.blocking_recv())
}

/// Sends what is written as chunks.
pub(super) fn writer(chunks: mpsc::Sender<io::Result<Bytes>>) -> impl Write {
    ChunkWriter::new(CHUNK_BYTES, move |chunk| {
        chunks.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    })
}
