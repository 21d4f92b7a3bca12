//! Memory of VMs, as files.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::prepare;
use crate::sparse;

const PAGE_BYTES: usize = 4096;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// An empty memory of `size_mb` MiB.
pub(crate) fn create(size_mb: u32) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("bouvet-memory", flags)?);
    file.set_len(u64::from(size_mb) * 1024 * 1024)?;
    Ok(file)
}

/// Makes sure that nobody changes it any more, whoever has it open: many VMs will map it, and one of them may be
/// taken over. Mappings that keep their changes to themselves are still possible (memfd_create(2)).
fn seal(memory: &File) -> io::Result<()> {
    let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(memory, all)?)
}

/// Where the memory of a frozen VM is while clones use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Home {
    /// In memory, sealed: for an engine that takes descriptors.
    Sealed,
    /// In a file in this directory, for an engine that opens it by name. Only we may write there.
    Disk(PathBuf),
}

/// The memory of a frozen VM, which nobody can change.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    /// Removed with it. The kernel mounts only files that have a name (`move_mount`, Linux 6.18: `ENOENT`).
    name: Option<PathBuf>,
}

impl Memory {
    /// From `file`, sealed, without its pages of zeros: a clone that touches one gets memory of its own.
    pub(crate) fn sealed(file: File) -> io::Result<Self> {
        punch_zeros(&file)?;
        seal(&file)?;
        Ok(Self { file, name: None })
    }

    /// From the file at `path`, which nobody else has open for writing; it is moved into `dir`, which must be on the
    /// same file system.
    pub(crate) fn moved(file: File, path: &Path, dir: &Path) -> io::Result<Self> {
        let name = unique(dir)?;
        fs::rename(path, &name)?;
        Self { file, name: Some(name) }.filled()
    }

    /// Without holes, if it is on a file system in memory: a clone that touches one there has it filled for good, or is
    /// killed where there is no room (mmap(2), `SIGBUS`).
    fn filled(self) -> io::Result<Self> {
        let bytes = self.file.metadata()?.len();
        if bytes == 0 || !prepare::is_in_memory(&self.file)? {
            return Ok(self);
        }
        if let Some(name) = &self.name {
            // Its owner may write it only meanwhile.
            self.file.set_permissions(fs::Permissions::from_mode(0o644))?;
            let filled = File::options()
                .write(true)
                .open(name)
                .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?));
            self.file.set_permissions(fs::Permissions::from_mode(0o444))?;
            filled?;
        }
        Ok(self)
    }

    /// As it is in the file at `path`, which others may unlink at any time.
    pub(crate) fn load(path: &Path, home: &Home) -> io::Result<Self> {
        let kept = File::open(path)?;
        match home {
            Home::Sealed => {
                let size_mb =
                    u32::try_from(kept.metadata()?.len() / 1024 / 1024).map_err(io::Error::other)?;
                let memory = create(size_mb)?;
                copy_data(&kept, &memory)?;
                Self::sealed(memory)
            }
            Home::Disk(dir) => {
                let name = unique(dir)?;
                match fs::hard_link(path, &name) {
                    Ok(()) => Self { file: kept, name: Some(name) }.filled(),
                    Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                        Self::copied(&kept, name)?.filled()
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn copied(from: &File, name: PathBuf) -> io::Result<Self> {
        let to = File::options().read(true).write(true).create_new(true).open(&name)?;
        // From here on it is removed if anything fails.
        let copy = Self { file: to, name: Some(name) };
        copy.set_len(from.metadata()?.len())?;
        copy_data(from, &copy)?;
        // As the kept one: VMs of any user id read it, and nobody writes it.
        copy.set_permissions(fs::Permissions::from_mode(0o444))?;
        Ok(copy)
    }
}

impl Deref for Memory {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Its host may have gone with all its directory.
            fs::remove_file(name).ok();
        }
    }
}

/// A path in `dir`, which is made if it is missing, that nothing has yet.
fn unique(dir: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    Ok(dir.join(uuid::Uuid::new_v4().simple().to_string()))
}

/// Copies the data of `from`, and not its holes, to the same places in `to`, which must be empty and as long.
pub(crate) fn copy_data(from: &File, to: &File) -> io::Result<()> {
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

/// Makes holes of the pages of zeros.
fn punch_zeros(file: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut buffer = vec![0; 1024 * 1024];
    for extent in sparse::extents(file).collect::<io::Result<Vec<_>>>()? {
        let Range { start: mut at, end } = extent;
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..part], at)?;
            for Range { start, end } in zero_runs(&buffer[..part]) {
                rustix::fs::fallocate(file, flags, at + start as u64, (end - start) as u64)?;
            }
            at += part as u64;
        }
    }
    Ok(())
}

/// Where `bytes` has pages of zeros: adjacent ones as one range.
fn zero_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for page in bytes.chunks(PAGE_BYTES) {
        let end = at + page.len();
        if page == &ZEROS[..page.len()] {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}

/// Writes `bytes`, but for pages of zeros: memory that a guest has freed, or never used.
fn write_pages(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;

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
    fn a_copy_on_another_file_system_is_as_the_kept_one_and_goes_with_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let kept = create(1).unwrap();
        kept.write_all_at(b"as it was", 4096).unwrap();
        let name = dir.path().join("copy");
        let copy = Memory::copied(&kept, name.clone()).unwrap();
        let mut bytes = [0; 9];
        File::open(&name).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"as it was");
        let metadata = copy.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (1 << 20, 0o444));
        drop(copy);
        assert!(!name.exists());
        // Nothing is left of one that fails: a directory has no length to set, and no data.
        assert!(Memory::copied(&File::open(dir.path()).unwrap(), name.clone()).is_err());
        assert!(!name.exists());
    }

    #[test]
    fn sealed_memory_has_no_zero_pages() {
        let file = create(4).unwrap();
        file.write_all_at(&vec![7; 2 << 20], 1 << 20).unwrap();
        file.write_all_at(&vec![0; (1 << 20) - 1], (1 << 20) + 1).unwrap();
        let memory = Memory::sealed(file).unwrap();
        let data: Vec<_> = sparse::extents(&memory).collect::<io::Result<_>>().unwrap();
        assert_eq!(data, [1 << 20..(1 << 20) + 4096, 2 << 20..3 << 20]);
        let mut byte = [0];
        memory.read_exact_at(&mut byte, 1 << 20).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn adjacent_zero_pages_are_one_hole() {
        let page = |byte: u8| vec![byte; PAGE_BYTES];
        let bytes =
            [page(0), page(0), page(1), page(0), page(2), page(0), page(0), page(0), vec![0; 7]].concat();
        let runs: Vec<_> = zero_runs(&bytes).iter().map(|run| (run.start / PAGE_BYTES, run.len())).collect();
        assert_eq!(runs, [(0, 2 * PAGE_BYTES), (3, PAGE_BYTES), (5, 3 * PAGE_BYTES + 7)]);
        let mut almost = [page(0), page(0)].concat();
        almost[PAGE_BYTES] = 1;
        assert_eq!(zero_runs(&almost), std::iter::once(0..PAGE_BYTES).collect::<Vec<_>>());
        assert!(zero_runs(&page(1)).is_empty() && zero_runs(&[]).is_empty());
    }

    /// A clone that touched a hole of such a file had the kernel fill it, for as long as the template was there.
    #[test]
    fn template_files_in_memory_have_no_holes() {
        const BYTES: u64 = 8 << 20;
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(prepare::is_in_memory(File::open(dir.path()).unwrap()).unwrap());
        let sparse = |name: &str| {
            let path = dir.path().join(name);
            let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            file.set_len(BYTES).unwrap();
            file.write_all_at(b"as it was", 1 << 20).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o444)).unwrap();
            (file, path)
        };
        let check = |memory: &Memory| {
            let metadata = memory.metadata().unwrap();
            assert_eq!((metadata.len(), metadata.blocks() * 512), (BYTES, BYTES));
            assert_eq!(metadata.mode() & 0o777, 0o444);
            let mut bytes = [0; 9];
            memory.read_exact_at(&mut bytes, 1 << 20).unwrap();
            assert_eq!(&bytes, b"as it was");
        };
        let home = dir.path().join("frozen");
        let (file, path) = sparse("frozen just now");
        check(&Memory::moved(file, &path, &home).unwrap());
        let (_, path) = sparse("kept there");
        check(&Memory::load(&path, &Home::Disk(home.clone())).unwrap());
        let elsewhere = tempfile::tempdir().unwrap();
        let kept = elsewhere.path().join("kept");
        fs::copy(&path, &kept).unwrap();
        check(&Memory::load(&kept, &Home::Disk(home.clone())).unwrap());
        assert_eq!(fs::read_dir(home).unwrap().count(), 0);
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
