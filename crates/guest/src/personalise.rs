//! Makes a VM one sandbox's own. Whatever here fails, fails the sandbox: the host hands out no VM that
//! shares its randomness, its clock or its names with another.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, Write as _};

use bouvet_wire::{limits, v1};
use rustix::ioctl::{self, Opcode};
use rustix::time::{ClockId, Timespec};

/// What could not be made the sandbox's own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the host sent {0} bytes of entropy; at least {min} are needed", min = limits::MIN_ENTROPY_BYTES)]
    TooLittleEntropy(usize),
    #[error("could not reseed the kernel's random numbers")]
    Entropy(#[source] io::Error),
    #[error("could not set the clock")]
    Clock(#[source] io::Error),
    #[error("could not set the {0}")]
    Name(&'static str, #[source] io::Error),
}

/// What was last applied of what takes long to apply: a clone that waited has its names already.
#[derive(Debug, Default)]
pub(crate) struct Names {
    hostname: String,
    machine_id: String,
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
        if (&names.hostname, &names.machine_id) != (&request.hostname, &request.machine_id) {
            set_names(request)?;
            *names = Names { hostname: request.hostname.clone(), machine_id: request.machine_id.clone() };
        }
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

/// Writes the files that name this VM, with names that are nobody's. A clone of it then changes a few bytes in
/// place, where its first would copy files from the base disk.
pub(crate) fn prepare() -> Result<(), Error> {
    write_names("sandbox-00000000", "00000000000000000000000000000000")
}

fn set_names(request: &v1::PersonaliseRequest) -> Result<(), Error> {
    rustix::system::sethostname(request.hostname.as_bytes())
        .map_err(|error| Error::Name("hostname", error.into()))?;
    write_names(&request.hostname, &request.machine_id)
}

fn write_names(hostname: &str, machine_id: &str) -> Result<(), Error> {
    // An image may come without /etc; the names of a file system are not worth failing a sandbox for, but
    // two sandboxes with one machine id are.
    if !fs::exists("/etc").map_err(|error| Error::Name("machine id", error))? {
        return Ok(());
    }
    let hosts =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback {hostname}\n");
    for (what, path, text) in [
        ("machine id", "/etc/machine-id", format!("{machine_id}\n")),
        ("hostname", "/etc/hostname", format!("{hostname}\n")),
        ("hosts file", "/etc/hosts", hosts),
    ] {
        overwrite(path, &text).map_err(|error| Error::Name(what, error))?;
    }
    Ok(())
}

/// Makes `text` the content of a file, without cutting it off first if it is as long already.
fn overwrite(path: &str, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all(text.as_bytes())?;
    if file.metadata()?.len() == text.len() as u64 { Ok(()) } else { file.set_len(text.len() as u64) }
}
