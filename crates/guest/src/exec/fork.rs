//! Python without its start: an interpreter that is running already forks for each program. See
//! `runners/python.py` for what goes over the socket.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::volume::Mounts;

/// How long an interpreter may take to start, emulated and read from disk.
const READY_DEADLINE: Duration = Duration::from_secs(150);
/// A request is one message: the environment is most of it.
const MAX_REQUEST_BYTES: usize = 200 * 1024;

/// Attributes of the process that a fork makes.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// The program.
    pub(super) file: &'a Path,
    pub(super) cwd: &'a Path,
    pub(super) env: &'a HashMap<String, String>,
    /// Supplementary groups.
    pub(super) groups: &'a [u32],
}

/// The interpreter that forks. Dropped, it takes no more requests, and ends when its forks have: they may be
/// others' programs, and only it learns how they end.
#[derive(Debug)]
pub(super) struct ForkServer {
    control: OwnedFd,
    child: Child,
}

impl ForkServer {
    /// Starts `python3 RUNNER --serve`, and waits until it takes requests.
    pub(super) async fn start(
        runner: &Path,
        env: &HashMap<String, String>,
        mounts: &Mounts,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        #[expect(clippy::disallowed_methods, reason = "interpreters are programs")]
        let mut command = Command::new("python3");
        command.arg(runner).arg("--serve").env_clear().envs(env).current_dir("/");
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // The command's end of the socket is closed with it, so that the interpreter's death is the end of ours.
        let child = mounts.aside(move || command.spawn()).await.flatten()?;
        rustix::net::sockopt::set_socket_timeout(&ours, Timeout::Recv, Some(READY_DEADLINE))?;
        let ready = tokio::task::spawn_blocking(move || {
            let mut bytes = [0; 16];
            let (length, _) = rustix::net::recv(&ours, &mut bytes, RecvFlags::empty())?;
            if bytes[..length] == *b"ready" { Ok(ours) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        });
        let control = ready.await.map_err(io::Error::other).flatten()?;
        Ok(Self { control, child })
    }

    /// Whether it is still there: programs run as root, and may kill it.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks for a fork. `fds` are its standard input, output and errors, the pipe for the answer
    /// and the file by which it enters its cgroup, if it has one.
    pub(super) fn fork(&self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Request { file, cwd, env, groups } = request;
        let request = json!({ "file": file, "cwd": cwd, "env": env, "groups": groups }).to_string();
        if request.len() > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors"));
        }
        // A socket that is full belongs to an interpreter that does not read.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let message = [IoSlice::new(request.as_bytes())];
        rustix::net::sendmsg(&self.control, &message, &mut control, flags)?;
        Ok(())
    }
}
