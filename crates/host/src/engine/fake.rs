//! An engine without a VM: the real guest, as an ordinary process over a socket pair. It isolates nothing,
//! and exists so that everything above the engine can be tested in milliseconds.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::process::Child;

use super::log::Log;
use super::memory::Memory;
use super::{Acceleration, Engine, EngineError, Freezing, Frozen, Layer, Vm, VmSpec};
use crate::attest::Launch;
use crate::confine::{Confinement, Spawner, Spec};
use crate::undo::Undo;

/// How long the guest gets to kill what it runs, once its link is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Fake {
    guest: PathBuf,
    spawner: Arc<Spawner>,
}

impl Fake {
    /// Puts the guest's executable into `dir`.
    pub(crate) fn prepare(dir: &Path, spawner: Arc<Spawner>) -> Result<Self, EngineError> {
        let guest = dir.join("bouvet-guest");
        let failed = |error| EngineError::Prepare("the guest", error);
        fs::write(&guest, bouvet_image::GUEST).map_err(failed)?;
        fs::set_permissions(&guest, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(Self { guest, spawner })
    }
}

#[async_trait::async_trait]
impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn acceleration(&self) -> Acceleration {
        Acceleration::None
    }

    fn version(&self) -> String {
        "none".into()
    }

    fn confinement(&self) -> Vec<Layer> {
        Vec::new()
    }

    async fn boot(&self, spec: VmSpec, _: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        let (home, run_dir) = (spec.dir.join("home"), spec.dir.join("run"));
        fs::create_dir_all(&home).map_err(|error| EngineError::Prepare("the home directory", error))?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(EngineError::Spawn)?;
        let fd = self.spawner.fd(0).to_string();
        let mut args: Vec<_> = ["serve", "--fd", &fd, "--home"].map(Into::into).into();
        args.extend([home.into(), "--run-dir".into(), run_dir.into()]);
        let program = Spec { program: self.guest.clone(), args, fds: vec![theirs.into()], ..Spec::default() };
        let mut child =
            self.spawner.spawn(program, Confinement::default()).await.map_err(EngineError::Spawn)?;
        let stderr = child.stderr.take().map(Log::follow).unwrap_or_default();
        ours.set_nonblocking(true).map_err(EngineError::Spawn)?;
        let link = UnixStream::from_std(ours).map_err(EngineError::Spawn)?;
        Ok(Box::new(FakeVm { child, stderr, link: Some(link) }))
    }

    fn launch(&self, _: bool) -> Option<Launch> {
        None
    }

    fn freezes(&self) -> Option<Freezing> {
        None
    }

    async fn restore(&self, _: VmSpec, _: &Frozen, _: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        Err(cannot("restore"))
    }
}

/// What the tests of other engines are for.
fn cannot(what: &str) -> EngineError {
    EngineError::Freeze(format!("there is no VM to {what}"))
}

#[derive(Debug)]
struct FakeVm {
    child: Child,
    stderr: Log,
    link: Option<UnixStream>,
}

#[async_trait::async_trait]
impl Vm for FakeVm {
    async fn connect(&mut self) -> io::Result<UnixStream> {
        self.link.take().ok_or_else(|| io::ErrorKind::AlreadyExists.into())
    }

    async fn exited(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("the guest ended ({status}): {}", self.stderr.last_lines(3)),
            Err(error) => format!("the guest cannot be watched: {error}"),
        }
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        Err(cannot("pause"))
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        Err(cannot("resume"))
    }

    async fn freeze(&mut self) -> Result<(Memory, Bytes), EngineError> {
        Err(cannot("freeze"))
    }

    async fn stop(&mut self) {
        self.link = None;
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            self.child.kill().await.ok(); // fails only for a process that is gone
        }
    }
}
