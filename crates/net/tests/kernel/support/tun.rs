//! A TUN device, and what carries its packets: what the link and the guest do for a sandbox.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bouvet_net::{Inbound, Network, Outbound};
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{self, Opcode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// As much as the link carries in one message, before the packet that is one too many.
const BATCH_BYTES: usize = 64 * 1024;
/// The longest packet that there is.
const PACKET_BYTES: usize = 65_535;

#[derive(Debug)]
pub(crate) struct Tun(OwnedFd);

impl Tun {
    /// Makes the interface `name` in this thread's namespace.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        set_interface(&device, name)?;
        Ok(Self(device))
    }
}

/// `TUNSETIFF` (`include/uapi/linux/if_tun.h`): packets without anything before them, their checksums complete.
fn set_interface(device: &OwnedFd, name: &str) -> io::Result<()> {
    const TUN_SET_IFF: Opcode = ioctl::opcode::write::<i32>(b'T', 202);
    const IFF_TUN: i16 = 0x0001;
    const IFF_NO_PI: i16 = 0x1000;
    /// The part of `struct ifreq` that is read, in all of its room.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    #[expect(unsafe_code, reason = "ioctls have no typed form")]
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq`, which is the 40 bytes of `Request`.
    unsafe {
        ioctl::ioctl(device, ioctl::Setter::<TUN_SET_IFF, Request>::new(request))?;
    }
    Ok(())
}

/// Carries packets between `tun` and `network` until either ends.
pub(crate) async fn pump(tun: Arc<Tun>, network: Network) {
    let device = tun.0.try_clone().unwrap();
    #[expect(unsafe_code, reason = "who registers a descriptor must not close it meanwhile")]
    // SAFETY: the descriptor is owned by what it is registered with.
    let device = unsafe { AsyncFd::register_with_interest(device, Interest::READABLE) }.unwrap();
    let (inbound, outbound) = network.attach();
    tokio::join!(send(&device, inbound), receive(&tun, outbound));
}

async fn send(device: &AsyncFd<OwnedFd>, inbound: Inbound) {
    let mut buffer = vec![0; PACKET_BYTES];
    loop {
        let mut ready = device.readable().await.unwrap();
        let mut packets = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Ok(read) = ready.try_io(|device| Ok(rustix::io::read(device.get_ref(), &mut *buffer)?))
        {
            let Ok(length) = read else { return };
            bytes += length;
            packets.push(Bytes::copy_from_slice(&buffer[..length]));
        }
        if !packets.is_empty() && inbound.send(packets).await.is_err() {
            return;
        }
    }
}

async fn receive(tun: &Tun, mut outbound: Outbound) {
    while let Some(packets) = outbound.next().await {
        for packet in packets {
            // What the kernel does not take is lost, as on any network.
            rustix::io::write(&tun.0, &packet).ok();
        }
        tokio::task::coop::consume_budget().await;
    }
}
