//! A layer: from what was transferred to an archive on disk that is what the image says it is.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
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

impl Budget {
    /// Takes back what a layer used that was not unpacked whole.
    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A layer as it was transferred.
pub(crate) struct Transferred<R> {
    pub(crate) from: R,
    pub(crate) bytes: u64,
    /// What it must be, if that is known.
    pub(crate) digest: Option<Digest>,
    /// What its archive must be.
    pub(crate) diff_id: Digest,
}

impl<R> Transferred<R> {
    /// By which it is known.
    pub(crate) fn name(&self) -> &Digest {
        self.digest.as_ref().unwrap_or(&self.diff_id)
    }
}

/// Unpacks a layer into a file in `dir`, and checks that it is what the image says.
pub(crate) fn unpack<R: Read>(
    layer: Transferred<R>,
    dir: &Path,
    budget: &Budget,
) -> Result<Unpacked, LayerError> {
    let mut used = 0;
    let unpacked = unpack_counted(layer, dir, budget, &mut used);
    if unpacked.is_err() {
        // It may be unpacked again from another copy.
        budget.give_back(used);
    }
    unpacked
}

fn unpack_counted<R: Read>(
    layer: Transferred<R>,
    dir: &Path,
    budget: &Budget,
    used: &mut u64,
) -> Result<Unpacked, LayerError> {
    let name = layer.name().clone();
    let Transferred { from, bytes, digest, diff_id } = layer;
    let failed = |source| LayerError::Unpack { layer: name.clone(), source };
    let mut from = Hashing { from, hasher: Sha256::new() };
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
            budget.take(&name, read as u64, len, bytes)?;
            *used = len;
            hasher.update(&piece[..read]);
            file.write_all(&piece[..read]).map_err(failed)?;
        }
    }
    // A stream may end before what was transferred does; the digest is of all of it.
    let found = from.finish().map_err(failed)?;
    if digest.is_some_and(|digest| found != digest) {
        return Err(LayerError::Digest { layer: name, found });
    }
    let found = Digest::from_hasher(hasher);
    if found != diff_id {
        return Err(LayerError::DiffId { layer: name, expected: diff_id, found });
    }
    Ok(Unpacked { file, len })
}

/// Unpacks an archive of which no digest is known into a file in `dir`.
pub(crate) fn inflate(from: impl Read, dir: &Path, max_bytes: u64) -> io::Result<Unpacked> {
    let mut from = Hashing { from, hasher: Sha256::new() };
    let mut file = tempfile::tempfile_in(dir)?;
    let len = io::copy(&mut unpacker(&mut from)?.take(max_bytes.saturating_add(1)), &mut file)?;
    if len > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {max_bytes} bytes"),
        ));
    }
    Ok(Unpacked { file, len })
}

/// Whether a file that starts so is compressed in a way that layers are.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    matches!(start, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// A reader of the archive in a stream whose compression is told by its magic number: media types are known to lie,
/// and the digest of the result decides.
fn unpacker<'a, R: Read>(from: &'a mut Hashing<R>) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    from.take(4).read_to_end(&mut start)?;
    let gzip = start.starts_with(&[0x1f, 0x8b]);
    let compressed = is_compressed(&start);
    let whole = BufReader::with_capacity(PIECE_BYTES, io::Cursor::new(start).chain(from));
    Ok(match (compressed, gzip) {
        (true, true) => Box::new(MultiGzDecoder::new(whole)),
        (true, false) => Box::new(zstd::Frames::new(whole)),
        (false, _) => Box::new(whole),
    })
}

/// Reads, and takes the digest of what was read.
struct Hashing<R> {
    from: R,
    hasher: Sha256,
}

impl<R: Read> Hashing<R> {
    /// The digest of all there is to read.
    fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_hasher(self.hasher))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
