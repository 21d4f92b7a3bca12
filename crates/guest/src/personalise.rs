//! Makes a VM one sandbox's own. Whatever here fails, fails the sandbox: the host hands out no VM that
//! shares its randomness, its clock or its names with another.

use std::ffi::c_int;
use std::fs::File;
use std::io;

use bouvet_wire::{limits, v1};
use rustix::ioctl::{self, Opcode};
use rustix::time::{ClockId, Timespec};

use crate::names::{self, Names};

/// What could not be made the sandbox's own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the host sent {0} bytes of entropy; at least {min} are needed", min = limits::MIN_ENTROPY_BYTES)]
    TooLittleEntropy(usize),
    #[error("could not reseed the kernel's random numbers")]
    Entropy(#[source] io::Error),
    #[error("could not set the clock")]
    Clock(#[source] io::Error),
    #[error(transparent)]
    Names(#[from] names::Error),
}

/// Applies `request`. Without a kernel of our own (in tests) only its form is checked.
pub(crate) fn personalise(
    request: &v1::PersonaliseRequest,
    names: &mut Names,
    owns_kernel: bool,
) -> Result<v1::PersonaliseReply, Error> {
    if request.entropy.len() < limits::MIN_ENTROPY_BYTES {
        return Err(Error::TooLittleEntropy(request.entropy.len()));
    }
    if owns_kernel {
        reseed(&request.entropy).map_err(Error::Entropy)?;
        set_clock(request.unix_time_ns).map_err(Error::Clock)?;
        names.apply(request)?;
    }
    let (memory, kernel) = (rustix::system::sysinfo(), rustix::system::uname());
    Ok(v1::PersonaliseReply {
        generation: bouvet_wire::GENERATION,
        guest_version: env!("CARGO_PKG_VERSION").into(),
        kernel_release: kernel.release().to_string_lossy().into_owned(),
        memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
    })
}

/// `RNDADDENTROPY` with `entropy`, then `RNDRESEEDCRNG`, so that the very next `getrandom` differs from
/// that of any twin (random(4); `drivers/char/random.c`).
fn reseed(entropy: &[u8]) -> io::Result<()> {
    const RND_ADD_ENTROPY: Opcode = ioctl::opcode::write::<[c_int; 2]>(b'R', 0x03);
    const RND_RESEED_CRNG: Opcode = ioctl::opcode::none(b'R', 0x07);
    /// `struct rand_pool_info` with room for what we take.
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: c_int,
        bytes: c_int,
        entropy: [u8; 256],
    }

    let mut pool = PoolInfo { entropy_bits: 0, bytes: 0, entropy: [0; 256] };
    let taken = entropy.len().min(pool.entropy.len());
    pool.entropy[..taken].copy_from_slice(&entropy[..taken]);
    let bytes = c_int::try_from(taken).map_err(io::Error::other)?;
    (pool.entropy_bits, pool.bytes) = (bytes * 8, bytes);

    let random = File::options().read(true).write(true).open("/dev/urandom")?;
    #[expect(unsafe_code, reason = "ioctls have no typed form")]
    // SAFETY: `RNDADDENTROPY` reads a `rand_pool_info` and `bytes` bytes after it, and `PoolInfo` has at
    // least as many; `RNDRESEEDCRNG` takes no argument.
    unsafe {
        ioctl::ioctl(&random, ioctl::Setter::<RND_ADD_ENTROPY, PoolInfo>::new(pool))?;
        ioctl::ioctl(&random, ioctl::NoArg::<RND_RESEED_CRNG>::new())?;
    }
    Ok(())
}

fn set_clock(unix_time_ns: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_time_ns / 1_000_000_000).map_err(io::Error::other)?;
    let nanoseconds = i64::try_from(unix_time_ns % 1_000_000_000).map_err(io::Error::other)?;
    rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanoseconds })?;
    Ok(())
}
