//! VMs by stock QEMU: its `microvm` machine, on KVM where hardware backs it, else emulated.
//!
//! QEMU gets everything it needs as open descriptors, so its process needs no path of ours and runs under a
//! user id that owns nothing.

mod args;
mod preload;
mod qmp;
pub(crate) mod tsc;
mod version;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::ChildStdout;
use tokio::time::Instant;
use tracing::debug;

use self::args::{Begin, Fds, Machine};
use self::qmp::{Qmp, QmpError};

use super::log::Log;
use super::memory::{self, Home, Memory};
use super::process::Process;
use super::{Acceleration, Engine, EngineError, Freezing, Frozen, Layer, Options, Vm, VmSpec, prepare};
use crate::attest::Launch;
use crate::cgroup;
use crate::confine::{self, Confinement, Spawner, Spec};
use crate::images;
use crate::kvm::Kvm;
use crate::undo::Undo;

const BINARY: &str = "qemu-system-x86_64";
/// State of the processors and devices of one VM: some 75 KB.
const MAX_STATE_BYTES: u64 = 16 * 1024 * 1024;
const FREEZE_DEADLINE: Duration = Duration::from_secs(30);
/// The index, among the descriptors of a VM, of the memory that it is to be frozen with, or of a clone's library.
const FIRST_OPTIONAL: usize = 7;

/// See the module.
#[derive(Debug)]
pub(crate) struct Qemu {
    version: String,
    binary: PathBuf,
    /// What VMs are made of: see [`Engine::freezes`].
    identity: String,
    kernel: PathBuf,
    initramfs: PathBuf,
    hardware: bool,
    tsc_khz: u64,
    cgroups: Option<cgroup::Parent>,
    first_uid: Option<u32>,
    spawner: Arc<Spawner>,
    kernel_args: String,
    /// The library that maps the memory of clones.
    preload: File,
}

impl Qemu {
    /// Checks that VMs can be made, and prepares what they share.
    pub(crate) async fn prepare(options: Options<'_>) -> Result<Self, EngineError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(EngineError::Architecture("QEMU"));
        }
        let version = version::check().await?;
        let binary = confine::find_program(BINARY);
        images::check_kernel(options.kernel)?;
        images::check_rootfs(options.rootfs)?;
        if options.first_uid.is_some() {
            images::check_readable("kernel", options.kernel)?;
        }
        prepare::check_confinement(&options, &binary).await?;
        let hardware = Kvm::find() == Kvm::Hardware;
        if hardware {
            prepare::check_kvm_group(options.first_uid)?;
        }
        let initramfs = options.dir.join("initramfs");
        prepare::write_initramfs(&initramfs, options.kernel)?;
        let identity = format!("{version} {}", prepare::identity(&options, &initramfs)?);
        Ok(Self {
            version,
            binary,
            identity,
            kernel: options.kernel.to_owned(),
            initramfs,
            hardware,
            tsc_khz: tsc::measure_khz().await,
            cgroups: options.cgroups,
            first_uid: options.first_uid,
            spawner: options.spawner,
            kernel_args: options.kernel_args.to_owned(),
            preload: preload::library()
                .map_err(|error| EngineError::Prepare("the clones' library", error))?,
        })
    }

    /// Starts a QEMU. `first` and `second` are what [`Begin`] says, and `memory` what it is to be frozen with.
    async fn start(
        &self,
        spec: VmSpec,
        begin: Begin,
        ([first, second], memory): ([OwnedFd; 2], Option<File>),
        undo: &mut Undo,
    ) -> Result<QemuVm, EngineError> {
        let own_mb = self.acceleration().process_mb(spec.memory_mb);
        let cgroup = prepare::cgroup(self.cgroups.as_ref(), &spec, own_mb, undo)?;
        let VmSpec { name, slot, vcpus, memory_mb, rootfs, sidecar, scratch, durable, aloud, .. } = spec;
        let sockets = Sockets::pair().map_err(|error| EngineError::Prepare("the VM's sockets", error))?;
        let base = File::open(&rootfs).map_err(|error| EngineError::Prepare("the rootfs", error))?;
        let mut fds: Vec<OwnedFd> = sockets.theirs.into();
        fds.extend([base.into(), scratch.into(), first, second]);
        let shared = memory.as_ref().map(File::try_clone).transpose();
        let shared = shared.map_err(|error| EngineError::Prepare("the VM's memory", error))?;
        fds.extend(shared.map(OwnedFd::from));
        let is_clone = begin == Begin::Restore;
        if is_clone {
            let library = self.preload.try_clone();
            fds.push(library.map_err(|error| EngineError::Prepare("the clone's library", error))?.into());
        }
        let sidecar = sidecar.map(File::open).transpose();
        let sidecar = sidecar.map_err(|error| EngineError::Prepare("the sidecar's image", error))?;
        let numbers =
            Fds { sidecar: sidecar.is_some().then(|| self.spawner.fd(fds.len())), ..self.numbers() };
        fds.extend(sidecar.map(OwnedFd::from));
        let machine = Machine { vcpus, memory_mb, durable, ..self.bare() };
        let args = args::command_line(machine, begin, numbers, &self.kernel_args);
        let env =
            if is_clone { vec![preload::variable(self.spawner.fd(FIRST_OPTIONAL))] } else { Vec::new() };
        let program = Spec { program: self.binary.clone(), args, fds, env, dir: None, output: is_clone };
        let confinement = Confinement {
            id: self.first_uid.map(|first| first + slot),
            groups: if self.hardware { Kvm::group().into_iter().collect() } else { Vec::new() },
            cgroup: cgroup.as_deref().filter(|_| !is_clone),
            namespaces: self.first_uid.is_some(),
            small_pages: !self.hardware,
            mounts: Vec::new(),
        };
        debug!(%name, ?machine, ?begin, "starting QEMU");
        let mut child = self.spawner.spawn(program, confinement).await.map_err(EngineError::Spawn)?;
        let [link, console, control] = sockets.ours;
        let mapped = child.stdout.take();
        let process = Process::new(child, Log::follow_console(console, &name, aloud), cgroup.clone());
        let mut vm = QemuVm { process, memory, mapped, link: Some(link), control: Control::New(control) };
        if let (true, Some(cgroup)) = (is_clone, cgroup) {
            // A guest that is restored does not run before it is told to, so its process may enter as it starts.
            if let Err(error) = vm.enter(&cgroup).await {
                vm.stop().await;
                return Err(error);
            }
        }
        Ok(vm)
    }

    /// A machine of no size.
    fn bare(&self) -> Machine {
        let Self { hardware, tsc_khz, .. } = *self;
        Machine { hardware, tsc_khz, vcpus: 0, memory_mb: 0, durable: false }
    }

    /// The numbers by which a QEMU knows what [`Qemu::start`] hands it, in that order.
    fn numbers(&self) -> Fds {
        let [link, console, control, base, scratch, first, second] =
            std::array::from_fn(|i| self.spawner.fd(i));
        Fds { link, console, control, base, scratch, first, second, sidecar: None }
    }
}

/// The sockets between us and a QEMU: link, console, control.
struct Sockets {
    ours: [UnixStream; 3],
    theirs: [OwnedFd; 3],
}

impl Sockets {
    fn pair() -> io::Result<Self> {
        let pair = || {
            let (ours, theirs) = StdUnixStream::pair()?;
            ours.set_nonblocking(true)?;
            io::Result::Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
        };
        let (link, console, control) = (pair()?, pair()?, pair()?);
        Ok(Self { ours: [link.0, console.0, control.0], theirs: [link.1, console.1, control.1] })
    }
}

#[async_trait::async_trait]
impl Engine for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn acceleration(&self) -> Acceleration {
        if self.hardware { Acceleration::Hardware } else { Acceleration::Software }
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn confinement(&self) -> Vec<Layer> {
        let root = self.first_uid.is_some();
        vec![
            Layer::new("a user id of its own", root),
            Layer::new("empty network and IPC namespaces", root),
            Layer::new("no new privileges", true),
            Layer::new("seccomp filter", true),
        ]
    }

    async fn boot(&self, spec: VmSpec, undo: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        let open = |path: &Path| File::open(path).map(OwnedFd::from);
        let kernel = open(&self.kernel).map_err(|error| EngineError::Prepare("the kernel", error))?;
        let initramfs =
            open(&self.initramfs).map_err(|error| EngineError::Prepare("the initramfs", error))?;
        let failed = |error| EngineError::Prepare("the VM's memory", error);
        let memory = spec.to_freeze.then(|| memory::create(spec.memory_mb)).transpose().map_err(failed)?;
        let begin = match &memory {
            Some(_) => Begin::BootToFreeze { memory: self.spawner.fd(FIRST_OPTIONAL) },
            None => Begin::Boot,
        };
        Ok(Box::new(self.start(spec, begin, ([kernel, initramfs], memory), undo).await?))
    }

    fn launch(&self, durable: bool) -> Option<Launch> {
        let machine = Machine { durable, ..self.bare() };
        Some(Launch {
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            command_line: args::kernel_command_line(machine, &self.kernel_args),
        })
    }

    fn freezes(&self) -> Option<Freezing> {
        // Steps of a quarter of a percent: far more than the measurement errs, and a clock that is off by so
        // little is still one.
        let clock = (self.tsc_khz + 2_500) / 5_000 * 5_000;
        let machine = Machine { tsc_khz: clock, ..self.bare() };
        let fds =
            Fds { link: 0, console: 0, control: 0, base: 0, scratch: 0, first: 0, second: 0, sidecar: None };
        let line = args::command_line(machine, Begin::Boot, fds, &self.kernel_args);
        Some(Freezing { basis: format!("{} {line:?}", self.identity), home: Home::Sealed })
    }

    async fn restore(
        &self,
        spec: VmSpec,
        frozen: &Frozen,
        undo: &mut Undo,
    ) -> Result<Box<dyn Vm>, EngineError> {
        let failed = |error| EngineError::Prepare("the state of a frozen VM", error);
        let memory = frozen.memory.try_clone().map_err(failed)?;
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut state = UnixStream::from_std(ours).map_err(failed)?;
        let mut vm = self.start(spec, Begin::Restore, ([memory.into(), theirs.into()], None), undo).await?;
        let incoming = json!({ "uri": format!("fd:{}", self.numbers().second) });
        let told = async {
            let control = vm.control().await?;
            control.run("migrate-set-capabilities", shared_memory()).await?;
            control.run("migrate-incoming", incoming).await?;
            vm.mapped().await
        };
        let sent = async {
            state.write_all(&frozen.devices).await?;
            state.shutdown().await
        };
        // QEMU reads while we write: the state may be more than a socket holds. That it could not be written
        // means that QEMU has ended or hangs, which the other says better.
        let (told, _) = tokio::join!(told, tokio::time::timeout(FREEZE_DEADLINE, sent));
        match told {
            Ok(()) => Ok(Box::new(vm)),
            Err(error) => {
                vm.stop().await;
                Err(error)
            }
        }
    }
}

/// Frozen VMs leave their memory where it is: in the file that clones map.
fn shared_memory() -> serde_json::Value {
    json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] })
}

#[derive(Debug)]
struct QemuVm {
    process: Process,
    /// What it is to be frozen with.
    memory: Option<File>,
    /// Where a clone reports that its memory is mapped.
    mapped: Option<ChildStdout>,
    link: Option<UnixStream>,
    control: Control,
}

/// The control socket, which most VMs never need.
#[derive(Debug)]
enum Control {
    New(UnixStream),
    Up(Qmp),
    Broken,
}

impl QemuVm {
    async fn control(&mut self) -> Result<&mut Qmp, QmpError> {
        if let Control::New(_) = self.control
            && let Control::New(stream) = std::mem::replace(&mut self.control, Control::Broken)
        {
            self.control = Control::Up(Qmp::start(stream).await?);
        }
        match &mut self.control {
            Control::Up(qmp) => Ok(qmp),
            Control::New(_) | Control::Broken => Err(QmpError::Closed),
        }
    }

    /// Puts the process into `cgroup`, and makes the control socket ready meanwhile.
    async fn enter(&mut self, cgroup: &cgroup::Cgroup) -> Result<(), EngineError> {
        let (entered, control) = tokio::join!(self.process.enter(cgroup), self.control());
        control?;
        entered
    }

    /// Waits until the memory of a clone is mapped as it must be.
    async fn mapped(&mut self) -> Result<(), EngineError> {
        match self.mapped.take() {
            Some(output) => preload::mapped(output).await.map_err(EngineError::CloneMemory),
            None => Err(EngineError::CloneMemory(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Waits until the migration that was begun has ended well.
    async fn migrated(&mut self) -> Result<(), EngineError> {
        let deadline = Instant::now() + FREEZE_DEADLINE;
        loop {
            let migration = self.control().await?.run("query-migrate", json!({})).await?;
            match migration["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(EngineError::Freeze(migration.to_string())),
                _ if Instant::now() > deadline => return Err(EngineError::Freeze("it took too long".into())),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }
}

#[async_trait::async_trait]
impl Vm for QemuVm {
    async fn connect(&mut self) -> io::Result<UnixStream> {
        self.link.take().ok_or_else(|| io::ErrorKind::AlreadyExists.into())
    }

    async fn exited(&mut self) -> String {
        self.process.exited().await
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        self.control().await?.run("stop", json!({})).await?;
        // QEMU 7.2 goes on waking for timers of the clock that it has just stopped, up to 500 times a second.
        self.process.signal(Signal::STOP)
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.process.signal(Signal::CONT)?;
        self.control().await?.run("cont", json!({})).await?;
        Ok(())
    }

    /// The VM must run: one that is paused is frozen as paused, and its clones would never start.
    async fn freeze(&mut self) -> Result<(Memory, Bytes), EngineError> {
        let failed = |error: io::Error| EngineError::Freeze(error.to_string());
        let memory =
            self.memory.take().ok_or_else(|| EngineError::Freeze("it was not made for it".into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let control = self.control().await?;
        control.run("migrate-set-capabilities", shared_memory()).await?;
        control.give("state", theirs.as_fd()).await?;
        drop(theirs);
        control.run("migrate", json!({ "uri": "fd:state" })).await?;
        let mut state = Vec::new();
        let mut bounded = ours.take(MAX_STATE_BYTES + 1);
        let read = bounded.read_to_end(&mut state);
        tokio::time::timeout(FREEZE_DEADLINE, read)
            .await
            .map_err(|_| EngineError::Freeze("its state did not end".into()))?
            .map_err(failed)?;
        if state.len() as u64 > MAX_STATE_BYTES {
            return Err(EngineError::Freeze(format!("its state is larger than {MAX_STATE_BYTES} bytes")));
        }
        self.migrated().await?;
        self.stop().await;
        // It reads all that the guest has touched.
        let sealed = tokio::task::spawn_blocking(|| Memory::sealed(memory)).await;
        let sealed = sealed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        Ok((sealed.map_err(failed)?, state.into()))
    }

    async fn stop(&mut self) {
        self.process.stop().await;
    }
}
