//! A program's first process: a child of this one, or a fork of an interpreter.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;

use bouvet_wire::v1;
use rustix::pty::OpenptFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Child;

use super::running::winsize;

/// The ends of a program's standard streams.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Ends {
    pub(super) fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }
}

/// Our ends of the same.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
}

/// Three pipes: ours do not block, the program's do.
pub(super) fn streams() -> io::Result<(Streams, Ends)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (stdin, stdout, stderr) = (pipe()?, pipe()?, pipe()?);
    let streams = Streams {
        stdin: Some(pipe::Sender::from_owned_fd(stdin.1)?),
        stdout: Some(pipe::Receiver::from_owned_fd(stdout.0)?),
        stderr: Some(pipe::Receiver::from_owned_fd(stderr.0)?),
    };
    Ok((streams, Ends { stdin: stdin.0, stdout: stdout.1, stderr: stderr.1 }))
}

/// A terminal of this size: both its directions are ours by one descriptor, which is returned beside. What it prints,
/// errors among it, is standard output.
pub(super) fn terminal(size: v1::WindowSize) -> io::Result<(Streams, Ends, Arc<OwnedFd>)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&ours)?;
    rustix::termios::tcsetwinsize(&ours, winsize(size))?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let streams = Streams {
        // A terminal can be polled as a pipe can.
        stdin: Some(pipe::Sender::from_owned_fd_unchecked(ours.try_clone()?)?),
        stdout: Some(pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?),
        stderr: None,
    };
    let ends = Ends { stdin: theirs.try_clone()?, stdout: theirs.try_clone()?, stderr: theirs };
    Ok((streams, ends, Arc::new(ours)))
}

/// See the module.
#[derive(Debug)]
pub(super) enum Process {
    Child(Child),
    Fork {
        pid: u32,
        /// Where its wait status comes from.
        answer: pipe::Receiver,
    },
}

impl Process {
    /// A fork that was asked for, once it is there.
    pub(super) async fn forked(answer: OwnedFd) -> io::Result<Self> {
        let mut answer = pipe::Receiver::from_owned_fd(answer)?;
        let pid = number(&mut answer).await?;
        Ok(Self::Fork { pid: pid.unsigned_abs(), answer })
    }

    pub(super) fn id(&self) -> u32 {
        match self {
            Self::Child(child) => child.id().unwrap_or_default(),
            Self::Fork { pid, .. } => *pid,
        }
    }

    /// Waits until it has ended. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Child(child) => child.wait().await,
            Self::Fork { answer, .. } => number(answer).await.map(ExitStatus::from_raw),
        }
    }
}

/// Four bytes, which a pipe passes on as one.
async fn number(pipe: &mut pipe::Receiver) -> io::Result<i32> {
    let mut bytes = [0; 4];
    let read = pipe.read(&mut bytes).await?;
    if read == 4 { Ok(i32::from_ne_bytes(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
