//! The entries of a tar stream: old tar, ustar, GNU and PAX. Unlike the iterator of the `tar` crate, which decodes the
//! headers, this reads extensions only up to a limit: a hostile stream cannot fill our memory.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

const BLOCK: usize = 512;
/// A long name or target: more than any path has.
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
    /// A file with holes as PAX stores it.
    #[error("`{0}` is stored as a sparse file of the PAX format, which is not supported")]
    PaxSparse(String),
}

/// An entry, whose content follows in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) link: Option<PathBuf>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    /// Size of the file with its holes.
    pub(crate) size: u64,
    /// Where its data is, as offset and length; `None`: everywhere.
    pub(crate) parts: Option<Vec<(u64, u64)>>,
    /// Bytes of content in the stream.
    stored: u64,
}

/// Values of extension headers, for the entry that follows them.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    is_sparse: bool,
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
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|_| ReadError::Field(at, "size"))?;
            if kind.is_gnu_longname() {
                said.path = Some(self.name(at, size)?);
            } else if kind.is_gnu_longlink() {
                said.link = Some(self.name(at, size)?);
            } else if kind.is_pax_local_extensions() {
                let records = self.extension(at, size, MAX_PAX_BYTES)?;
                said.take(at, &records)?;
            } else if kind.is_pax_global_extensions() {
                self.extension(at, size, MAX_PAX_BYTES)?;
            } else {
                return self.entry(at, &header, size, said).map(Some);
            }
        }
    }

    fn entry(&mut self, at: u64, header: &Header, size: u64, said: Said) -> Result<Entry, ReadError> {
        let path = said.path.unwrap_or_else(|| header.path_bytes().into_owned());
        if said.is_sparse {
            return Err(ReadError::PaxSparse(String::from_utf8_lossy(&path).into_owned()));
        }
        let kind = header.entry_type();
        let link = said.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let number = |value: u64, field| u32::try_from(value).map_err(|_| ReadError::Field(at, field));
        let of = |value: io::Result<u64>, field| value.map_err(|_| ReadError::Field(at, field));
        // Only files have content: old implementations give links the size of their target.
        let has_content = kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse();
        let stored = if has_content { said.size.unwrap_or(size) } else { 0 };
        let mut entry = Entry {
            mode: header.mode().map_err(|_| ReadError::Field(at, "mode"))? & 0o7777,
            uid: number(said.uid.map_or_else(|| of(header.uid(), "uid"), Ok)?, "uid")?,
            gid: number(said.gid.map_or_else(|| of(header.gid(), "gid"), Ok)?, "gid")?,
            mtime: match said.mtime {
                Some(mtime) => mtime,
                None => i64::try_from(of(header.mtime(), "time")?).unwrap_or(i64::MAX),
            },
            path: path_of(path),
            link: link.map(path_of),
            kind,
            size: stored,
            parts: None,
            stored,
        };
        if kind.is_gnu_sparse() {
            self.sparse(at, header, &mut entry)?;
        }
        self.content = entry.stored;
        self.padding = entry.stored.next_multiple_of(BLOCK as u64) - entry.stored;
        Ok(entry)
    }

    fn sparse(&mut self, at: u64, header: &Header, entry: &mut Entry) -> Result<(), ReadError> {
        let wrong = || ReadError::Field(at, "map of a sparse file");
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        entry.size = gnu.real_size().map_err(|_| wrong())?;
        let mut parts = Vec::new();
        let mut add = |list: &[GnuSparseHeader]| {
            for part in list.iter().filter(|part| !part.is_empty()) {
                let part = (part.offset().map_err(|_| wrong())?, part.length().map_err(|_| wrong())?);
                parts.push(part);
            }
            if parts.len() > MAX_PARTS { Err(wrong()) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.exact(extension.as_mut_bytes())?;
            add(extension.sparse())?;
            more = extension.is_extended();
        }
        // In order, within the file, and no more and no less than is stored.
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, length) in &parts {
            let next = offset.checked_add(*length).filter(|next| *next <= entry.size);
            end = next.filter(|_| *offset >= end).ok_or_else(wrong)?;
            sum += length;
        }
        if sum != entry.stored {
            return Err(wrong());
        }
        entry.parts = Some(parts);
        Ok(())
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
        let mut block = [0; BLOCK];
        let mut length = 0;
        while length < BLOCK {
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
            BLOCK => {}
            0 if self.at > 0 => return Ok(None),
            _ if self.at == 0 => return Err(ReadError::NoHeader(0)),
            _ => return Err(ReadError::Truncated),
        }
        if block.iter().all(|byte| *byte == 0) {
            // The rest is padding. It is read too: a writer whose stream is closed early would fail.
            io::copy(&mut self.stream, &mut io::sink()).map_err(ReadError::Read)?;
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(ReadError::NoHeader(self.at));
        }
        self.at += BLOCK as u64;
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
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
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

impl Said {
    fn take(&mut self, at: u64, records: &[u8]) -> Result<(), ReadError> {
        let wrong = || ReadError::Field(at, "PAX record");
        let mut left = records;
        while !left.is_empty() {
            let (key, value, rest) = record(left).ok_or_else(wrong)?;
            left = rest;
            let text = || std::str::from_utf8(value).map_err(|_| wrong());
            let number = || text()?.parse::<u64>().map_err(|_| wrong());
            match key {
                b"path" => self.path = Some(value.to_owned()),
                b"linkpath" => self.link = Some(value.to_owned()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    let text = text()?;
                    let whole = text.split('.').next().unwrap_or(text);
                    self.mtime = Some(whole.parse().map_err(|_| wrong())?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first of PAX records, and those after it: `LENGTH KEY=VALUE` and a newline. A value may have newlines.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
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
