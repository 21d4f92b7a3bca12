//! Trees of files of a sandbox, as tar streams: also of one that is stopped.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bouvet_wire::v1;
use bytes::Bytes;
use futures_util::Stream;

use super::Sandbox;
use super::order::{ControlError, Order};
use super::state::{self, Refusal, Request};
use crate::files::FileError;
use crate::files::archive::{self, FileStat, PackReader, Unpacked};
use crate::link::Client;

/// Idle time after which the VM that serves the files of a stopped sandbox ends.
const FILES_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline for writing what was copied into a stopped sandbox to its disk.
const SYNC_DEADLINE: Duration = Duration::from_secs(120);

/// The VM that serves the files of a stopped sandbox, as clients reach it.
#[derive(Debug)]
pub(crate) struct Files {
    client: Client,
    /// Held by each lease.
    uses: Arc<()>,
}

impl Files {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, uses: Arc::default() }
    }

    fn lease(&self) -> Lease {
        Lease { client: self.client.clone(), _use: self.uses.clone() }
    }

    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.uses) == 1
    }
}

/// The right to use the files of a stopped sandbox. Its VM lives as long, unless the sandbox is started or destroyed.
#[derive(Debug)]
pub(crate) struct Lease {
    client: Client,
    _use: Arc<()>,
}

impl Lease {
    /// Waits until what was copied is on the disk.
    async fn sync(&self) -> Result<(), FileError> {
        let mut client = self.client.clone();
        let reason = match tokio::time::timeout(SYNC_DEADLINE, client.sync(v1::SyncRequest {})).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => crate::link::said(&status),
            Err(_) => format!("no answer within {} s", SYNC_DEADLINE.as_secs()),
        };
        Err(FileError::Failed(format!("the copy may not be on the sandbox's disk: {reason}")))
    }
}

/// What files are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
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
        let (client, _lease) = self.files_client(Use::Read).await?;
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
        let (client, lease) = self.files_client(Use::Read).await?;
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
        let _permit = self.transfer()?;
        let (client, lease) = self.files_client(Use::Write).await?;
        let owner = match (keep_owners, self.0.user.as_str()) {
            (true, _) => "",
            (false, "") => "0",
            (false, user) => user,
        };
        let (path, name, owner) = (path.to_owned(), name.to_owned(), owner.to_owned());
        let unpacked = archive::unpack(client, v1::UnpackStart { path, name, owner }, content).await;
        let unpacked = self.explained(unpacked).await?;
        if let Some(lease) = lease {
            // Its VM ends without another sync.
            lease.sync().await?;
        }
        Ok(unpacked)
    }

    /// Client of the guest that serves its files; with a lease if the sandbox is stopped.
    async fn files_client(&self, wanted: Use) -> Result<(Client, Option<Lease>), FileError> {
        let refusal = match state::legal(&self.state(), Request::Use) {
            Ok(()) => return Ok((self.client()?, None)),
            Err(refusal) => refusal,
        };
        match &refusal {
            Refusal::Stopped(_) if wanted == Use::Write && !self.0.config.persistent => {
                let lost = "the sandbox is stopped, and its next start would discard what is copied into it";
                return Err(FileError::Failed(lost.into()));
            }
            Refusal::Stopped(_) => {}
            Refusal::Failed(_) if self.0.config.persistent => {}
            _ => return Err(refusal.into()),
        }
        let lease = self.lease();
        if let Some(lease) = lease {
            return Ok((lease.client.clone(), Some(lease)));
        }
        match self.order(Order::Read).await.map_err(ControlError::from) {
            Ok(()) => {}
            Err(ControlError::Refused(refusal)) => return Err(refusal.into()),
            Err(ControlError::Failed(reason)) => return Err(FileError::Failed(reason)),
        }
        let lease = self.lease().ok_or(refusal)?;
        Ok((lease.client.clone(), Some(lease)))
    }

    fn files(&self) -> MutexGuard<'_, Option<Files>> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> Option<Lease> {
        self.files().as_ref().map(Files::lease)
    }

    /// States what serves its files while it is stopped.
    pub(crate) fn set_files(&self, files: Option<Files>) {
        *self.files() = files;
    }

    /// Waits until its files were not in use for a while.
    pub(crate) async fn files_idle(&self) {
        loop {
            tokio::time::sleep(FILES_IDLE_TIMEOUT).await;
            if self.files().as_ref().is_none_or(Files::is_unused) {
                return;
            }
        }
    }

    /// Ends the service of its files unless they are in use. Afterwards no lease exists, and none can be had.
    pub(crate) fn retire_files(&self) -> bool {
        let mut files = self.files();
        let is_unused = files.as_ref().is_none_or(Files::is_unused);
        if is_unused {
            *files = None;
        }
        is_unused
    }
}
