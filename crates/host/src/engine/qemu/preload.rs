//! The library that maps the memory of clones: its source, and why there is one, is in `preload/clone_memory.rs`.

use std::fs::File;
use std::io::{self, Write as _};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;

static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clone_memory.so"));
/// Byte that the library writes when it has mapped a memory.
const MAPPED: u8 = b'm';
/// Time that QEMU may take until then.
const MAPPED_DEADLINE: Duration = Duration::from_secs(30);

/// The library as a file without a name, which nobody can change.
pub(super) fn library() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("bouvet-preload", flags)?);
    file.write_all(LIBRARY)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file)
}

/// The variable by which a program loads the library from its descriptor `fd`.
pub(super) fn variable(fd: i32) -> (&'static str, String) {
    ("LD_PRELOAD", format!("/proc/self/fd/{fd}"))
}

/// Waits until the library has mapped the memory, by the standard output of its QEMU. The dynamic linker only warns when it
/// cannot load a library, and the clone would fill its template's holes.
pub(super) async fn mapped(mut output: ChildStdout) -> io::Result<()> {
    let word = tokio::time::timeout(MAPPED_DEADLINE, output.read_u8());
    match word.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))? {
        MAPPED => Ok(()),
        other => Err(io::Error::other(format!("it wrote the byte {other} instead"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;
    use crate::confine::{Confinement, Spawner, Spec};
    use crate::engine::memory::{self, Memory};

    const BYTES: usize = 8 << 20;
    const DATA_AT: usize = 3 << 20;
    /// Names the descriptor of a memory to the process that maps it.
    const MEMORY_FD: &str = "BOUVET_TEST_MEMORY_FD";

    /// Maps a memory as QEMU does, and writes to every page: in a process of its own, which a test starts.
    #[test]
    fn process_writes_to_its_mapping() {
        let Some(fd) = std::env::var_os(MEMORY_FD) else { return };
        let path = std::path::Path::new("/proc/self/fd").join(fd);
        let file = File::options().read(true).write(true).open(path).unwrap();
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        #[expect(unsafe_code, reason = "the library replaces a function of the C library")]
        // SAFETY: the mapping is this test's own, as long as the file, and never unmapped.
        let bytes = unsafe {
            let base = libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, file.as_raw_fd(), 0);
            assert_ne!(base, libc::MAP_FAILED);
            std::slice::from_raw_parts_mut(base.cast::<u8>(), BYTES)
        };
        let end = DATA_AT + b"template".len();
        assert_eq!(&bytes[DATA_AT..end], b"template");
        assert!(bytes[..DATA_AT].iter().chain(&bytes[end..]).all(|byte| *byte == 0), "holes are zeros");
        bytes.iter_mut().step_by(4096).for_each(|byte| *byte = 7);
        let mut kept = [0; 8];
        file.read_exact_at(&mut kept, DATA_AT as u64).unwrap();
        assert_eq!(&kept, b"template", "what is written is this process's own");
    }

    async fn template_after_use(preloads: bool) -> (u64, u64) {
        let file = memory::create(u32::try_from(BYTES >> 20).unwrap()).unwrap();
        file.write_all_at(b"template", DATA_AT as u64).unwrap();
        let memory = Memory::sealed(file).unwrap();
        let before = memory.metadata().unwrap().blocks();
        let spawner = Spawner::start().unwrap();
        let fds = vec![memory.try_clone().unwrap().into(), library().unwrap().into()];
        let mut env = vec![(MEMORY_FD, spawner.fd(0).to_string())];
        env.extend(preloads.then(|| variable(spawner.fd(1))));
        let test = "engine::qemu::preload::tests::process_writes_to_its_mapping";
        let args = ["--exact", test].map(Into::into).into();
        let program = std::env::current_exe().unwrap();
        let spec = Spec { program, args, fds, env, ..Spec::default() };
        let status = spawner.spawn(spec, Confinement::default()).await.unwrap().wait().await.unwrap();
        assert!(status.success(), "{status}");
        (before * 512, memory.metadata().unwrap().blocks() * 512)
    }

    #[tokio::test]
    async fn clones_fill_no_holes_of_their_template() {
        assert_eq!(template_after_use(true).await, (4096, 4096));
        // The reason for the library: the kernel's own mapping fills all holes of the file.
        assert_eq!(template_after_use(false).await, (4096, BYTES as u64));
    }

    #[tokio::test]
    async fn missing_library_is_an_error() {
        let spawner = Spawner::start().unwrap();
        let say = async |script: &str| {
            let args = vec!["-c".into(), script.into()];
            let spec = Spec { program: "/bin/sh".into(), args, output: true, ..Spec::default() };
            let mut child = spawner.spawn(spec, Confinement::default()).await.unwrap();
            mapped(child.stdout.take().unwrap()).await
        };
        say("printf m").await.unwrap();
        assert_eq!(say("true").await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(say("printf x").await.unwrap_err().to_string().contains("120"));
    }
}
