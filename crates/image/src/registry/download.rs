//! A blob from a registry to a file: verified as it comes, and continued where a connection broke.

use std::io;

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::{BLOB_DEADLINE, FIRST_BACKOFF, MAX_RESUMES, RegistryError, Session};
use crate::digest::Digest;
use crate::manifest::Descriptor;

/// One blob on its way.
pub(super) struct Download<'a> {
    session: &'a Session<'a>,
    blob: &'a Descriptor,
    into: tokio::fs::File,
    hasher: Sha256,
    done: u64,
    progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl<'a> Download<'a> {
    pub(super) fn new(
        session: &'a Session<'a>,
        blob: &'a Descriptor,
        into: std::fs::File,
        progress: &'a (dyn Fn(u64) + Send + Sync),
    ) -> Self {
        let into = tokio::fs::File::from_std(into);
        Self { session, blob, into, hasher: Sha256::new(), done: 0, progress }
    }

    pub(super) async fn run(&mut self) -> Result<(), RegistryError> {
        let mut fruitless = 0;
        for _ in 0..MAX_RESUMES {
            let before = self.done;
            let error = match self.attempt().await {
                Ok(()) => return self.finish().await,
                Err(error) => error,
            };
            fruitless = if self.done > before { 0 } else { fruitless + 1 };
            let Some(wait) = error.transient().filter(|_| fruitless < error.max_attempts()) else {
                return Err(error);
            };
            tokio::time::sleep(wait.max(FIRST_BACKOFF * 2_u32.pow(fruitless))).await;
        }
        Err(RegistryError::Deadline { registry: self.session.registry(), deadline: BLOB_DEADLINE })
    }

    async fn attempt(&mut self) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", self.blob.digest);
        let mut response = self.session.get(&path, "*/*", self.done).await?;
        if self.done > 0 && !continues(&response, self.done) {
            self.restart().await.map_err(|error| self.unwritten(error))?;
        }
        while let Some(chunk) = response.chunk().await.map_err(|error| self.session.broken(error))? {
            self.done += chunk.len() as u64;
            if self.done > self.blob.size {
                return Err(self.wrong(format!("more than {} bytes", self.blob.size)));
            }
            self.hasher.update(&chunk);
            self.into.write_all(&chunk).await.map_err(|error| self.unwritten(error))?;
            (self.progress)(self.done);
        }
        if self.done < self.blob.size {
            return Err(self.wrong(format!("{} of {} bytes", self.done, self.blob.size)));
        }
        Ok(())
    }

    /// From the start: the registry sends no parts.
    async fn restart(&mut self) -> io::Result<()> {
        self.into.flush().await?;
        self.into.set_len(0).await?;
        self.into.rewind().await?;
        self.hasher = Sha256::new();
        self.done = 0;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), RegistryError> {
        self.into.flush().await.map_err(|error| self.unwritten(error))?;
        let found = Digest::from_hasher(std::mem::take(&mut self.hasher));
        if found == self.blob.digest { Ok(()) } else { Err(self.wrong(found.to_string())) }
    }

    fn wrong(&self, found: String) -> RegistryError {
        let expected = self.blob.digest.clone();
        RegistryError::Digest { registry: self.session.registry(), expected, found }
    }

    fn unwritten(&self, source: io::Error) -> RegistryError {
        RegistryError::Store { registry: self.session.registry(), source }
    }
}

/// Whether the response is the rest of a blob from byte `from` on.
fn continues(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}
