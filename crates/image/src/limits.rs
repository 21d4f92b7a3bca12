//! Bounds on what an image may make us do. Whoever made it is not trusted.

/// What an image may cost. The defaults hold any image that is of use in a VM.
///
/// ```
/// use bouvet_image::{ImagesOptions, Limits};
///
/// let limits = Limits { max_image_bytes: 1 << 30, ..Limits::default() };
/// assert!(limits.max_image_bytes < Limits::default().max_image_bytes);
/// let options = ImagesOptions { limits, ..ImagesOptions::default() };
/// ```
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one layer, as it is transferred and as it is unpacked.
    pub max_layer_bytes: u64,
    /// Bytes of all layers unpacked, and of all files of the merged tree.
    pub max_image_bytes: u64,
    /// Entries in all layers together, and directories that their paths make without an entry of their own.
    pub max_entries: u64,
    /// Bytes of names, link targets and extended attributes in all layers together: they are held in memory.
    pub max_metadata_bytes: u64,
    /// How many times larger than transferred a layer may be, beyond its first 64 MiB.
    pub max_compression_ratio: u64,
    /// Layers of an image.
    pub max_layers: usize,
}

/// What a layer may unpack to however little was transferred: ten thousand empty files compress well.
pub(crate) const FREE_BYTES: u64 = 64 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layer_bytes: 16 << 30,
            max_image_bytes: 32 << 30,
            max_entries: 1_000_000,
            max_metadata_bytes: 256 << 20,
            max_compression_ratio: 200,
            max_layers: 256,
        }
    }
}

/// Bytes of a manifest, an index or an image's configuration. Registries refuse larger ones too.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Bytes of a path, of a part of it, and of what a link holds (Linux: `PATH_MAX`, `NAME_MAX`).
pub(crate) const MAX_PATH: usize = 4096;
pub(crate) const MAX_NAME: usize = 255;
pub(crate) const MAX_LINK_TARGET: usize = 4095;
/// Bytes of one extension header of an archive: a long name, or PAX records.
pub(crate) const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Parts of the path to one entry, with those of the links that are followed. Each is looked up, for each entry.
pub(crate) const MAX_PATH_PARTS: usize = 1024;
/// Stretches of data in one file. A stretch takes two numbers of a header of old GNU tar, 24 bytes.
#[expect(clippy::cast_possible_truncation, reason = "1 MiB fits into every usize")]
pub(crate) const MAX_PARTS: usize = MAX_EXTENSION_BYTES as usize / 24;
/// Links that are followed on the way to one entry (Linux: `MAXSYMLINKS`).
pub(crate) const MAX_LINKS_FOLLOWED: usize = 40;
/// Bytes of one extended attribute (one less than Linux' `XATTR_SIZE_MAX`, as 16 bits hold it), and of all that
/// one file has.
pub(crate) const MAX_XATTR_BYTES: usize = 65_535;
pub(crate) const MAX_XATTRS_BYTES: usize = 65_536;
/// Numbers of devices (Linux: `MKDEV`).
pub(crate) const MAX_DEVICE_MAJOR: u32 = (1 << 12) - 1;
pub(crate) const MAX_DEVICE_MINOR: u32 = (1 << 20) - 1;
