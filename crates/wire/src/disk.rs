//! A VM's disks, as both ends know them.

/// Serial number of the disk that all sandboxes share, read-only.
pub const BASE: &str = "base";
/// Serial number of a sandbox's own, writable disk: an ext4.
pub const SCRATCH: &str = "scratch";

/// Serial number of the read-only disk with the root of a sandbox's sidecar, where it has one.
pub const SIDECAR: &str = "sidecar";

/// The word on the kernel's command line that says that the scratch disk outlives the VM.
pub const DURABLE_WORD: &str = "bouvet.durable";

/// The name of the file system whose first 2 KiB these are, if it is one that the guest can mount.
///
/// By magic number: `s_magic` of ext4 at 1024 + 56, erofs' at 1024, squashfs' at 0 (the kernel's
/// `fs/ext4/ext4.h`, `fs/erofs/erofs_fs.h`, `fs/squashfs/squashfs_fs.h`).
pub fn file_system(start: &[u8; 2048]) -> Option<&'static str> {
    match start {
        s if s[1080..1082] == 0xEF53u16.to_le_bytes() => Some("ext4"),
        s if s[1024..1028] == 0xE0F5_E1E2u32.to_le_bytes() => Some("erofs"),
        s if s[..4] == *b"hsqs" => Some("squashfs"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::file_system;

    #[test]
    fn file_systems_are_told_by_their_magic() {
        let with = |at: usize, magic: &[u8]| {
            let mut start = [0; 2048];
            start[at..at + magic.len()].copy_from_slice(magic);
            file_system(&start)
        };
        assert_eq!(with(1080, b"\x53\xEF"), Some("ext4"));
        assert_eq!(with(1024, b"\xE2\xE1\xF5\xE0"), Some("erofs"));
        assert_eq!(with(0, b"hsqs"), Some("squashfs"));
        assert_eq!(with(0, b"MZ"), None);
    }
}
