//! Devices whose readiness the runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime wait for what `device`, which was opened non-blocking, has to be read.
pub(crate) fn readable(device: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio has no safe way to poll a device")]
    // SAFETY: the `AsyncFd` owns the descriptor, which names one open file until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(device, Interest::READABLE)? };
    Ok(registered)
}
