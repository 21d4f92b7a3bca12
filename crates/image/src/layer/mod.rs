//! A layer: from what was transferred to an archive on disk that is what the image says it is.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::Limits;
use crate::digest::Digest;
use crate::limits::FREE_BYTES;

pub(crate) mod entries;
mod pax;
mod zstd;

#[cfg(test)]
mod tests;

/// Read at a time.
const PIECE_BYTES: usize = 128 << 10;

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file failed: what was transferred, or what it unpacks to.
    #[error("could not unpack the layer `{layer}`")]
    Unpack {
        /// Its digest.
        layer: Digest,
        /// The cause; a damaged compression is told here too.
        #[source]
        source: io::Error,
    },
    /// What was transferred is not what the manifest names.
    #[error("the layer `{layer}` was transferred as `{found}`")]
    Digest {
        /// Its digest in the manifest.
        layer: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// What it unpacks to is not what the image's configuration names.
    #[error("the layer `{layer}` unpacks to `{found}`, but the image's configuration says `{expected}`")]
    DiffId {
        /// Its digest in the manifest.
        layer: Digest,
        /// What the configuration says.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// It is larger than a layer may be.
    #[error("the layer `{layer}` has more than the limit of {max_bytes} bytes")]
    TooLarge {
        /// Its digest.
        layer: Digest,
        /// The limit.
        max_bytes: u64,
    },
    /// The image is larger than an image may be.
    #[error("the layers of the image have more than the limit of {max_bytes} bytes")]
    ImageTooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// It unpacks to so much more than was transferred that this can only be meant.
    #[error("the layer `{layer}` unpacks to more than {max_ratio} times its size")]
    Bomb {
        /// Its digest.
        layer: Digest,
        /// The limit.
        max_ratio: u64,
    },
}

/// An archive in a file that has no name: it is gone when this is, whatever happens.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) file: File,
    pub(crate) len: u64,
}

/// What the layers of one image may unpack to, together.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), used: AtomicU64::new(0) }
    }

    fn take(&self, layer: &Digest, bytes: u64, so_far: u64, transferred: u64) -> Result<(), LayerError> {
        let Limits { max_layer_bytes, max_image_bytes, max_compression_ratio, .. } = self.limits;
        if so_far > max_layer_bytes {
            return Err(LayerError::TooLarge { layer: layer.clone(), max_bytes: max_layer_bytes });
        }
        if so_far > FREE_BYTES && so_far / max_compression_ratio.max(1) > transferred {
            return Err(LayerError::Bomb { layer: layer.clone(), max_ratio: max_compression_ratio });
        }
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used > max_image_bytes {
            return Err(LayerError::ImageTooLarge { max_bytes: max_image_bytes });
        }
        Ok(())
    }
}

/// Unpacks what was transferred into a file in `dir`, and checks that it is what `layer` and `diff_id` say.
pub(crate) fn unpack(
    transferred: &File,
    layer: &Digest,
    diff_id: &Digest,
    dir: &Path,
    budget: &Budget,
) -> Result<Unpacked, LayerError> {
    let failed = |source| LayerError::Unpack { layer: layer.clone(), source };
    let transferred_bytes = transferred.metadata().map_err(failed)?.len();
    let mut from = Hashing::new(transferred);
    from.file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut file = tempfile::tempfile_in(dir).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut len: u64 = 0;
    {
        let mut unpacker = unpacker(&mut from).map_err(failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = unpacker.read(&mut piece).map_err(failed)?;
            if read == 0 {
                break;
            }
            len += read as u64;
            budget.take(layer, read as u64, len, transferred_bytes)?;
            hasher.update(&piece[..read]);
            file.write_all(&piece[..read]).map_err(failed)?;
        }
    }
    // A stream may end before its file does; all of the file was named.
    let found = from.finish().map_err(failed)?;
    if found != *layer {
        return Err(LayerError::Digest { layer: layer.clone(), found });
    }
    let found = Digest::from_hasher(hasher);
    if found != *diff_id {
        return Err(LayerError::DiffId { layer: layer.clone(), expected: diff_id.clone(), found });
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(Unpacked { file, len })
}

/// A reader of the archive in a stream whose compression is told by its magic number: media types are known to lie,
/// and the digest of the result decides.
fn unpacker<'a>(from: &'a mut Hashing<'_>) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    from.take(4).read_to_end(&mut start)?;
    let kind = start.clone();
    let whole = BufReader::with_capacity(PIECE_BYTES, io::Cursor::new(start).chain(from));
    Ok(match kind[..] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(zstd::Frames::new(whole)),
        _ => Box::new(whole),
    })
}

/// Reads a file and takes the digest of what was read.
struct Hashing<'a> {
    file: &'a File,
    hasher: Sha256,
}

impl<'a> Hashing<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, hasher: Sha256::new() }
    }

    /// The digest of the whole file.
    fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_hasher(self.hasher))
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
