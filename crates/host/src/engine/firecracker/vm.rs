//! One running Firecracker.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::OptionFuture;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Child;

use super::api::{self, Api};
use super::calls::{self, Call};
use super::jail::{self, Shown};
use crate::cgroup::Cgroup;
use crate::engine::log::Log;
use crate::engine::memory::Memory;
use crate::engine::process::Process;
use crate::engine::{EngineError, Vm};

/// State of the processors and devices of one VM: some 30 KB.
const MAX_STATE_BYTES: u64 = 16 * 1024 * 1024;
/// How long Firecracker may take to pass one connection on to the guest. It gives up after two seconds itself.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How often a guest that does not listen yet is tried.
const CONNECT_POLL: Duration = Duration::from_millis(5);
/// `OK 1073741824\n` (its docs/vsock.md).
const MAX_GREETING_BYTES: usize = 32;

/// Puts `child`, a Firecracker or a jailer that becomes one, into `cgroup` while it starts, and connects to its API. It is
/// gone when this fails.
pub(super) async fn begin(
    mut child: Child,
    socket: &Path,
    cgroup: Option<Arc<Cgroup>>,
    (name, aloud): (&str, bool),
) -> Result<(Process, Api), EngineError> {
    // The guest's serial console, and what Firecracker logs.
    let console = child.stdout.take().map(|console| Log::follow_console(console, name, aloud));
    let console = console.unwrap_or_default();
    let mut process = Process::new(child, console, cgroup.clone());
    let enter = cgroup.as_deref().map(|cgroup| process.enter(cgroup));
    let begun = async {
        let (entered, api) = tokio::join!(OptionFuture::from(enter), Api::connect(socket));
        entered.unwrap_or(Ok(()))?;
        Ok::<_, EngineError>(api?)
    };
    let begun = tokio::select! {
        biased;
        begun = begun => begun,
        ended = process.ended() => {
            let status = ended.map(|status| status.to_string());
            Err(EngineError::Spawn(io::Error::other(status.unwrap_or_else(|error| error.to_string()))))
        }
    };
    match begun {
        Ok(api) => Ok((process, api)),
        Err(error) => Err(fail(&mut process, error).await),
    }
}

/// Ends `process`, and adds what it said to `error`.
async fn fail(process: &mut Process, error: EngineError) -> EngineError {
    process.stop().await;
    match process.last_words().await {
        said if said.is_empty() => error,
        said => EngineError::Vmm { said, source: Box::new(error) },
    }
}

/// What is known of a VM that is to be frozen.
#[derive(Debug, Clone)]
pub(super) struct ToFreeze {
    pub(super) memory_bytes: u64,
    /// Where its memory is put.
    pub(super) dir: PathBuf,
}

/// See [`Vm`].
#[derive(Debug)]
pub(super) struct FirecrackerVm {
    process: Process,
    api: Api,
    root: PathBuf,
    to_freeze: Option<ToFreeze>,
    linked: bool,
    /// It may open them until it has begun.
    _shown: Vec<Shown>,
}

impl FirecrackerVm {
    pub(super) fn new(
        process: Process,
        api: Api,
        root: PathBuf,
        to_freeze: Option<ToFreeze>,
        shown: Vec<Shown>,
    ) -> Self {
        Self { process, api, root, to_freeze, linked: false, _shown: shown }
    }

    /// Makes `calls`, after which the guest runs. It is gone when one fails.
    pub(super) async fn begin(mut self, calls: &[Call<'_>]) -> Result<Box<dyn Vm>, EngineError> {
        for call in calls {
            if let Err(error) = self.api.make(call).await {
                return Err(fail(&mut self.process, error.into()).await);
            }
        }
        Ok(Box::new(self))
    }

    /// Asks for one connection to the guest: `None` while nobody listens there (docs/vsock.md).
    async fn try_connect(&self) -> io::Result<Option<UnixStream>> {
        let mut stream = api::connect(&self.root.join(jail::LINK_SOCKET)).await?;
        let asked = format!("CONNECT {}\n", bouvet_wire::LINK_VSOCK_PORT);
        stream.write_all(asked.as_bytes()).await?;
        // Byte by byte: what follows is the guest's.
        let mut greeting = Vec::new();
        while greeting.len() < MAX_GREETING_BYTES {
            match stream.read_u8().await {
                Ok(b'\n') if greeting.starts_with(b"OK ") => return Ok(Some(stream)),
                Ok(byte) => greeting.push(byte),
                Err(error) if is_refusal(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM's vsock speaks no known protocol"))
    }

    async fn read_frozen(
        &self,
        ToFreeze { memory_bytes, dir }: ToFreeze,
    ) -> Result<(Memory, Bytes), EngineError> {
        let root = self.root.clone();
        let read = tokio::task::spawn_blocking(move || {
            let path = root.join(jail::MEMORY);
            let memory = open_regular(&path)?;
            if memory.metadata()?.len() != memory_bytes {
                return Err(io::Error::other("its memory has another size than the VM's"));
            }
            // Its writer is gone. Clones, whatever their user ids, may read it, and nobody may write it.
            fchown(&memory, Some(0), Some(0)).or_else(|error| {
                match rustix::process::geteuid().is_root() {
                    true => Err(error),
                    false => Ok(()),
                }
            })?;
            memory.set_permissions(std::fs::Permissions::from_mode(0o444))?;
            let (mut state, mut bounded) =
                (Vec::new(), open_regular(&root.join(jail::STATE))?.take(MAX_STATE_BYTES + 1));
            bounded.read_to_end(&mut state)?;
            if state.len() as u64 > MAX_STATE_BYTES {
                return Err(io::Error::other(format!("its state is larger than {MAX_STATE_BYTES} bytes")));
            }
            Ok((Memory::moved(memory, &path, &dir)?, Bytes::from(state)))
        });
        let read = read.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        read.map_err(|error| EngineError::Freeze(error.to_string()))
    }
}

/// How a connection ends that the guest did not take, or whose socket is not there yet.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// Opens a file that the VMM has made: itself, and not what a taken-over one may have put in its place.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("the VMM left no regular file")),
    }
}

#[async_trait::async_trait]
impl Vm for FirecrackerVm {
    async fn connect(&mut self) -> io::Result<UnixStream> {
        if self.linked {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        loop {
            let tried = tokio::time::timeout(CONNECT_DEADLINE, self.try_connect()).await;
            match tried.unwrap_or(Ok(None))? {
                Some(stream) => {
                    self.linked = true;
                    return Ok(stream);
                }
                None => tokio::time::sleep(CONNECT_POLL).await,
            }
        }
    }

    async fn exited(&mut self) -> String {
        self.process.exited().await
    }

    /// By a signal, and not by the API: 1.16.0 and 1.16.1 never pass on a connection again once a VM was paused and
    /// resumed. The kernel stops all threads of a process where they are (signal(7)), and so its guest.
    async fn pause(&mut self) -> Result<(), EngineError> {
        self.process.signal(Signal::STOP)
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.process.signal(Signal::CONT)
    }

    async fn freeze(&mut self) -> Result<(Memory, Bytes), EngineError> {
        let to_freeze = self.to_freeze.take();
        let to_freeze = to_freeze.ok_or_else(|| EngineError::Freeze("it was not made for it".into()))?;
        self.api.make(&Call::Pause).await?;
        self.api.make(&calls::freeze()).await?;
        self.process.stop().await;
        self.read_frozen(to_freeze).await
    }

    async fn stop(&mut self) {
        self.process.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Act, serve};
    use super::*;
    use crate::confine::{Confinement, Spawner, Spec};

    /// A shell in Firecracker's place, whose API and guest are scripted.
    struct Scripted {
        dir: tempfile::TempDir,
        spawner: Arc<Spawner>,
    }

    impl Scripted {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), spawner: Arc::new(Spawner::start().unwrap()) }
        }

        async fn child(&self, script: &str) -> Child {
            let args = vec!["-c".into(), script.into()];
            let spec = Spec { program: "/bin/sh".into(), args, output: true, ..Spec::default() };
            self.spawner.spawn(spec, Confinement::default()).await.unwrap()
        }

        async fn begin(&self, script: &str, acts: Vec<Act>) -> (Process, Api) {
            let socket = self.dir.path().join(jail::API_SOCKET);
            drop(serve(&socket, acts));
            begin(self.child(script).await, &socket, None, ("vm", false)).await.unwrap()
        }

        /// One of 4096 bytes of memory, that is to be frozen.
        async fn vm(&self, acts: Vec<Act>) -> FirecrackerVm {
            let (process, api) = self.begin("exec sleep 600", acts).await;
            let to_freeze = ToFreeze { memory_bytes: 4096, dir: self.dir.path().join("frozen") };
            FirecrackerVm::new(process, api, self.dir.path().into(), Some(to_freeze), Vec::new())
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.dir.path().join(name), bytes).unwrap();
        }
    }

    fn is_gone(vm: &FirecrackerVm) -> bool {
        vm.process.id().is_none()
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_says_why() {
        let scripted = Scripted::new();
        let child = scripted.child("echo 'no such option' >&2; exit 7").await;
        let nowhere = scripted.dir.path().join("none.sock");
        let error = begin(child, &nowhere, None, ("vm", false)).await.unwrap_err();
        assert!(crate::chain(&error).contains("exit status: 7"), "{error}");
        let EngineError::Vmm { said, .. } = &error else { panic!("{error}") };
        assert_eq!(said, "no such option");
    }

    #[tokio::test]
    async fn a_call_that_is_refused_ends_the_vm_and_is_told() {
        let scripted = Scripted::new();
        let refusal = Act::answer(400, r#"{"fault_message":"Cannot open /dev/kvm"}"#);
        let vm = scripted.vm(vec![Act::done(), refusal]).await;
        let pid = vm.process.id().unwrap();
        let options = super::super::FirecrackerOptions::default();
        let hardware = calls::Hardware { vcpus: 1, memory_mb: 256, durable: false, sidecar: false };
        let error = vm.begin(&calls::boot(&options, "", hardware)).await.unwrap_err();
        let text = crate::chain(&error);
        assert!(text.contains("PUT /boot-source") && text.contains("Cannot open /dev/kvm"), "{text}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "its process is gone");
    }

    #[tokio::test]
    async fn the_link_waits_for_a_guest_that_listens() {
        let scripted = Scripted::new();
        let mut vm = scripted.vm(Vec::new()).await;
        let listener = tokio::net::UnixListener::bind(scripted.dir.path().join(jail::LINK_SOCKET)).unwrap();
        let guest = tokio::spawn(async move {
            for answer in ["", "OK 10", "OK 1073741824\nfirst words"] {
                let mut stream = listener.accept().await.unwrap().0;
                let mut asked = [0; 13];
                stream.read_exact(&mut asked).await.unwrap();
                assert_eq!(&asked, b"CONNECT 1024\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let mut stream = vm.connect().await.unwrap();
        let mut words = String::new();
        stream.read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "first words", "nothing of it is swallowed");
        guest.await.unwrap();
        assert_eq!(vm.connect().await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn a_link_that_speaks_another_language_is_refused() {
        let scripted = Scripted::new();
        let mut vm = scripted.vm(Vec::new()).await;
        let listener = tokio::net::UnixListener::bind(scripted.dir.path().join(jail::LINK_SOCKET)).unwrap();
        tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(&[b'x'; 64]).await.unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(vm.connect().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_frozen_vm_is_its_memory_and_its_state() {
        use std::os::unix::fs::MetadataExt as _;

        let scripted = Scripted::new();
        let mut vm = scripted.vm(vec![Act::done(), Act::done()]).await;
        scripted.write(jail::MEMORY, &[7; 4096]);
        scripted.write(jail::STATE, b"registers");
        let (memory, state) = vm.freeze().await.unwrap();
        assert!(is_gone(&vm), "its memory cannot change any more");
        assert_eq!((&state[..], memory.metadata().unwrap().mode() & 0o777), (&b"registers"[..], 0o444));
        assert!(!scripted.dir.path().join(jail::MEMORY).exists(), "it has outlived its VM's directory");
        drop(memory);
        assert_eq!(std::fs::read_dir(scripted.dir.path().join("frozen")).unwrap().count(), 0);
        assert!(matches!(vm.freeze().await, Err(EngineError::Freeze(_))), "once");
    }

    #[tokio::test]
    async fn what_is_not_what_was_asked_for_is_no_frozen_vm() {
        type Spoil = fn(&Scripted);
        let spoils: [(Spoil, &str); 4] = [
            (|scripted| scripted.write(jail::MEMORY, &[7; 4095]), "another size"),
            (|scripted| std::fs::remove_file(scripted.dir.path().join(jail::STATE)).unwrap(), "No such file"),
            (
                |scripted| {
                    let state = scripted.dir.path().join(jail::STATE);
                    File::options().write(true).open(state).unwrap().set_len(MAX_STATE_BYTES + 1).unwrap();
                },
                "larger than",
            ),
            (
                |scripted| {
                    let state = scripted.dir.path().join(jail::STATE);
                    std::fs::remove_file(&state).unwrap();
                    std::os::unix::fs::symlink("/etc/shadow", state).unwrap();
                },
                "symbolic links",
            ),
        ];
        for (spoil, why) in spoils {
            let scripted = Scripted::new();
            let mut vm = scripted.vm(vec![Act::done(), Act::done()]).await;
            scripted.write(jail::MEMORY, &[7; 4096]);
            scripted.write(jail::STATE, b"registers");
            spoil(&scripted);
            let error = vm.freeze().await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn a_vm_that_cannot_be_paused_is_not_frozen() {
        let scripted = Scripted::new();
        let mut vm = scripted.vm(vec![Act::answer(400, r#"{"fault_message":"not running"}"#)]).await;
        let error = vm.freeze().await.unwrap_err();
        assert!(crate::chain(&error).contains("not running"), "{error}");
    }

    #[tokio::test]
    async fn pausing_stops_the_whole_process() {
        let scripted = Scripted::new();
        let mut vm = scripted.vm(Vec::new()).await;
        let pid = vm.process.id().unwrap();
        // The field after the name in parentheses (proc_pid_stat(5)).
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
        };
        vm.pause().await.unwrap();
        while state() != 'T' {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        vm.resume().await.unwrap();
        while state() == 'T' {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        vm.stop().await;
        assert!(matches!(vm.pause().await, Err(EngineError::Signal(_))), "nobody else is signalled");
    }

    #[tokio::test]
    async fn a_vm_that_ends_by_itself_says_its_last_words() {
        let scripted = Scripted::new();
        let told = scripted.dir.path().join("told");
        let script =
            format!("until [ -e {} ]; do sleep 0.01; done; echo 'Kernel panic'; exit 1", told.display());
        let (process, api) = scripted.begin(&script, Vec::new()).await;
        let mut vm = FirecrackerVm::new(process, api, scripted.dir.path().into(), None, Vec::new());
        scripted.write("told", b"");
        let said = vm.exited().await;
        assert!(
            said.starts_with("the VM ended (exit status: 1)") && said.ends_with("Kernel panic"),
            "{said}"
        );
        assert_eq!(vm.exited().await.split(';').next(), said.split(';').next(), "may be asked again");
        assert!(matches!(vm.freeze().await, Err(EngineError::Freeze(_))), "it was not made for it");
    }
}
