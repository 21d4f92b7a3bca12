//! Volumes: directories and files of the host in a sandbox, on every engine alike.
//!
//! ```text
//! a program ─▶ the guest's kernel ─▶ /dev/fuse ─▶ the guest ══ link ══▶ pump ─▶ threads of the volume ─▶ files
//! ```
//!
//! The guest's kernel asks in the FUSE protocol, the guest carries what it asks unread, and threads of this process
//! answer: [`protocol`] takes requests apart, [`server`] answers them, [`tree`] and [`nodes`] are the files,
//! [`owners`] says whose they are, [`confine`] what is taken from the threads. The server is our own: a guest's
//! bytes meet no `unsafe`, and it knows no more of the protocol than it grants.
//!
//! **The guest is hostile**, its kernel included. What holds whatever it sends:
//! - It names a file by one name in a directory that it has looked up, and no such name leads up or elsewhere. No
//!   symbolic link is followed on the host: a guest resolves its links itself, in itself.
//! - Only regular files and directories are opened; devices, pipes and sockets are neither opened nor made.
//! - No file gets a set-user-id or set-group-id bit. Of extended attributes there are `user.*` alone.
//! - A read-only volume is one here, whatever the guest mounts; and for the threads, landlock makes it one.
//! - Nodes, open files, sizes of messages and requests under way are bounded.
//!
//! **Consistency**: what a guest writes is in the host's file when the write returns; what changes on the host is seen
//! in the guest within a second, and at once by who opens the file anew. Locks hold within a sandbox.

mod answer;
mod budget;
mod confine;
mod nodes;
mod owners;
mod protocol;
mod server;
mod spec;
mod tree;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bouvet_wire::v1::{self, MountInput, mount_input::Input, mount_output::Output};
use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{debug, warn};

pub use self::confine::ConfineError;
use self::server::Server;
pub use self::spec::VolumeSpec;
use self::tree::Tree;
use crate::boxconfig::InvalidConfig;
use crate::link::Client;
use crate::sandbox::state::Refusal;

/// How long a guest may take to mount one.
const DEADLINE: Duration = Duration::from_secs(60);
/// Threads of a volume: one that waits for a disk holds up no other request.
const THREADS: usize = 2;
/// Requests that wait for a thread, and answers for the link, of one volume.
const WAITING: usize = 8;

/// Why a sandbox could not have a volume.
///
/// ```no_run
/// use bouvet_host::{VolumeError, VolumeSpec};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// match sandbox.mount(&[VolumeSpec::parse("/home/me/project:/workspace")?]).await {
///     Ok(volumes) => drop(volumes),
///     Err(VolumeError::Invalid(error)) => println!("{} {}", error.value, error.allowed),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It asks for what cannot be had.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// The sandbox cannot take it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What is to be shown cannot be opened.
    #[error("could not open the volume `{0}`")]
    Open(PathBuf, #[source] io::Error),
    /// Its threads could not be started.
    #[error("could not start the threads of the volume `{0}`")]
    Thread(PathBuf, #[source] io::Error),
    /// Its threads could not be confined.
    #[error("could not confine the threads of the volume `{0}`")]
    Confine(PathBuf, #[source] ConfineError),
    /// The sandbox's system refused it.
    #[error("{0}")]
    Failed(String),
    /// The guest did not answer.
    #[error("the sandbox did not mount its volume within {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline,
    /// The link broke, or the guest broke its rules.
    #[error("the sandbox failed: {0}")]
    Link(String),
}

impl From<Status> for VolumeError {
    fn from(status: Status) -> Self {
        // With a cause it comes from our end of the link, not from the guest.
        if std::error::Error::source(&status).is_some() {
            return Self::Link(crate::link::said(&status));
        }
        match status.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted => {
                Self::Failed(status.message().to_owned())
            }
            code => Self::Link(format!("{code}: {}", status.message())),
        }
    }
}

/// The volumes of one sandbox. Dropping this ends them: they are unmounted, and what programs in the sandbox still have
/// open of them fails.
///
/// ```no_run
/// use bouvet_host::VolumeSpec;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let specs = ["/home/me/data:/data:ro", "/tmp/results:/results"].map(VolumeSpec::parse);
/// let volumes = sandbox.mount(&specs.into_iter().collect::<Result<Vec<_>, _>>()?).await?;
/// // … what works with them …
/// drop(volumes);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Volumes {
    _volumes: Vec<Volume>,
}

impl Volumes {
    /// Mounts all of `specs`, or none.
    pub(crate) async fn attach(client: Client, specs: &[VolumeSpec]) -> Result<Self, VolumeError> {
        VolumeSpec::validate_all(specs)?;
        let mut specs: Vec<_> = specs.iter().collect();
        // One may lie in another, which must be there first.
        specs.sort_by_key(|spec| &spec.guest);
        let mut volumes = Vec::with_capacity(specs.len());
        for spec in specs {
            volumes.push(Volume::attach(client.clone(), spec).await?);
        }
        Ok(Self { _volumes: volumes })
    }
}

/// One volume that is mounted. Its threads end when its requests do.
#[derive(Debug)]
struct Volume {
    pump: JoinHandle<()>,
}

impl Volume {
    async fn attach(mut client: Client, spec: &VolumeSpec) -> Result<Self, VolumeError> {
        let (root, is_file) = open(spec).map_err(|error| VolumeError::Open(spec.host.clone(), error))?;
        let (replies, inputs) = mpsc::channel(WAITING);
        let threads = start_threads(root, is_file, spec, replies.clone()).await?;
        let start = v1::MountStart { target: spec.guest.clone(), read_only: spec.read_only, is_file };
        let mount = async {
            // There is room for it, and its reader is below.
            let start = MountInput { input: Some(Input::Start(start)) };
            replies.send(start).await.map_err(|error| VolumeError::Link(error.to_string()))?;
            let mut outputs = client.mount(ReceiverStream::new(inputs)).await?.into_inner();
            match outputs.message().await?.and_then(|message| message.output) {
                Some(Output::Mounted(_)) => Ok(outputs),
                _ => Err(VolumeError::Link("it did not say that the volume is mounted".into())),
            }
        };
        let outputs = tokio::time::timeout(DEADLINE, mount).await.map_err(|_| VolumeError::Deadline)??;
        let guest = spec.guest.clone();
        let pump = tokio::spawn(async move {
            let ended = pump(outputs, threads).await;
            debug!(%guest, %ended, "volume ended");
        });
        Ok(Self { pump })
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// What is shown, and whether it is a file. Links on the way there are the caller's own.
fn open(spec: &VolumeSpec) -> io::Result<(OwnedFd, bool)> {
    let root = rustix::fs::open(&spec.host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&root)?.st_mode) {
        FileType::Directory => Ok((root, false)),
        FileType::RegularFile => Ok((root, true)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a directory nor a regular file")),
    }
}

/// Passes on what the guest asks, as fast as it is answered. Returns why it ended.
async fn pump(mut outputs: Streaming<v1::MountOutput>, threads: Threads) -> String {
    loop {
        let output = tokio::select! {
            output = outputs.message() => output,
            () = threads.gave_up.cancelled() => return "the guest sent what is no request".into(),
        };
        match output {
            Ok(Some(v1::MountOutput { output: Some(Output::Request(request)) })) => {
                if threads.requests.send(request).await.is_err() {
                    return "its threads have ended".into();
                }
            }
            Ok(Some(_)) => return "the guest broke the rules of volumes".into(),
            Ok(None) => return "the guest unmounted it".into(),
            Err(status) => return crate::link::said(&status),
        }
    }
}

/// What the threads of a volume share.
#[derive(Debug)]
struct Shared {
    server: Server,
    requests: Mutex<mpsc::Receiver<Bytes>>,
    replies: mpsc::Sender<MountInput>,
    /// Cancelled when a guest has sent what is no request.
    gave_up: CancellationToken,
}

/// What feeds the threads of a volume. They end when this is dropped.
#[derive(Debug)]
struct Threads {
    requests: mpsc::Sender<Bytes>,
    gave_up: CancellationToken,
}

/// Starts what answers requests, confined: it ends when nobody can send any more.
async fn start_threads(
    root: OwnedFd,
    is_file: bool,
    spec: &VolumeSpec,
    replies: mpsc::Sender<MountInput>,
) -> Result<Threads, VolumeError> {
    let (sender, requests) = mpsc::channel(WAITING);
    let threads = Threads { requests: sender, gave_up: CancellationToken::new() };
    let gave_up = threads.gave_up.clone();
    let (ready, is_ready) = oneshot::channel();
    let read_only = spec.read_only;
    let first = move || match begin(root, is_file, read_only) {
        Ok(server) => {
            // Whoever attaches may have gone; then there will be no requests.
            ready.send(Ok(())).ok();
            let requests = Mutex::new(requests);
            serve_in_threads(&Arc::new(Shared { server, requests, replies, gave_up }));
        }
        Err(error) => {
            ready.send(Err(error)).ok();
        }
    };
    let failed = |error| VolumeError::Thread(spec.host.clone(), error);
    named().spawn(first).map_err(failed)?;
    let begun = is_ready.await.map_err(|_| failed(io::Error::other("they ended at once")))?;
    begun.map_err(|error| VolumeError::Confine(spec.host.clone(), error))?;
    Ok(threads)
}

fn named() -> std::thread::Builder {
    std::thread::Builder::new().name("bouvet-volume".into())
}

/// Confines this thread, and with it those that it starts.
fn begin(root: OwnedFd, is_file: bool, read_only: bool) -> Result<Server, ConfineError> {
    let root = Arc::new(root);
    let tree = Tree::new(root.clone(), read_only, budget::shared())
        .map_err(|error| ConfineError::Step("open what it needs", error.into()))?;
    confine::confine_thread(&root, !is_file, read_only)?;
    Ok(Server::new(tree))
}

fn serve_in_threads(shared: &Arc<Shared>) {
    for _ in 1..THREADS {
        let shared = shared.clone();
        if let Err(error) = named().spawn(move || shared.serve()) {
            warn!(%error, "a volume does with one thread");
        }
    }
    shared.serve();
}

impl Shared {
    fn serve(&self) {
        while let Some(request) = self.next() {
            match self.server.serve(&request) {
                Ok(Some(reply)) => {
                    let reply = MountInput { input: Some(Input::Reply(reply)) };
                    if self.replies.blocking_send(reply).is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(%error, "a volume ends");
                    self.gave_up.cancel();
                    return;
                }
            }
        }
    }

    fn next(&self) -> Option<Bytes> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_that_sends_what_is_no_request_loses_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let spec = VolumeSpec { host: dir.path().into(), guest: "/data".into(), read_only: false };
        let (root, is_file) = open(&spec).unwrap();
        let (replies, mut inputs) = mpsc::channel(WAITING);
        let threads = start_threads(root, is_file, &spec, replies).await.unwrap();

        // The attributes of the root: a header of 40 bytes, and 16 that say nothing.
        let mut request = vec![0; 56];
        (request[0], request[4], request[16]) = (56, 3, 1);
        threads.requests.send(request.into()).await.unwrap();
        let Some(Input::Reply(reply)) = inputs.recv().await.unwrap().input else { panic!("it is no reply") };
        assert_eq!((reply.len(), &reply[4..8]), (16 + 104, &[0; 4][..]));

        threads.requests.send(Bytes::from_static(b"noise")).await.unwrap();
        let deadline = Duration::from_secs(20);
        tokio::time::timeout(deadline, threads.gave_up.cancelled()).await.unwrap();
        drop(threads);
        let last = tokio::time::timeout(deadline, inputs.recv()).await.unwrap();
        assert_eq!(last, None, "its threads have ended");
    }
}
