//! Streams of chunks as readers and writers: archives are read and written by threads, and sent by asynchronous tasks.

use std::io::{self, Read, Write};

/// Sends what is written in chunks of one size; the last one, at [`Write::flush`], may be smaller.
#[derive(Debug)]
pub struct ChunkWriter<F> {
    chunk: Vec<u8>,
    chunk_bytes: usize,
    send: F,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> ChunkWriter<F> {
    /// Chunks of `chunk_bytes`, which must not be 0, go to `send`.
    pub fn new(chunk_bytes: usize, send: F) -> Self {
        Self { chunk: Vec::new(), chunk_bytes, send }
    }
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Write for ChunkWriter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.reserve_exact(self.chunk_bytes - self.chunk.len());
        let length = bytes.len().min(self.chunk_bytes - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..length]);
        if self.chunk.len() == self.chunk_bytes {
            (self.send)(std::mem::take(&mut self.chunk))?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { (self.send)(std::mem::take(&mut self.chunk)) }
    }
}

/// Reads the chunks that `next` returns, to the first `None`.
#[derive(Debug)]
pub struct ChunkReader<C, F> {
    chunk: Option<C>,
    at: usize,
    next: F,
}

impl<C: AsRef<[u8]>, F: FnMut() -> Option<io::Result<C>>> ChunkReader<C, F> {
    /// `next` may wait.
    pub fn new(next: F) -> Self {
        Self { chunk: None, at: 0, next }
    }
}

impl<C: AsRef<[u8]>, F: FnMut() -> Option<io::Result<C>>> Read for ChunkReader<C, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk.as_ref()[self.at..]);
            if !left.is_empty() || buffer.is_empty() {
                let length = buffer.len().min(left.len());
                buffer[..length].copy_from_slice(&left[..length]);
                self.at += length;
                return Ok(length);
            }
            // The chunk that was read goes before the next one is waited for.
            (self.chunk, self.at) = (None, 0);
            match (self.next)() {
                Some(chunk) => self.chunk = Some(chunk?),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_cut_into_chunks() {
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        let mut writer = ChunkWriter::new(4, |chunk| {
            chunks.push(chunk);
            Ok(())
        });
        for part in ["a", "bcdefgh", "ij", ""] {
            writer.write_all(part.as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        writer.flush().unwrap();
        assert_eq!(chunks, [b"abcd".to_vec(), b"efgh".to_vec(), b"ij".to_vec()]);
        let mut closed = ChunkWriter::new(2, |_| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(closed.write_all(b"abc").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn chunks_are_read_to_their_end_or_error() {
        let mut chunks = vec!["ab", "", "cde"].into_iter();
        let mut read = String::new();
        ChunkReader::new(|| chunks.next().map(Ok)).read_to_string(&mut read).unwrap();
        assert_eq!(read, "abcde");
        let mut chunks = [Ok("ab"), Err(io::ErrorKind::ConnectionAborted.into())].into_iter();
        let error = ChunkReader::new(|| chunks.next()).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
