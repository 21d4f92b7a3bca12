//! Whether a root file system is the one that was written.
//!
//! The length and the times of the file are compared at every use, its digest where these differ from what was noted:
//! whatever writes to a file through its file system changes them. A device that loses bits does not; the digest of every
//! image is compared by [`Images::verify`](crate::Images::verify).

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::record::Broken;
use crate::digest::Digest;
use crate::erofs;

/// Read at a time; a multiple of [`BLOCK`].
const PIECE_BYTES: u64 = 1 << 20;
/// Blocks of zeros are left out: they may be holes.
const BLOCK: u64 = 4096;

/// By which it is noticed that a file has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds, as below.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a root file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    bytes: u64,
    /// Of its data, as [`digest`] has it.
    digest: Digest,
    /// Of the file when its digest was taken.
    stamp: Stamp,
}

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The length alone.
    Length,
    /// Length and times, and the digest where these have changed.
    Quick,
    /// The digest too.
    Whole,
}

/// A root file system that is sound.
#[derive(Debug)]
pub(crate) struct Sound {
    /// What it takes on disk.
    pub(crate) size_bytes: u64,
    /// What is to be noted of it instead of what is.
    pub(crate) renewed: Option<Seal>,
}

/// Compares the root file system at `path` with what is noted of it; `None`: version 0.1.0 wrote it, which noted nothing.
pub(crate) fn check(path: &Path, seal: Option<&Seal>, depth: Depth) -> Result<Sound, Broken> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let reading = |error| Broken::reading(&name, error);
    let file = File::open(path).map_err(reading)?;
    let metadata = file.metadata().map_err(reading)?;
    if !metadata.is_file() {
        return Err(Broken::reading(&name, io::ErrorKind::IsADirectory.into()));
    }
    let wrong = |bytes| Broken::Damaged(format!("`{name}` has {} bytes instead of {bytes}", metadata.len()));
    let size_bytes = metadata.blocks() * 512;
    let stamp = Stamp::from(&metadata);
    let Some(seal) = seal else {
        match erofs::stated_bytes(&file).map_err(reading)? {
            None => return Err(Broken::Damaged(format!("`{name}` is not a root file system"))),
            Some(bytes) if bytes != metadata.len() => return Err(wrong(bytes)),
            Some(_) if depth == Depth::Length => return Ok(Sound { size_bytes, renewed: None }),
            Some(_) => {}
        }
        let digest = digest(&file).map_err(reading)?;
        return Ok(Sound { size_bytes, renewed: Some(Seal { bytes: metadata.len(), digest, stamp }) });
    };
    if seal.bytes != metadata.len() {
        return Err(wrong(seal.bytes));
    }
    if depth == Depth::Length || depth == Depth::Quick && seal.stamp == stamp {
        return Ok(Sound { size_bytes, renewed: None });
    }
    if digest(&file).map_err(reading)? != seal.digest {
        return Err(Broken::Damaged(format!("`{name}` has another content than its checksum says")));
    }
    let renewed = (seal.stamp != stamp).then(|| Seal { stamp, ..seal.clone() });
    Ok(Sound { size_bytes, renewed })
}

/// What is to be noted of a root file system that was written.
pub(crate) fn seal(file: &File) -> io::Result<Seal> {
    let digest = digest(file)?;
    let metadata = file.metadata()?;
    Ok(Seal { bytes: metadata.len(), digest, stamp: Stamp::from(&metadata) })
}

/// The digest of a file's data: of the number and the content of each block that is not all zeros, and of its length.
fn digest(file: &File) -> io::Result<Digest> {
    let length = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut piece = vec![0; usize::try_from(PIECE_BYTES).unwrap_or_default()];
    let mut at = 0;
    while at < length {
        // A hole is passed in one step.
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let room = usize::try_from(PIECE_BYTES.min(length - at)).unwrap_or(piece.len());
        file.read_exact_at(&mut piece[..room], at)?;
        for block in piece[..room].chunks(usize::try_from(BLOCK).unwrap_or(1)) {
            if block.iter().any(|byte| *byte != 0) {
                hasher.update((at / BLOCK).to_le_bytes());
                hasher.update(block);
            }
            at += block.len() as u64;
        }
    }
    hasher.update(length.to_le_bytes());
    Ok(Digest::from_hasher(hasher))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_of_data_wherever_holes_are() {
        let (sparse, full) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut content = vec![0; 3 << 20];
        content[(1 << 20) - 1] = 1;
        content[(2 << 20) + 5000] = 2;
        full.write_all_at(&content, 0).unwrap();
        sparse.set_len(content.len() as u64).unwrap();
        sparse.write_all_at(&[1], (1 << 20) - 1).unwrap();
        sparse.write_all_at(&[2], (2 << 20) + 5000).unwrap();
        let whole = digest(&full).unwrap();
        assert_eq!(digest(&sparse).unwrap(), whole);
        // The same block elsewhere, one bit, and the length are told apart.
        sparse.set_len(content.len() as u64 + BLOCK).unwrap();
        assert_ne!(digest(&sparse).unwrap(), whole);
        full.write_all_at(&[3], (2 << 20) + 5000).unwrap();
        assert_ne!(digest(&full).unwrap(), whole);
        content[(2 << 20) + 5000] = 0;
        content[(2 << 20) + 5000 + 4096] = 2;
        full.write_all_at(&content, 0).unwrap();
        assert_ne!(digest(&full).unwrap(), whole);
    }
}
