//! Files in a sandbox, by its handle.

use std::io;

use bouvet_wire::limits::MAX_TRANSFERS;
use bouvet_wire::v1;
use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::OwnedSemaphorePermit;

use super::{Sandbox, post_mortem};
use crate::files::transfer::{self, FileReader};
use crate::files::{self, FileContent, FileError, Listing};

impl Sandbox {
    /// Reads at most `limit_bytes` of a file from `offset` on.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let content = sandbox.read("/etc/os-release", 0, 4096).await?;
    /// println!("{} bytes in all: {}", content.file_bytes, String::from_utf8_lossy(&content.bytes));
    /// # Ok(()) }
    /// ```
    pub async fn read(&self, path: &str, offset: u64, limit_bytes: usize) -> Result<FileContent, FileError> {
        let read = files::read(self.client()?, path.to_owned(), offset, limit_bytes).await;
        self.explained(read).await
    }

    /// Writes a file, whole or not at all; or adds to its end with `append`. Returns the bytes written.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.write("/srv/log", "begun\n".into(), false).await?;
    /// let written_bytes = sandbox.write("/srv/log", "done\n".into(), true).await?;
    /// assert_eq!(written_bytes, 5);
    /// # Ok(()) }
    /// ```
    pub async fn write(&self, path: &str, content: Bytes, append: bool) -> Result<u64, FileError> {
        let written = files::write(self.client()?, path.to_owned(), content, append).await;
        self.explained(written).await
    }

    /// Begins to read a file of any size from `offset` on.
    ///
    /// ```no_run
    /// use tokio::io::AsyncWriteExt as _;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut copy = tokio::fs::File::create("model.bin").await?;
    /// let mut reader = sandbox.read_stream("/srv/model.bin", 0).await?;
    /// while let Some(part) = reader.next().await? {
    ///     copy.write_all(&part).await?;
    /// }
    /// copy.flush().await?;
    /// # Ok(()) }
    /// ```
    pub async fn read_stream(&self, path: &str, offset: u64) -> Result<FileReader, FileError> {
        let permit = self.transfer()?;
        let opened = FileReader::open(self.client()?, path.to_owned(), offset, u64::MAX).await;
        Ok(self.explained(opened).await?.holding(permit))
    }

    /// Like [`Sandbox::write`], for content of any size, which must not pause for more than a minute. If it fails,
    /// or this is dropped, nothing was written, but for what was appended until then.
    ///
    /// ```no_run
    /// use tokio_util::io::ReaderStream;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let data = tokio::fs::File::open("data.csv").await?;
    /// let written_bytes = sandbox.write_stream("/srv/data.csv", ReaderStream::new(data), false).await?;
    /// println!("{written_bytes} bytes");
    /// # Ok(()) }
    /// ```
    pub async fn write_stream(
        &self,
        path: &str,
        content: impl Stream<Item = io::Result<Bytes>> + Send,
        append: bool,
    ) -> Result<u64, FileError> {
        self.write_as(v1::WriteStart { path: path.to_owned(), mode: 0, append }, content).await
    }

    /// Like [`Sandbox::write_stream`], and gives the file these permission bits.
    ///
    /// ```no_run
    /// use futures_util::stream;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let script = stream::iter([Ok("#!/bin/sh\necho hello\n".into())]);
    /// sandbox.write_file("/usr/local/bin/hello", script, 0o755).await?;
    /// # Ok(()) }
    /// ```
    pub async fn write_file(
        &self,
        path: &str,
        content: impl Stream<Item = io::Result<Bytes>> + Send,
        mode: u32,
    ) -> Result<u64, FileError> {
        self.write_as(v1::WriteStart { path: path.to_owned(), mode, append: false }, content).await
    }

    async fn write_as(
        &self,
        start: v1::WriteStart,
        content: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<u64, FileError> {
        let _permit = self.transfer()?;
        let written = transfer::write(self.client()?, start, content).await;
        self.explained(written).await
    }

    pub(super) fn transfer(&self) -> Result<OwnedSemaphorePermit, FileError> {
        let permit = self.0.transfers.clone().try_acquire_owned();
        permit.map_err(|_| FileError::TooMany(MAX_TRANSFERS))
    }

    /// Lists a directory.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// for entry in sandbox.list("/srv").await?.entries {
    ///     println!("{} {} {} bytes", entry.kind, entry.name, entry.size);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn list(&self, path: &str) -> Result<Listing, FileError> {
        let listing = files::list(self.client()?, path.to_owned()).await;
        self.explained(listing).await
    }

    pub(super) async fn explained<T>(&self, result: Result<T, FileError>) -> Result<T, FileError> {
        match result {
            Err(FileError::Link(fact)) => {
                Err(post_mortem::reason(self.watch()).await.map_or(FileError::Link(fact), FileError::Refused))
            }
            result => result,
        }
    }
}
