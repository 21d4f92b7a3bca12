//! Files with holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;

use rustix::fs::SeekFrom;

/// Where `file` has data, in order. What lies between reads as zeros, and takes no space.
pub(crate) fn extents(file: &File) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut at = 0;
    std::iter::from_fn(move || match extent(file, at) {
        Ok(Some(extent)) => {
            at = extent.end;
            Some(Ok(extent))
        }
        Ok(None) => None,
        Err(error) => Some(Err(error)),
    })
}

fn extent(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    match rustix::fs::seek(file.as_fd(), SeekFrom::Data(from)) {
        Ok(data) => Ok(Some(data..rustix::fs::seek(file.as_fd(), SeekFrom::Hole(data))?)),
        // Nothing but a hole is left, or nothing at all (lseek(2)).
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn data_is_found_and_holes_are_not() {
        let file = tempfile::tempfile().unwrap();
        let found = || extents(&file).collect::<io::Result<Vec<_>>>().unwrap();
        assert_eq!(found(), []);
        file.set_len(64 << 20).unwrap();
        assert_eq!(found(), []);
        file.write_all_at(&[1; 4096], 8 << 20).unwrap();
        file.write_all_at(&[1; 4096], (64 << 20) - 4096).unwrap();
        assert_eq!(found(), [8 << 20..(8 << 20) + 4096, (64 << 20) - 4096..64 << 20]);
    }
}
