//! The entries of a tar stream: old tar, ustar, GNU and PAX. Unlike the iterator of the `tar` crate, which decodes the
//! headers, this reads extensions only up to a limit: a hostile stream cannot fill our memory.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use tar::{EntryType, Header};

use crate::format::pax::{self, Pax};
use crate::format::sparse::{self, Part, Sparse};
use crate::format::{self, BLOCK_BYTES};

/// A path or the target of a link (Linux: `PATH_MAX`).
pub(crate) const MAX_PATH_BYTES: usize = 4096;
/// A long name or target as GNU tar stores it: more than any path has.
const MAX_NAME_BYTES: u64 = 8 * 1024;
/// All PAX records of an entry.
const MAX_PAX_BYTES: u64 = 1024 * 1024;
/// Parts of a file with holes. Each takes 16 bytes.
const MAX_PARTS: usize = 1024 * 1024;

/// Why a stream is not an archive.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream failed.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// It ends within an entry.
    #[error("the archive ends within an entry")]
    Truncated,
    /// It has no tar header where one must be.
    #[error("this is not a tar archive: there is no header at byte {0}")]
    NoHeader(u64),
    /// It is compressed.
    #[error("the archive is compressed by {0}")]
    Compressed(&'static str),
    /// A header has a field that cannot be.
    #[error("the header at byte {0} has an invalid {1}")]
    Field(u64, &'static str),
    /// An extension is larger than its limit.
    #[error("the extension at byte {at} has {size} bytes; {limit} are allowed")]
    Extension {
        /// Where it is.
        at: u64,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A path or the target of a link is longer than any on Linux.
    #[error("the header at byte {0} has a {1} of more than {MAX_PATH_BYTES} bytes")]
    TooLong(u64, &'static str),
}

/// An entry, whose content follows in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) link: Option<PathBuf>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    /// Numbers of the owner and the group, not checked.
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since 1970, and nanoseconds after them.
    pub(crate) mtime: (i64, u32),
    /// Size of the file with its holes.
    pub(crate) size: u64,
    /// Where its data is, as offset and length; `None`: everywhere.
    pub(crate) parts: Option<Vec<Part>>,
}

/// Fields of the entry that extensions before it state.
#[derive(Debug, Default, PartialEq)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

/// A stream, read entry by entry.
pub(crate) struct Entries<R> {
    stream: R,
    at: u64,
    /// Content of the last entry that was not read, and its padding.
    content: u64,
    padding: u64,
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, at: 0, content: 0, padding: 0 }
    }

    /// The next entry; `None` at the end, to which the stream is read.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut said = Said::default();
        loop {
            self.pass()?;
            let at = self.at;
            let Some(header) = self.header()? else {
                return if said == Said::default() { Ok(None) } else { Err(ReadError::Truncated) };
            };
            let kind = header.entry_type();
            let size = format::size(&header).ok_or(ReadError::Field(at, "size"))?;
            if kind.is_gnu_longname() {
                said.path = Some(self.name(at, size)?);
            } else if kind.is_gnu_longlink() {
                said.link = Some(self.name(at, size)?);
            } else if kind.is_pax_local_extensions() {
                let records = self.extension(at, size, MAX_PAX_BYTES)?;
                let parsed = pax::parse(&records, |_, _| Some(()));
                said.pax = parsed.ok_or(ReadError::Field(at, "PAX record"))?;
            } else if kind.is_pax_global_extensions() {
                self.extension(at, size, MAX_PAX_BYTES)?;
            } else {
                return self.entry(at, &header, size, said).map(Some);
            }
        }
    }

    fn entry(&mut self, at: u64, header: &Header, size: u64, said: Said) -> Result<Entry, ReadError> {
        let Said { path, link, pax } = said;
        let sparse_name = pax.sparse.as_ref().and_then(|records| records.name().map(<[u8]>::to_vec));
        let path = sparse_name.or(pax.path).or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.link.or(link).or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        for (bytes, field) in [(Some(&path), "name"), (link.as_ref(), "link target")] {
            if bytes.is_some_and(|bytes| bytes.len() > MAX_PATH_BYTES) {
                return Err(ReadError::TooLong(at, field));
            }
        }
        let kind = match header.entry_type() {
            // As tar had directories before it had a kind for them.
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let is_plain = kind.is_file() || kind.is_contiguous();
        // Only files have content: old implementations give links the size of their target.
        let stored = if is_plain || kind.is_gnu_sparse() { pax.size.unwrap_or(size) } else { 0 };
        let sparse = match &pax.sparse {
            Some(records) if is_plain => Some(records.read(stored, MAX_PARTS, |block| self.exact(block))?),
            _ if kind.is_gnu_sparse() => {
                Some(sparse::read_gnu(header, stored, MAX_PARTS, |block| self.exact(block))?)
            }
            _ => None,
        };
        let (size, parts, stored) = match sparse {
            Some(Some(Sparse { size, parts, stored })) => (size, Some(parts), stored),
            Some(None) => return Err(ReadError::Field(at, "map of a sparse file")),
            None => (stored, None, stored),
        };
        let wrong = |field| move || ReadError::Field(at, field);
        let mtime = pax.mtime.or_else(|| Some((format::mtime(header)?, 0)));
        let entry = Entry {
            path: path_of(path),
            link: link.map(path_of),
            kind,
            mode: format::mode(header).ok_or_else(wrong("mode"))?.into(),
            uid: pax.uid.or_else(|| format::uid(header)).ok_or_else(wrong("uid"))?,
            gid: pax.gid.or_else(|| format::gid(header)).ok_or_else(wrong("gid"))?,
            mtime: mtime.ok_or_else(wrong("time"))?,
            size,
            parts,
        };
        (self.content, self.padding) = (stored, format::padding(stored));
        Ok(entry)
    }

    /// Passes what is left of the last entry.
    fn pass(&mut self) -> Result<(), ReadError> {
        let left = self.content + self.padding;
        let passed =
            io::copy(&mut (&mut self.stream).take(left), &mut io::sink()).map_err(ReadError::Read)?;
        self.at += passed;
        (self.content, self.padding) = (0, 0);
        if passed == left { Ok(()) } else { Err(ReadError::Truncated) }
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let mut block = [0; 512];
        let mut length = 0;
        while length < block.len() {
            match self.stream.read(&mut block[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Read(error)),
            }
        }
        if self.at == 0
            && let Some(by) = compressed(&block)
        {
            return Err(ReadError::Compressed(by));
        }
        match length {
            512 => {}
            0 if self.at > 0 => return Ok(None),
            _ if self.at == 0 => return Err(ReadError::NoHeader(0)),
            _ => return Err(ReadError::Truncated),
        }
        if format::is_end(&block) {
            // What follows the end is padding. A writer that is not read to its end would fail.
            io::copy(&mut self.stream, &mut io::sink()).map_err(ReadError::Read)?;
            return Ok(None);
        }
        let header = format::header(&block).ok_or(ReadError::NoHeader(self.at))?;
        self.at += BLOCK_BYTES;
        Ok(Some(header))
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Truncated,
            _ => ReadError::Read(error),
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn extension(&mut self, at: u64, size: u64, limit: u64) -> Result<Vec<u8>, ReadError> {
        if size > limit {
            return Err(ReadError::Extension { at, size, limit });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.exact(&mut bytes)?;
        self.padding = format::padding(size);
        Ok(bytes)
    }

    fn name(&mut self, at: u64, size: u64) -> Result<Vec<u8>, ReadError> {
        let mut name = self.extension(at, size, MAX_NAME_BYTES)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }
}

/// The content of the last entry.
impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let length = self.stream.read(&mut buffer[..room])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= length as u64;
        self.at += length as u64;
        Ok(length)
    }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// The program that compresses such streams.
fn compressed(start: &[u8]) -> Option<&'static str> {
    match start {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        _ => None,
    }
}
