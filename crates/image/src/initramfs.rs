//! The initramfs: the guest as `/init`, and the kernel's modules.

use std::io::{self, Write};

use cpio::newc;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_666;

/// Writes an initramfs with the guest, then `modules`: an archive of the same format, or nothing for a
/// kernel that needs none. The kernel unpacks archives one after the other (Documentation/driver-api/
/// early-userspace/buffer-format.rst).
pub fn write(into: &mut dyn Write, modules: &[u8]) -> io::Result<()> {
    for (inode, dir) in (1..).zip(["dev", "proc", "sys", "newroot"]) {
        let entry = newc::Builder::new(dir).ino(inode).mode(DIRECTORY).write(&mut *into, 0);
        entry.finish()?;
    }
    // The kernel finds no console to give PID 1 before PID 1 has loaded its driver, and a Rust program whose
    // standard streams are closed puts `/dev/null` in their place before `main`, or aborts.
    let null = newc::Builder::new("dev/null").ino(50).mode(CHARACTER_DEVICE).rdev_major(1).rdev_minor(3);
    null.write(&mut *into, 0).finish()?;
    let size = u32::try_from(crate::GUEST.len()).map_err(io::Error::other)?;
    let mut init = newc::Builder::new("init").ino(100).mode(EXECUTABLE).write(&mut *into, size);
    init.write_all(crate::GUEST)?;
    init.finish()?;
    newc::trailer(&mut *into)?;
    into.write_all(modules)
}
