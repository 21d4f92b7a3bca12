//! A TUN device: what the kernel routes to it is read here, and what is written here arrives from it.

use std::io;
use std::os::fd::OwnedFd;

use bouvet_wire::limits::NETWORK_MTU_BYTES;
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{self, Opcode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::poll;

/// Where packets are read to, before each gets what it needs.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; NETWORK_MTU_BYTES as usize].into())
    }
}

#[derive(Debug)]
pub(super) struct Device(AsyncFd<OwnedFd>);

impl Device {
    /// Makes the interface `name`, which lasts as long as this.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        set_interface(&device, name)?;
        Ok(Self(poll::readable(device)?))
    }

    /// The next packet, when there is one.
    pub(super) async fn read(&self, buffer: &mut Buffer) -> io::Result<Bytes> {
        loop {
            let mut ready = self.0.ready(Interest::READABLE).await?;
            match ready.try_io(|device| read(device.get_ref(), buffer)) {
                Ok(packet) => return packet,
                Err(_would_block) => {}
            }
        }
    }

    /// The next packet, if there is one now.
    pub(super) fn try_read(&self, buffer: &mut Buffer) -> Option<Bytes> {
        read(self.0.get_ref(), buffer).ok()
    }

    /// Has `packet` arrive. What the kernel does not take is lost, as on any network: it is no packet, or there is no
    /// room for it.
    pub(super) async fn write(&self, packet: &[u8]) {
        rustix::io::write(self.0.get_ref(), packet).ok();
        // A burst must not keep programs from running.
        tokio::task::coop::consume_budget().await;
    }
}

fn read(device: &OwnedFd, Buffer(buffer): &mut Buffer) -> io::Result<Bytes> {
    let length = rustix::io::read(device, &mut **buffer)?;
    Ok(Bytes::copy_from_slice(&buffer[..length]))
}

/// `TUNSETIFF` (`include/uapi/linux/if_tun.h`): packets without anything before them, their checksums complete.
fn set_interface(device: &OwnedFd, name: &str) -> io::Result<()> {
    const TUN_SET_IFF: Opcode = ioctl::opcode::write::<libc::c_int>(b'T', 202);
    const IFF_TUN: libc::c_short = 0x0001;
    const IFF_NO_PI: libc::c_short = 0x1000;
    /// The part of `struct ifreq` that is read, in all of its room.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    #[expect(unsafe_code, reason = "ioctls have no typed form")]
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq`, for which `Request` has room.
    unsafe {
        ioctl::ioctl(device, ioctl::Setter::<TUN_SET_IFF, Request>::new(request))?;
    }
    Ok(())
}
