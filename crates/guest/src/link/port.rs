//! The link's stream in VMs of QEMU: a virtio-serial port.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long the VMM may take to announce the link's port, and how often we look.
const PORT_DEADLINE: Duration = Duration::from_secs(10);
const PORT_POLL: Duration = Duration::from_millis(1);

/// A virtio-serial port as an asynchronous stream.
#[derive(Debug)]
pub(crate) struct Port(AsyncFd<OwnedFd>);

impl Port {
    /// Opens the port called `name`. Linux shows it at `/sys/class/virtio-ports/vportNpM/name`, some time
    /// after the driver was loaded: the VMM announces ports by messages.
    pub(crate) async fn open(name: &str) -> io::Result<Self> {
        let deadline = Instant::now() + PORT_DEADLINE;
        let path = loop {
            match find_port(name) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_not_yet) => tokio::time::sleep(PORT_POLL).await,
                Ok(path) => break path,
            }
        };
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        #[expect(unsafe_code, reason = "tokio has no safe way to poll a device")]
        // SAFETY: the `AsyncFd` owns the descriptor, which names one open file until it is dropped.
        let registered = unsafe { AsyncFd::register(fd)? };
        Ok(Self(registered))
    }
}

fn find_port(name: &str) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        // The console is a port too, and has no name.
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim_end() == name) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port `{name}`")))
}

impl AsyncRead for Port {
    /// Reads all that is there and fits: the driver hands out 4 KiB a time, and each answer has its price.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled_before = buf.filled().len();
        while buf.remaining() > 0 {
            let mut ready = match self.0.poll_read_ready(cx)? {
                Poll::Ready(ready) => ready,
                Poll::Pending if buf.filled().len() > filled_before => break,
                Poll::Pending => return Poll::Pending,
            };
            let unfilled = buf.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd, unfilled)?)) {
                // A port reads 0 while no host end is connected (`port_fops_read`); another may come.
                Ok(Ok(0)) => ready.clear_ready(),
                Ok(Ok(read)) => buf.advance(read),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, buf)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
