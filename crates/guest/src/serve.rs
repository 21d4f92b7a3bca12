//! The service process: opens its end of the link and serves it until the VM ends.

use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::exec::Executor;
use crate::link::port::Port;
use crate::link::{self, vsock};
use crate::names;
use crate::service::Service;

/// Where the link's guest end is.
#[derive(Debug, Clone)]
pub enum LinkEnd {
    /// The virtio-serial port of this name.
    Port(String),
    /// The vsock port of this number, on which the host connects.
    Vsock(u32),
    /// An inherited, connected stream socket: how tests run this code without a VM.
    Socket(i32),
}

/// How the service was started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The host's calls come from here.
    pub link: LinkEnd,
    /// Relative paths start here, and programs without a `cwd`.
    pub home: PathBuf,
    /// A small file system in memory, for the sources of running programs.
    pub run_dir: PathBuf,
    /// The cgroup under which each program gets its own. `None` without a VM: then a program is its process
    /// group, and has no limits of its own.
    pub cgroup: Option<PathBuf>,
    /// Whether this VM's clock, names and entropy are ours to set.
    pub owns_kernel: bool,
}

/// Why the service could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is PID 1's or a test's; a wrong one is a bug of theirs.
    #[error("could not understand the argument `{0}`")]
    Argument(String),
    /// The link's guest end is missing or broken.
    #[error("could not open the link")]
    Link(#[source] io::Error),
    /// A directory or a cgroup could not be prepared.
    #[error("could not prepare `{0}`")]
    Prepare(PathBuf, #[source] io::Error),
    /// The files that name this VM could not be written.
    #[error("could not write this VM's names")]
    Names(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The runtime could not start.
    #[error("could not start the runtime")]
    Runtime(#[source] io::Error),
}

impl Options {
    /// Parses `serve --port NAME|--vsock PORT|--fd N --home DIR --run-dir DIR [--cgroup DIR]`.
    pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut options = Self {
            link: LinkEnd::Port(bouvet_wire::LINK_PORT.into()),
            home: "/".into(),
            run_dir: crate::RUN_DIR.into(),
            cgroup: None,
            owns_kernel: false,
        };
        if args.next().as_deref() != Some("serve".as_ref()) {
            return Err(Error::Argument("(the first must be `serve`)".into()));
        }
        while let Some(flag) = args.next() {
            let mut value = || args.next().ok_or_else(|| Error::Argument(flag.display().to_string()));
            match flag.to_str() {
                Some("--port") => options.link = LinkEnd::Port(value()?.display().to_string()),
                Some("--vsock") => options.link = LinkEnd::Vsock(parse_port(&value()?)?),
                Some("--fd") => options.link = LinkEnd::Socket(parse_fd(&value()?)?),
                Some("--home") => options.home = value()?.into(),
                Some("--run-dir") => options.run_dir = value()?.into(),
                Some("--cgroup") => options.cgroup = Some(value()?.into()),
                Some("--owns-kernel") => options.owns_kernel = true,
                _ => return Err(Error::Argument(flag.display().to_string())),
            }
        }
        Ok(options)
    }
}

fn parse_port(value: &OsString) -> Result<u32, Error> {
    let port = value.to_str().and_then(|text| text.parse().ok());
    port.ok_or_else(|| Error::Argument(value.display().to_string()))
}

fn parse_fd(value: &OsString) -> Result<i32, Error> {
    let fd = value.to_str().and_then(|text| text.parse().ok()).filter(|fd| *fd > 2);
    fd.ok_or_else(|| Error::Argument(value.display().to_string()))
}

/// Serves the link until it ends for good: with the VM, or with the socket's other end.
pub fn run(options: &Options) -> Result<(), Error> {
    // One thread for everything but file I/O: most VMs have one CPU.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let executor = Executor::new(&options.home, &options.run_dir, options.cgroup.clone())
            .map_err(|error| Error::Prepare(options.run_dir.clone(), error))?;
        if options.owns_kernel {
            names::prepare().map_err(|error| Error::Names(Box::new(error)))?;
        }
        let service = Service::new(Arc::new(executor), options.owns_kernel);
        match &options.link {
            LinkEnd::Port(name) => {
                let port = Port::open(name).await.map_err(Error::Link)?;
                link::serve(port, service).await.map_err(Error::Link)
            }
            LinkEnd::Vsock(port) => {
                let listener = vsock::Listener::bind(*port).map_err(Error::Link)?;
                listener.serve(service).await.map_err(Error::Link)
            }
            LinkEnd::Socket(fd) => {
                let socket = inherited_socket(*fd).map_err(Error::Link)?;
                link::serve(socket, service).await.map_err(Error::Link)
            }
        }
    })
}

fn inherited_socket(fd: i32) -> io::Result<tokio::net::UnixStream> {
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number alone")]
    // SAFETY: whoever started this process passed the descriptor for this one use, and nothing else here
    // has opened or adopted one yet.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    let socket = std::os::unix::net::UnixStream::from(fd);
    socket.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(socket)
}
