//! Volumes: file systems whose requests the host answers. Nothing here understands what is asked: it mounts, and
//! carries messages of the FUSE protocol between the kernel and the link.
//!
//! The thread that carries them is the service's only one. Were it to touch a file in a volume itself, it would wait
//! for an answer that it alone can bring: whatever else of the service may do so goes through [`Mounts::aside`].

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bouvet_wire::limits::{MAX_FUSE_MESSAGE_BYTES, MAX_VOLUME_IO_BYTES, MAX_VOLUMES};
use bouvet_wire::v1::{self, mount_input::Input, mount_output::Output};
use bouvet_wire::volume::{BadTarget, check_target};
use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::answers::Answers;
use crate::poll;

/// Requests that wait to be sent, beside those that the link holds. The kernel keeps the others.
const WAITING_REQUESTS: usize = 4;
/// What the kernel reads of a file before it is asked for: two requests, so that one is answered while the other is on
/// its way.
const READ_AHEAD_BYTES: usize = 2 * MAX_VOLUME_IO_BYTES;
/// As `/proc/self/mounts` shows it.
const SOURCE: &str = "bouvet";

/// Why a volume could not be mounted.
#[derive(Debug, thiserror::Error)]
enum MountError {
    #[error(transparent)]
    Target(#[from] BadTarget),
    #[error("`{0}` leads to `{1}`")]
    Astray(String, String, #[source] BadTarget),
    #[error("could not make the mount point `{0}`")]
    Point(String, #[source] io::Error),
    #[error("`{0}` is not a {1}, as the volume is")]
    Kind(String, &'static str),
    #[error("could not open /dev/fuse: the kernel may have been built without FUSE")]
    Device(#[source] io::Error),
    #[error("could not mount the volume at `{0}`")]
    Mount(String, #[source] io::Error),
}

impl From<MountError> for Status {
    fn from(error: MountError) -> Self {
        let text = crate::chain(&error);
        match error {
            MountError::Target(_) | MountError::Astray(..) | MountError::Kind(..) => {
                Self::invalid_argument(text)
            }
            MountError::Point(..) | MountError::Device(_) | MountError::Mount(..) => {
                Self::failed_precondition(text)
            }
        }
    }
}

/// The volumes that are mounted, counted.
#[derive(Debug, Clone)]
pub(crate) struct Mounts(Arc<Semaphore>);

impl Default for Mounts {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_VOLUMES)))
    }
}

impl Mounts {
    /// Counts one volume, as if it were mounted.
    #[cfg(test)]
    pub(crate) fn occupy(&self) -> OwnedSemaphorePermit {
        self.0.clone().try_acquire_owned().unwrap()
    }

    /// Does `work`, which may touch files in volumes: on another thread, if there are any.
    pub(crate) async fn aside<T, W>(&self, work: W) -> io::Result<T>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        if self.0.available_permits() == MAX_VOLUMES {
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }

    /// Mounts what `input` describes, and carries messages until either side ends.
    pub(crate) async fn mount(
        &self,
        mut input: Streaming<v1::MountInput>,
    ) -> Result<Answers<v1::MountOutput>, Status> {
        let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
            return Err(Status::invalid_argument("the first message must be `start`"));
        };
        let place = self.0.clone().try_acquire_owned();
        let place =
            place.map_err(|_| Status::resource_exhausted(format!("there are {MAX_VOLUMES} volumes")))?;
        // A mount point may lie in another volume.
        let mounted = tokio::task::spawn_blocking(move || Mounted::new(&start, place));
        let mounted = mounted.await.map_err(|error| Status::internal(error.to_string()))??;
        let (answers, stream) = mpsc::channel(WAITING_REQUESTS);
        let first = v1::MountOutput { output: Some(Output::Mounted(v1::Mounted {})) };
        // There is room for it, and whoever reads it is returned below.
        answers.try_send(Ok(first)).map_err(|error| Status::internal(error.to_string()))?;
        tokio::spawn(async move { mounted.carry(input, answers).await });
        Ok(ReceiverStream::new(stream))
    }
}

type Answer = mpsc::Sender<Result<v1::MountOutput, Status>>;

/// A mounted volume. Dropping it ends every request on it, and unmounts.
struct Mounted {
    /// `/dev/fuse`. `None` once it was closed.
    device: Option<AsyncFd<OwnedFd>>,
    /// The file system's number, as `MAJOR:MINOR`, by which it is found wherever it was moved to. A descriptor of its
    /// root would keep programs from unmounting it.
    number: String,
    _place: OwnedSemaphorePermit,
}

impl Mounted {
    fn new(start: &v1::MountStart, place: OwnedSemaphorePermit) -> Result<Self, MountError> {
        check_target(&start.target)?;
        let target = &start.target;
        let point = mount_point(target, start.is_file).map_err(|error| match error.raw_os_error() {
            Some(code) if code == wrong_kind(start.is_file).raw_os_error() => {
                MountError::Kind(target.clone(), if start.is_file { "regular file" } else { "directory" })
            }
            _ => MountError::Point(target.clone(), error),
        })?;
        let real = path_of(&point).map_err(|error| MountError::Point(target.clone(), error))?;
        let real_text = real.to_string_lossy();
        check_target(&real_text)
            .map_err(|bad| MountError::Astray(target.clone(), real_text.to_string(), bad))?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
            .map_err(|error| MountError::Device(error.into()))?;
        let failed = |error: io::Error| MountError::Mount(target.clone(), error);
        mount(&device, &point, start).map_err(failed)?;
        // The last one there is what was just mounted.
        let is_it = |mount: &&Mount| mount.point == real;
        let number = mounts().map_err(failed)?.iter().rfind(is_it).map(|mount| mount.number.clone());
        let number = number.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        // Without this file the kernel reads ahead as far as it likes, which is less.
        let read_ahead = format!("/sys/class/bdi/{number}/read_ahead_kb");
        std::fs::write(read_ahead, (READ_AHEAD_BYTES / 1024).to_string()).ok();
        let mut mounted = Self { device: None, number, _place: place };
        mounted.device = Some(poll::readable(device).map_err(failed)?);
        Ok(mounted)
    }

    /// Carries requests to the host and replies to the kernel, until either has no more or fails.
    async fn carry(self, input: Streaming<v1::MountInput>, answer: Answer) {
        let Some(device) = &self.device else { return };
        tokio::select! {
            () = send_requests(device, &answer) => {}
            () = write_replies(device, input) => {}
            // Nobody reads them any more.
            () = answer.closed() => {}
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // First, so that what still waits for the host fails instead, and the unmounting waits for nobody.
        self.device = None;
        let mounts = mounts().unwrap_or_default();
        for mount in mounts.iter().rev().filter(|mount| mount.number == self.number) {
            // Failing means that a program, which may do so, has unmounted it.
            rustix::mount::unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).ok();
        }
    }
}

/// What is mounted, and where.
struct Mount {
    number: String,
    point: PathBuf,
}

/// All that is mounted, the oldest first. Nothing that is mounted is asked for it.
fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read("/proc/self/mountinfo")?))
}

/// The third and the fifth field of each line (proc_pid_mountinfo(5)).
fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        Some(Mount { number, point: PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?))) })
    };
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// Undoes how the kernel writes blanks and backslashes there: as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    bytes
}

async fn send_requests(device: &AsyncFd<OwnedFd>, answer: &Answer) {
    let mut buffer = vec![0; MAX_FUSE_MESSAGE_BYTES];
    loop {
        // An error is how an unmounted device shows.
        let Ok(mut ready) = device.ready(Interest::READABLE | Interest::ERROR).await else { return };
        let read = match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer)?)) {
            Ok(Ok(read)) => read,
            // A request that was given up before it was read, or an interruption of this read.
            Ok(Err(error)) if gone(&error) => continue,
            // Unmounted.
            Ok(Err(_)) => return,
            Err(_would_block) => continue,
        };
        let request = Output::Request(Bytes::copy_from_slice(&buffer[..read]));
        if answer.send(Ok(v1::MountOutput { output: Some(request) })).await.is_err() {
            return;
        }
    }
}

async fn write_replies(device: &AsyncFd<OwnedFd>, mut input: Streaming<v1::MountInput>) {
    while let Ok(Some(message)) = input.message().await {
        let Some(Input::Reply(reply)) = message.input else { return };
        match rustix::io::write(device.get_ref(), &reply) {
            Err(error) if !gone(&error.into()) => return,
            // A reply to a request that nobody waits for any more goes nowhere.
            _ => {}
        }
    }
}

fn gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::INTR].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn wrong_kind(is_file: bool) -> Errno {
    if is_file { Errno::ISDIR } else { Errno::NOTDIR }
}

/// Opens `target`, which is made if it is missing. Links that the image has on the way there are followed, as `/var/run`
/// must be; those of `/proc`, which lead anywhere, are not.
fn mount_point(target: &str, is_file: bool) -> io::Result<OwnedFd> {
    let mut here = open_below(CWD, "/", OFlags::DIRECTORY)?;
    let mut parts = target.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let flags = if is_last && is_file { OFlags::empty() } else { OFlags::DIRECTORY };
        here = match open_below(&here, part, flags) {
            Err(Errno::NOENT) => {
                if is_last && is_file {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(&here, part, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(&here, part, Mode::from_raw_mode(0o755))?;
                }
                open_below(&here, part, flags)?
            }
            opened => opened?,
        };
    }
    let stat = rustix::fs::fstat(&here)?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    if is_file && kind != rustix::fs::FileType::RegularFile {
        return Err(Errno::ISDIR.into());
    }
    Ok(here)
}

fn open_below(dir: impl std::os::fd::AsFd, part: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, part, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Where an open file is in this root.
fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(Path::new("/proc/self/fd").join(file.as_raw_fd().to_string()))
}

fn mount(device: &OwnedFd, point: &OwnedFd, start: &v1::MountStart) -> io::Result<()> {
    let root_mode = if start.is_file { "100000" } else { "40000" };
    let options = format!(
        "fd={},rootmode={root_mode},user_id=0,group_id=0,allow_other,default_permissions,\
         max_read={MAX_VOLUME_IO_BYTES}",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if start.read_only {
        flags |= MountFlags::RDONLY;
    }
    // By the descriptor: what was checked is what is mounted on.
    let point = format!("/proc/self/fd/{}", point.as_raw_fd());
    Ok(rustix::mount::mount(SOURCE, point, "fuse", flags, options.as_c_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_number() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
            40 36 0:44 / /a\\040b\\134c rw - fuse bouvet rw\nnonsense\n";
        let mounts = parse_mounts(text);
        let seen: Vec<_> = mounts.iter().map(|m| (m.number.as_str(), m.point.to_str().unwrap())).collect();
        assert_eq!(seen, [("98:0", "/mnt2"), ("0:44", "/a b\\c")]);
    }

    #[tokio::test]
    async fn without_volumes_nothing_goes_to_another_thread() {
        let here = std::thread::current().id();
        let mounts = Mounts::default();
        let whose = || std::thread::current().id();
        assert_eq!(mounts.aside(whose).await.unwrap(), here);
        let _place = mounts.0.clone().try_acquire_owned().unwrap();
        assert_ne!(mounts.aside(whose).await.unwrap(), here);
    }
}
