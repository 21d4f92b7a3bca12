//! Answers in the FUSE protocol.

use bytes::Bytes;
use rustix::fs::{FileType, Stat, StatVfs};
use rustix::io::Errno;

use super::owners::Owners;
use super::tree::Opened;

const HEADER_BYTES: usize = 16;
/// How long a guest may take a name or attributes for what they were. Within this time it sees what others changed.
const VALID_SECONDS: u64 = 1;
/// A file that is closed needs no word about it: nothing is written late, and there are no locks here. It also keeps
/// the guest's service, which must not wait for a volume, from waiting when it closes a file.
const NO_FLUSH: u32 = 1 << 5;
/// What the guest has read of a file before is still good.
const KEEP_CACHE: u32 = 1 << 1;
const PAGE_BYTES: usize = 4096;

/// The answer to one request, as it grows.
#[derive(Debug)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    pub(super) fn empty() -> Self {
        Self(vec![0; HEADER_BYTES])
    }

    /// `size` bytes that `fill` writes; it returns how many.
    pub(super) fn filled(
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Self, Errno> {
        let mut answer = vec![0; HEADER_BYTES + size];
        let filled = fill(&mut answer[HEADER_BYTES..])?;
        answer.truncate(HEADER_BYTES + filled);
        Ok(Self(answer))
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Bytes beside the header.
    pub(super) fn len(&self) -> usize {
        self.0.len() - HEADER_BYTES
    }

    /// A file by its node, with its attributes. Node 0, without attributes, is one that the guest is not to know.
    pub(super) fn entry(self, entry: Option<(u64, &Stat)>, owners: Owners) -> Self {
        let Some((node, stat)) = entry else { return self.bytes(&[0; 128]) };
        let generation = 0;
        self.u64(node)
            .u64(generation)
            .u64(VALID_SECONDS)
            .u64(VALID_SECONDS)
            .u32(0)
            .u32(0)
            .attributes(stat, owners)
    }

    pub(super) fn attr(self, stat: &Stat, owners: Owners) -> Self {
        self.u64(VALID_SECONDS).u32(0).u32(0).attributes(stat, owners)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are cut and times keep their bits, as by the kernel's own file systems"
    )]
    fn attributes(self, stat: &Stat, owners: Owners) -> Self {
        let (uid, gid) = owners.show(stat);
        self.u64(stat.st_ino)
            .u64(stat.st_size as u64)
            .u64(stat.st_blocks as u64)
            .u64(stat.st_atime as u64)
            .u64(stat.st_mtime as u64)
            .u64(stat.st_ctime as u64)
            .u32(stat.st_atime_nsec as u32)
            .u32(stat.st_mtime_nsec as u32)
            .u32(stat.st_ctime_nsec as u32)
            .u32(stat.st_mode)
            .u32(stat.st_nlink as u32)
            .u32(uid)
            .u32(gid)
            .u32(0) // which device it is: none that the guest has
            .u32(PAGE_BYTES as u32)
            .u32(0)
    }

    pub(super) fn opened(self, opened: Opened) -> Self {
        let keep = if opened.is_same { KEEP_CACHE } else { 0 };
        self.u64(opened.handle).u32(NO_FLUSH | keep).u32(0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "sizes of blocks and names are small")]
    pub(super) fn stat_fs(self, stat: &StatVfs) -> Self {
        let counts = [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree];
        let answer = counts.into_iter().fold(self, Self::u64);
        let sizes = [stat.f_bsize as u32, stat.f_namemax as u32, stat.f_frsize as u32, 0];
        sizes.into_iter().fold(answer, Self::u32).bytes(&[0; 24])
    }

    /// A name in a directory. `next` is where reading goes on behind it.
    #[expect(clippy::cast_possible_truncation, reason = "names are short")]
    pub(super) fn dirent(self, name: &[u8], ino: u64, kind: FileType, next: u64) -> Self {
        let kind = kind.as_raw_mode() >> 12;
        let answer = self.u64(ino).u64(next).u32(name.len() as u32).u32(kind).bytes(name);
        answer.bytes(&[0; 7][..name.len().next_multiple_of(8) - name.len()])
    }

    /// The message, as the answer to the request `unique`.
    pub(super) fn message(mut self, unique: u64) -> Bytes {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..16].copy_from_slice(&unique.to_ne_bytes());
        self.0.into()
    }
}

/// What a name takes in an answer about a directory.
pub(super) fn dirent_bytes(name: &[u8], plus: bool) -> usize {
    let entry = if plus { 128 } else { 0 };
    entry + 24 + name.len().next_multiple_of(8)
}

/// The message that says that the request `unique` failed.
pub(super) fn failure(unique: u64, error: Errno) -> Bytes {
    let mut message = Answer::empty();
    // The kernel takes no others than those that have a name.
    let error = error.raw_os_error().clamp(1, 511);
    message.0[4..8].copy_from_slice(&(-error).to_ne_bytes());
    message.message(unique)
}
