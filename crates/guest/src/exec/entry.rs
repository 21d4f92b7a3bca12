//! How a program is told who it is to be: what the service writes for the stage that comes before the program (see
//! [`crate::enter`]), and how it learns whether that became the program.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bouvet_wire::v1;
use prost::Message as _;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tonic::Status;

/// How long a stage may take: it mounts a few file systems, emulated.
const DEADLINE: Duration = Duration::from_secs(60);
/// What it may say of its failure.
const MAX_ERROR_BYTES: u64 = 4096;

/// A program to be, whole.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) argv: Vec<Vec<u8>>,
    /// `NAME=value` each.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) env: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) cwd: Vec<u8>,
    /// As [`v1::ExecStart`] has it.
    #[prost(string, tag = "4")]
    pub(crate) user: String,
    /// Whether standard input is a terminal that is to be its own.
    #[prost(bool, tag = "5")]
    pub(crate) terminal: bool,
    #[prost(message, optional, tag = "6")]
    pub(crate) confinement: Option<v1::Confinement>,
    /// Whether its namespaces are to be made, it being their first process; otherwise it joins those that are there, if
    /// any are.
    #[prost(bool, tag = "7")]
    pub(crate) first: bool,
    /// The mount that is to be its root. Empty: the VM's.
    #[prost(bytes = "vec", tag = "8")]
    pub(crate) root: Vec<u8>,
}

impl Entry {
    pub(super) fn new(
        argv: &[OsString],
        env: &HashMap<String, String>,
        cwd: &Path,
        start: &v1::ExecStart,
    ) -> Self {
        Self {
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
            cwd: cwd.as_os_str().as_bytes().to_vec(),
            user: start.user.clone(),
            terminal: start.terminal.is_some(),
            confinement: None,
            first: start.main || start.sidecar.is_some(),
            root: if start.sidecar.is_some() { crate::SIDECAR_ROOT.into() } else { Vec::new() },
        }
    }

    pub(crate) fn cwd(&self) -> PathBuf {
        OsString::from_vec(self.cwd.clone()).into()
    }

    /// The environment, in which of one name the last counts.
    pub(crate) fn environment(&self) -> HashMap<OsString, OsString> {
        let pair = |pair: &Vec<u8>| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (OsStr::from_bytes(&pair[..at]), OsStr::from_bytes(&pair[at + 1..]));
            Some((name.to_owned(), value.to_owned()))
        };
        self.env.iter().filter_map(pair).collect()
    }

    /// What the stage was handed.
    pub(crate) fn read(mut from: File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        Self::decode(&bytes[..]).map_err(io::Error::other)
    }

    fn file(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(rustix::fs::memfd_create(c"entry", MemfdFlags::CLOEXEC)?);
        file.write_all(&self.encode_to_vec())?;
        file.rewind()?;
        Ok(file.into())
    }
}

/// Why a stage did not become its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is no such program.
    Missing,
    /// It may not be run, or is none.
    Unfit,
    /// Something before it failed.
    Other,
}

impl Obstacle {
    const ALL: [(Self, u8); 3] = [(Self::Missing, b'm'), (Self::Unfit, b'u'), (Self::Other, b'o')];

    /// How it is written before its explanation.
    pub(crate) fn letter(self) -> u8 {
        Self::ALL.iter().find(|(obstacle, _)| *obstacle == self).map_or(b'o', |(_, letter)| *letter)
    }

    fn status(report: &[u8]) -> Status {
        let (letter, text) = report.split_first().unwrap_or((&b'o', b""));
        let text = String::from_utf8_lossy(text).into_owned();
        match Self::ALL.iter().find(|(_, known)| known == letter).map(|(obstacle, _)| *obstacle) {
            Some(Self::Missing) => Status::not_found(text),
            Some(Self::Unfit) => Status::permission_denied(text),
            _ => Status::failed_precondition(text),
        }
    }
}

/// A stage that is about to be started.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) command: Command,
    errors: pipe::Receiver,
    /// Closed here once it has them.
    handed: Vec<OwnedFd>,
}

impl Stage {
    /// This very executable as the stage of `entry`, which joins `namespaces`.
    pub(super) fn new(entry: &Entry, namespaces: Vec<OwnedFd>) -> io::Result<Self> {
        let (errors, errors_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let errors = pipe::Receiver::from_owned_fd(errors)?;
        let mut handed = vec![entry.file()?, errors_end];
        handed.extend(namespaces);
        #[expect(clippy::disallowed_methods, reason = "programs are started by way of this")]
        let mut command = Command::new("/proc/self/exe");
        command.arg("enter").args(handed.iter().map(|fd| fd.as_raw_fd().to_string()));
        let kept: Vec<i32> = handed.iter().map(|fd| fd.as_raw_fd()).collect();
        let keep = move || {
            for fd in &kept {
                #[expect(unsafe_code, reason = "a child knows what it inherits by number alone")]
                // SAFETY: the descriptors are open in the child, which is a copy of this process, for as long as this
                // runs there.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        #[expect(unsafe_code, reason = "only the child itself can keep its descriptors")]
        // SAFETY: between fork and exec, `keep` only makes system calls: it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(keep);
        }
        Ok(Self { command, errors, handed })
    }

    /// What is to be awaited once it was started.
    pub(super) fn started(self) -> Awaited {
        drop(self.handed);
        Awaited(self.errors)
    }
}

/// A stage on its way to its program.
#[derive(Debug)]
pub(super) struct Awaited(pipe::Receiver);

impl Awaited {
    /// Waits until it is its program, or has said why it is not.
    pub(super) async fn entered(self) -> Result<(), Status> {
        let mut report = Vec::new();
        let mut bounded = self.0.take(MAX_ERROR_BYTES);
        match tokio::time::timeout(DEADLINE, bounded.read_to_end(&mut report)).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(_)) => Err(Obstacle::status(&report)),
            Ok(Err(error)) => Err(Status::internal(format!("could not follow a program's start: {error}"))),
            Err(_) => Err(Status::internal(format!("a program did not start within {DEADLINE:?}"))),
        }
    }
}
