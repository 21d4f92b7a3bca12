//! The tar format, as far as the readers of streams and of image layers share it: headers of old tar, ustar and GNU,
//! PAX records, and maps of sparse files. Pure; each reader adds its own limits.

use std::io;

use tar::Header;

pub mod pax;
pub mod sparse;

/// Bytes of a block. A header is one block, contents are padded to whole blocks.
pub const BLOCK_BYTES: u64 = 512;
/// Largest size of a file: Linux counts in signed integers of 64 bits.
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;
/// Largest id of a user or group, as everywhere in this workspace. The last of 32 bits means "no change" to chown(2).
pub const MAX_ID: u32 = i32::MAX as u32;

/// The header in a block; `None` if its checksum is wrong.
pub fn header(block: &[u8; 512]) -> Option<Header> {
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    // The sum is taken with blanks in its own field.
    let bytes = block.iter().enumerate();
    let sum: u32 =
        bytes.map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum();
    (header.cksum().ok() == Some(sum)).then_some(header)
}

/// Whether a block ends the archive.
pub fn is_end(block: &[u8; 512]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Bytes that follow `size` bytes of content, up to the end of the last block.
pub fn padding(size: u64) -> u64 {
    (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES
}

/// The size that a header states; `None` if no file has it.
pub fn size(header: &Header) -> Option<u64> {
    number(&header.as_old().size, header.entry_size()).filter(|size| *size <= MAX_FILE_BYTES)
}

/// Permissions, set-id and sticky bits.
pub fn mode(header: &Header) -> Option<u16> {
    let mode = number(&header.as_old().mode, header.mode().map(u64::from))?;
    u16::try_from(mode & 0o7777).ok()
}

/// The owner's number, not checked.
pub fn uid(header: &Header) -> Option<u64> {
    number(&header.as_old().uid, header.uid())
}

/// The group's number, not checked.
pub fn gid(header: &Header) -> Option<u64> {
    number(&header.as_old().gid, header.gid())
}

/// Seconds since 1970. Times before are two's complement in 64 bits.
pub fn mtime(header: &Header) -> Option<i64> {
    number(&header.as_old().mtime, header.mtime()).map(u64::cast_signed)
}

/// `number`, if it is the id of a user or group.
pub fn checked_id(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|id| *id <= MAX_ID)
}

/// A number of a header. Programs exist that leave it blank where it is zero.
fn number<const N: usize>(field: &[u8; N], decoded: io::Result<u64>) -> Option<u64> {
    let is_blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
    if is_blank { Some(0) } else { decoded.ok() }
}

/// A number in decimal digits alone.
fn decimal(text: &[u8]) -> Option<u64> {
    let is_plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_plain.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_at_the_limit_and_not_past_it() {
        assert_eq!(checked_id(2_147_483_647), Some(MAX_ID));
        assert_eq!(checked_id(2_147_483_648), None);
        assert_eq!(checked_id(u64::from(u32::MAX) + 1), None);
    }

    #[test]
    fn sizes_hold_at_the_limit_and_not_past_it() {
        let of = |size| {
            let mut header = Header::new_gnu();
            header.set_size(size);
            super::size(&header)
        };
        assert_eq!(of(MAX_FILE_BYTES), Some(MAX_FILE_BYTES));
        assert_eq!((of(MAX_FILE_BYTES + 1), of(u64::MAX)), (None, None));
        assert_eq!([0, 1, 511, 512, 513, MAX_FILE_BYTES].map(padding), [0, 511, 1, 0, 511, 1]);
    }
}
