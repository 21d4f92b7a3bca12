//! Memory of VMs as files that live in memory.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::sparse;

/// An empty memory of `size_mb` MiB.
pub(crate) fn create(size_mb: u32) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("bouvet-memory", flags)?);
    file.set_len(u64::from(size_mb) * 1024 * 1024)?;
    Ok(file)
}

/// Makes sure that nobody changes it any more, whoever has it open: many VMs will map it, and one of them may be
/// taken over. Mappings that keep their changes to themselves are still possible (memfd_create(2)).
pub(crate) fn seal(memory: &File) -> io::Result<()> {
    let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(memory, all)?)
}

/// Copies the data of `from`, and not its holes, to the same places in `to`, which must be empty and as long.
pub(super) fn copy_data(from: &File, to: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    let mut buffer = vec![0; 1024 * 1024];
    for extent in sparse::extents(from) {
        let Range { start: mut at, end } = extent?;
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..part], at)?;
            write_pages(to, &buffer[..part], at)?;
            at += part as u64;
        }
    }
    Ok(())
}

/// Writes `bytes`, but for pages of zeros: memory that a guest has freed, or never used.
fn write_pages(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    const PAGE_BYTES: usize = 4096;
    const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let mut pages = bytes.chunks(PAGE_BYTES).enumerate().peekable();
    while let Some((first, page)) = pages.next() {
        if page == &ZEROS[..page.len()] {
            continue;
        }
        let mut run = page.len();
        while let Some((_, next)) = pages.next_if(|(_, next)| *next != &ZEROS[..next.len()]) {
            run += next.len();
        }
        let start = first * PAGE_BYTES;
        to.write_all_at(&bytes[start..start + run], at + start as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn sealed_memory_is_everybody_s_and_nobody_changes_it() {
        let memory = create(4).unwrap();
        memory.write_all_at(b"as it was", 4096).unwrap();
        seal(&memory).unwrap();
        assert!(memory.write_all_at(b"changed", 4096).is_err());
        assert!(memory.set_len(0).is_err() && memory.set_len(8 << 20).is_err());
        // Opened anew, as a VM does.
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let mut again = File::options().read(true).write(true).open(path).unwrap();
        assert!(again.write_all(b"changed").is_err());
        let mut bytes = [0; 9];
        again.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"as it was");
    }

    #[test]
    fn a_copy_has_the_data_and_neither_holes_nor_zeros() {
        let (from, to) = (create(8).unwrap(), create(8).unwrap());
        from.write_all_at(b"head", 0).unwrap();
        from.write_all_at(&vec![0; 3 << 20], 1 << 20).unwrap();
        from.write_all_at(b"middle", (5 << 20) - 3).unwrap();
        copy_data(&from, &to).unwrap();
        let whole = |file: &File| {
            let mut bytes = vec![0; 8 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(whole(&from) == whole(&to));
        assert!(to.metadata().unwrap().blocks() * 512 <= 4 * 4096);
    }
}
