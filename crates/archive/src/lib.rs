//! Trees of files as tar streams: [`pack`] writes one, [`unpack`] makes files of one below a directory.
//!
//! The guest and `bouvet cp` share this crate, each for one end of a copy. A stream may come from a hostile guest:
//! with [`Links::Refuse`] no entry leaves the destination directory, whatever names and links it has.

mod chunks;
mod entries;
pub mod format;
mod pack;
mod unpack;

pub use self::chunks::{ChunkReader, ChunkWriter};
pub use self::entries::ReadError;
pub use self::pack::{PackError, Source, pack};
pub use self::unpack::{Destination, Links, Owner, UnpackError, unpack};

/// The name that stands for the packed directory itself: only its content has names then.
pub const CONTENT: &str = ".";

/// Something that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path of the file, as its tree has it. May have any characters.
    pub path: String,
    /// The reason, as a sentence's end: `is a socket`.
    pub reason: String,
}

/// Words for a kind of file that cannot be copied.
fn special(kind: rustix::fs::FileType) -> &'static str {
    match kind {
        rustix::fs::FileType::Fifo => "is a named pipe",
        rustix::fs::FileType::Socket => "is a socket",
        rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::BlockDevice => "is a device",
        _ => "is neither a file nor a directory",
    }
}
