//! Trees of files of a sandbox, as tar streams: also of one that is stopped.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bouvet_wire::v1;
use bytes::Bytes;
use futures_util::Stream;

use super::Sandbox;
use super::owner::{ControlError, Order};
use super::state::{self, Refusal, Request, State};
use crate::files::FileError;
use crate::files::archive::{self, FileStat, PackReader, Unpacked};
use crate::link::Client;

/// Idle time after which the VM that serves files of a stopped sandbox is ended.
const READER_IDLE: Duration = Duration::from_secs(10);
/// Time limit for writing files that were copied into a stopped sandbox to its disk.
const SYNC_DEADLINE: Duration = Duration::from_secs(120);
/// Holders of a lease that nobody uses: its VM's owner, the sandbox, and the task that waits for its end.
const UNUSED: usize = 3;

/// The files of a stopped sandbox, for as long as somebody uses them.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    client: Client,
    /// Whether what is written stays.
    durable: bool,
    uses: Arc<()>,
}

impl Lease {
    pub(crate) fn new(client: Client, durable: bool) -> Self {
        Self { client, durable, uses: Arc::default() }
    }

    /// Waits until nobody has used it for a while.
    pub(crate) async fn idle(self) {
        loop {
            tokio::time::sleep(READER_IDLE).await;
            if Arc::strong_count(&self.uses) <= UNUSED {
                return;
            }
        }
    }

    /// Writes what was copied to the disk.
    pub(crate) async fn sync(&self) -> Result<(), String> {
        if !self.durable {
            return Ok(());
        }
        let mut client = self.client.clone();
        match tokio::time::timeout(SYNC_DEADLINE, client.sync(v1::SyncRequest {})).await {
            Ok(synced) => synced.map(drop).map_err(|status| crate::link::said(&status)),
            Err(_) => Err(format!("no answer within {SYNC_DEADLINE:?}")),
        }
    }
}

impl Sandbox {
    /// States what is at a path, without following a link. Also of a sandbox that is stopped.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let stat = sandbox.stat("/etc/os-release").await?;
    /// println!("{}, leads to {}", stat.kind, stat.target);
    /// # Ok(()) }
    /// ```
    pub async fn stat(&self, path: &str) -> Result<FileStat, FileError> {
        let (client, _lease) = self.files_client().await?;
        let stat = archive::stat(client, path.to_owned()).await;
        self.explained(stat).await
    }

    /// Begins to pack a file or directory into a tar stream, in which it is called `name`; with the name `.`, only what
    /// is in the directory has names. Also of a sandbox that is stopped: its disk is kept until it is started or removed.
    ///
    /// ```no_run
    /// use bouvet_host::PackPart;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut archive = Vec::new();
    /// let mut reader = sandbox.pack("/srv", "srv").await?;
    /// while let Some(part) = reader.next().await? {
    ///     match part {
    ///         PackPart::Data(bytes) => archive.extend_from_slice(&bytes),
    ///         PackPart::Skipped(file) => println!("{} {}", file.path, file.reason),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn pack(&self, path: &str, name: &str) -> Result<PackReader, FileError> {
        let permit = self.transfer()?;
        let (client, lease) = self.files_client().await?;
        let opened = PackReader::open(client, path.to_owned(), name.to_owned()).await;
        Ok(self.explained(opened).await?.holding(permit, lease))
    }

    /// Unpacks a tar stream into the directory `path`: only entries called `name` or below it, if it is not empty. New
    /// files belong to the sandbox's user, or with `keep_owners` to whom the archive names. Also into a persistent
    /// sandbox that is stopped.
    ///
    /// ```no_run
    /// use tokio_util::io::ReaderStream;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let archive = ReaderStream::new(tokio::fs::File::open("site.tar").await?);
    /// let unpacked = sandbox.unpack("/srv", "", true, archive).await?;
    /// println!("{} entries, {} left out", unpacked.entries, unpacked.skipped_count);
    /// # Ok(()) }
    /// ```
    pub async fn unpack(
        &self,
        path: &str,
        name: &str,
        keep_owners: bool,
        content: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<Unpacked, FileError> {
        if matches!(self.state(), State::Stopped(_)) && !self.0.config.persistent {
            let lost = "the sandbox is stopped, and its next start would discard what is copied into it";
            return Err(FileError::Failed(lost.into()));
        }
        let _permit = self.transfer()?;
        let (client, _lease) = self.files_client().await?;
        let owner = match (keep_owners, self.0.user.as_str()) {
            (true, _) => "",
            (false, "") => "0",
            (false, user) => user,
        };
        let (path, name, owner) = (path.to_owned(), name.to_owned(), owner.to_owned());
        let unpacked = archive::unpack(client, v1::UnpackStart { path, name, owner }, content).await;
        self.explained(unpacked).await
    }

    /// The client that serves its files.
    async fn files_client(&self) -> Result<(Client, Option<Lease>), FileError> {
        let refusal = match state::legal(&self.state(), Request::Use) {
            Ok(()) => return Ok((self.client()?, None)),
            Err(refusal) => refusal,
        };
        match &refusal {
            Refusal::Stopped(_) => {}
            Refusal::Failed(_) if self.0.config.persistent => {}
            _ => return Err(refusal.into()),
        }
        let lease = self.reader().clone();
        if let Some(lease) = lease {
            return Ok((lease.client.clone(), Some(lease)));
        }
        match self.order(Order::Read).await {
            Ok(()) => {}
            Err(ControlError::Refused(refusal)) => return Err(refusal.into()),
            Err(ControlError::Failed(reason)) => return Err(FileError::Failed(reason)),
        }
        let lease = self.reader().clone().ok_or(refusal)?;
        Ok((lease.client.clone(), Some(lease)))
    }

    fn reader(&self) -> MutexGuard<'_, Option<Lease>> {
        self.0.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what serves its files while it is stopped.
    pub(crate) fn set_reader(&self, lease: Option<Lease>) {
        *self.reader() = lease;
    }
}
