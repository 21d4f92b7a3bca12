//! A library that is loaded into the QEMU of each clone before QEMU's own (`LD_PRELOAD`, ld.so(8)), and replaces one
//! function of the C library: `mmap`.
//!
//! QEMU maps the memory of a template privately: pages that the clone writes are copied, all others are shared. But a
//! page that the template never wrote is a hole of its memory file, and on its first touch the kernel allocates it in
//! that file, for good, before it is copied. The clone pays twice for each such page, and the file never shrinks. Neither
//! seals (fcntl(2)) nor an option of QEMU prevents this. So this `mmap` maps only the data of the file, and anonymous
//! memory in place of its holes: both read as zeros.
//!
//! Compiled by the build script, without a standard library: it has to fit the C library of any host.

#![no_std]

use core::arch::asm;
use core::ffi::{c_int, c_void};

const SYS_WRITE: usize = 1;
const SYS_LSEEK: usize = 8;
const SYS_MMAP: usize = 9;
const SYS_FCNTL: usize = 72;

const PROT_WRITE: c_int = 0x2;
const MAP_PRIVATE: c_int = 0x02;
const MAP_FIXED: c_int = 0x10;
const MAP_ANONYMOUS: c_int = 0x20;
const MAP_FAILED: *mut c_void = usize::MAX as *mut c_void;

const F_GET_SEALS: usize = 1034;
const F_SEAL_WRITE: usize = 0x8;
const SEEK_DATA: usize = 3;
const SEEK_HOLE: usize = 4;
const ENXIO: usize = 6;

/// Written to standard output when a memory was mapped: the host waits for it, since the dynamic linker only warns when
/// it cannot load this library.
static MAPPED: u8 = b'm';

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// A system call: its result, or the number of its error.
///
/// # Safety
///
/// As that of the call.
unsafe fn call(number: usize, [a, b, c, d, e, f]: [usize; 6]) -> Result<usize, usize> {
    /// Results from here on are errors, negated (syscall(2)).
    const FIRST_ERROR: usize = usize::MAX - 4094;
    let result: usize;
    // SAFETY: the kernel clobbers these two registers, and what the caller answers for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if result < FIRST_ERROR { Ok(result) } else { Err(result.wrapping_neg()) }
}

/// Arguments of a call of `mmap`.
#[derive(Clone, Copy)]
struct Mapping {
    address: usize,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: usize,
}

impl Mapping {
    /// # Safety
    ///
    /// As that of mmap(2).
    unsafe fn map(self) -> Result<usize, usize> {
        let Self { address, length, protection, flags, fd, offset } = self;
        let arguments = [address, length, protection as usize, flags as usize, fd as usize, offset];
        // SAFETY: the caller's.
        unsafe { call(SYS_MMAP, arguments) }
    }

    /// Whether it is of a memory file that nobody can change any more, and for writing: that of a template.
    fn is_of_a_template(self) -> bool {
        let is_private = self.flags & (MAP_PRIVATE | MAP_ANONYMOUS) == MAP_PRIVATE;
        if !is_private || self.protection & PROT_WRITE == 0 {
            return false;
        }
        // SAFETY: it changes nothing. Of other files it is an error.
        let seals = unsafe { call(SYS_FCNTL, [self.fd as usize, F_GET_SEALS, 0, 0, 0, 0]) };
        seals.is_ok_and(|seals| seals & F_SEAL_WRITE != 0)
    }

    /// Maps the file's data, and anonymous memory for its holes.
    ///
    /// # Safety
    ///
    /// As that of mmap(2).
    unsafe fn map_data(self) -> Result<usize, usize> {
        let anonymous = Self { flags: self.flags | MAP_ANONYMOUS, fd: -1, offset: 0, ..self };
        // SAFETY: the caller's. What follows replaces parts of this very mapping.
        let base = unsafe { anonymous.map()? };
        let end = self.offset.wrapping_add(self.length);
        let mut at = self.offset;
        while let Some(data) = self.seek(at, SEEK_DATA)? {
            if data >= end {
                break;
            }
            let hole = self.seek(data, SEEK_HOLE)?.unwrap_or(end).min(end);
            let (address, length) =
                (base.wrapping_add(data.wrapping_sub(self.offset)), hole.wrapping_sub(data));
            let part = Self { address, length, flags: self.flags | MAP_FIXED, offset: data, ..self };
            // SAFETY: it lies within the mapping that was just made.
            unsafe { part.map()? };
            at = hole;
        }
        Ok(base)
    }

    /// Where the file has data, or a hole, from `offset` on.
    fn seek(self, offset: usize, whence: usize) -> Result<Option<usize>, usize> {
        // SAFETY: it moves the offset of a file that is only mapped.
        match unsafe { call(SYS_LSEEK, [self.fd as usize, offset, whence, 0, 0, 0]) } {
            Ok(offset) => Ok(Some(offset)),
            Err(ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// In place of the C library's.
///
/// # Safety
///
/// As that of mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let mapping =
        Mapping { address: address as usize, length, protection, flags, fd, offset: offset as usize };
    let is_of_a_template = mapping.is_of_a_template();
    // SAFETY: the caller's.
    let mapped = unsafe { if is_of_a_template { mapping.map_data() } else { mapping.map() } };
    match mapped {
        Ok(base) => {
            if is_of_a_template {
                // SAFETY: one byte is read. Without it the host ends this process.
                let _unused = unsafe { call(SYS_WRITE, [1, &raw const MAPPED as usize, 1, 0, 0, 0]) };
            }
            base as *mut c_void
        }
        Err(error) => {
            // SAFETY: it is this thread's own (errno(3)).
            unsafe { *__errno_location() = error as c_int };
            MAP_FAILED
        }
    }
}

/// The name by which programs know it that were compiled for large files.
///
/// # Safety
///
/// As that of mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's.
    unsafe { mmap(address, length, protection, flags, fd, offset) }
}

/// Nothing here panics.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
