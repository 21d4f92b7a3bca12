//! The entries of a layer: a tar archive in one of the formats of old tar, ustar, GNU and PAX.
//!
//! The headers are decoded by the `tar` crate. Going from one to the next is ours: its iterator reads extension
//! headers of any size into memory, and cuts PAX records at newlines, which the binary values of
//! `security.capability` may have. Nothing is unpacked, and contents are not even read: an entry says where in the
//! archive they are.

use std::io::{self, BufReader, Read, Seek};

use bouvet_archive::format;
use bouvet_archive::format::sparse::{self, Sparse};
use tar::{EntryType, Header};

use super::pax::{self, Pax};
use crate::digest::shortened;
use crate::limits::{
    MAX_DEVICE_MAJOR, MAX_DEVICE_MINOR, MAX_EXTENSION_BYTES, MAX_LINK_TARGET, MAX_NAME, MAX_PARTS, MAX_PATH,
};

/// What an entry says about itself beside its name and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permissions, set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_secs: i64,
    pub(crate) mtime_nanos: u32,
    /// Extended attributes by name, in order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the root, without `.`, `..` or empty parts; empty for the root itself.
    pub(crate) path: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) kind: EntryKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    File(Content),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    /// Which layer's archive has them.
    pub(crate) layer: usize,
    pub(crate) size: u64,
    /// Its data in order; between them are holes.
    pub(crate) extents: Vec<Extent>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where in the file.
    pub(crate) at: u64,
    /// Where in the archive.
    pub(crate) from: u64,
    pub(crate) len: u64,
}

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file that holds it failed.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// It ends in the middle of an entry.
    #[error("the archive ends at byte {0}, in the middle of an entry")]
    Truncated(u64),
    /// What should be a header is none.
    #[error("there is no header of an archive at byte {0}")]
    Garbage(u64),
    /// A field cannot be what it says.
    #[error("the header at byte {offset} has no valid {field}")]
    Field {
        /// Where the header is.
        offset: u64,
        /// Which field.
        field: &'static str,
    },
    /// Something is longer than file systems take.
    #[error("the header at byte {offset} has a {field} of more than {max} bytes")]
    TooLong {
        /// Where the header is.
        offset: u64,
        /// Which field.
        field: &'static str,
        /// The limit.
        max: u64,
    },
    /// It has more entries than an image may have.
    #[error("the layers have more entries and directories than the limit of {0}")]
    TooManyEntries(u64),
    /// Names and attributes take more memory than an image may.
    #[error("names and attributes in the layers take more than the limit of {0} bytes")]
    TooMuchMetadata(u64),
    /// A kind of entry, or a way to store it, that no image needs.
    #[error("the entry `{name}` is of an unsupported kind: {kind}")]
    Unsupported {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// A name that leads out of the tree.
    #[error("the entry `{0}` leads out of the file system")]
    Escapes(String),
}

/// What the layers of an image may still add.
#[derive(Debug)]
pub(crate) struct Allowance {
    max_entries: u64,
    max_metadata_bytes: u64,
    entries: u64,
    metadata_bytes: u64,
}

impl Allowance {
    pub(crate) fn new(limits: &crate::Limits) -> Self {
        let crate::Limits { max_entries, max_metadata_bytes, .. } = *limits;
        Self { max_entries, max_metadata_bytes, entries: 0, metadata_bytes: 0 }
    }

    /// Charges a file or directory to be held in memory. The limit, if that is one too many.
    pub(crate) fn take_one(&mut self) -> Result<(), u64> {
        self.entries += 1;
        if self.entries > self.max_entries { Err(self.max_entries) } else { Ok(()) }
    }

    fn take(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        self.take_one().map_err(ArchiveError::TooManyEntries)?;
        let target = match &entry.kind {
            EntryKind::HardLink(target) | EntryKind::Symlink(target) => target.len(),
            EntryKind::File(content) => content.extents.len().saturating_sub(1) * size_of::<Extent>(),
            _ => 0,
        };
        let xattrs: usize = entry.meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata_bytes += (entry.path.len() + target + xattrs) as u64;
        if self.metadata_bytes > self.max_metadata_bytes {
            return Err(ArchiveError::TooMuchMetadata(self.max_metadata_bytes));
        }
        Ok(())
    }
}

/// All entries of the archive of layer number `layer`, which has `len` bytes.
pub(crate) fn read(
    archive: impl Read + Seek,
    len: u64,
    layer: usize,
    allowance: &mut Allowance,
) -> Result<Vec<Entry>, ArchiveError> {
    let mut scan = Scan { archive: BufReader::new(archive), len, at: 0, layer };
    let mut entries = Vec::new();
    let mut said = Said::default();
    while let Some((offset, header)) = scan.header()? {
        let kind = header.entry_type();
        if kind.is_gnu_longname() {
            said.path = Some(scan.long_name(offset, &header)?);
        } else if kind.is_gnu_longlink() {
            said.link = Some(scan.long_name(offset, &header)?);
        } else if kind.is_pax_local_extensions() {
            let records = scan.extension(offset, &header)?;
            said.pax = pax::parse(&records).ok_or(ArchiveError::Field { offset, field: "PAX record" })?;
        } else if kind.is_pax_global_extensions() {
            // Comments of version control; no builder of images sets attributes by them.
            scan.extension(offset, &header)?;
        } else {
            let entry = scan.entry(offset, &header, std::mem::take(&mut said))?;
            allowance.take(&entry)?;
            entries.push(entry);
        }
    }
    // What was said about an entry must be followed by one.
    if said != Said::default() {
        return Err(ArchiveError::Truncated(scan.at));
    }
    Ok(entries)
}

/// What extension headers said about the entry that follows.
#[derive(Debug, Default, PartialEq)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

struct Scan<R> {
    archive: BufReader<R>,
    len: u64,
    at: u64,
    layer: usize,
}

impl<R: Read + Seek> Scan<R> {
    /// The next header and where it is; nothing at the end.
    fn header(&mut self) -> Result<Option<(u64, Header)>, ArchiveError> {
        let offset = self.at;
        if offset == self.len {
            return Ok(None);
        }
        let mut block = [0; 512];
        self.fill(&mut block)?;
        if format::is_end(&block) {
            return Ok(None);
        }
        let header = format::header(&block).ok_or(ArchiveError::Garbage(offset))?;
        Ok(Some((offset, header)))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.within(buffer.len() as u64)?;
        self.archive.read_exact(buffer).map_err(ArchiveError::Read)?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// Goes past `bytes` and what fills the last block.
    fn skip(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.within(bytes)?;
        // Archives exist whose last block was not filled.
        let padded = bytes.saturating_add(format::padding(bytes)).min(self.len - self.at);
        let step = i64::try_from(padded).map_err(|_| ArchiveError::Truncated(self.len))?;
        self.archive.seek_relative(step).map_err(ArchiveError::Read)?;
        self.at += padded;
        Ok(())
    }

    fn within(&self, bytes: u64) -> Result<(), ArchiveError> {
        if bytes > self.len - self.at { Err(ArchiveError::Truncated(self.len)) } else { Ok(()) }
    }

    fn extension(&mut self, offset: u64, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = format::size(header).ok_or(ArchiveError::Field { offset, field: "size" })?;
        if size > MAX_EXTENSION_BYTES {
            return Err(ArchiveError::TooLong { offset, field: "extension", max: MAX_EXTENSION_BYTES });
        }
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.fill(&mut data)?;
        self.skip_padding(size)?;
        Ok(data)
    }

    fn skip_padding(&mut self, size: u64) -> Result<(), ArchiveError> {
        let step = format::padding(size).min(self.len - self.at);
        self.archive.seek_relative(step.cast_signed()).map_err(ArchiveError::Read)?;
        self.at += step;
        Ok(())
    }

    fn long_name(&mut self, offset: u64, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.extension(offset, header)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn entry(&mut self, offset: u64, header: &Header, said: Said) -> Result<Entry, ArchiveError> {
        let Said { path, link, mut pax } = said;
        let records = pax.common.sparse.take();
        let sparse_name = records.as_ref().and_then(|records| records.name().map(<[u8]>::to_vec));
        let raw = sparse_name.or_else(|| pax.common.path.take()).or(path);
        let raw = raw.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = normal(&raw, offset)?;
        let link = pax
            .common
            .link
            .take()
            .or(link)
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let stored = pax.common.size.or_else(|| format::size(header));
        let stored = || stored.ok_or(ArchiveError::Field { offset, field: "size" });
        let name = || shortened(&String::from_utf8_lossy(&raw));
        let kind = match header.entry_type() {
            EntryType::Directory => EntryKind::Directory,
            // As tar had directories before it had a kind for them.
            EntryType::Regular if raw.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous => EntryKind::File(match records {
                Some(records) => {
                    let map = records.read(stored()?, MAX_PARTS, |block| self.fill(block))?;
                    self.sparse(offset, map)?
                }
                None => self.plain(stored()?)?,
            }),
            EntryType::GNUSparse => {
                let map = sparse::read_gnu(header, stored()?, MAX_PARTS, |block| self.fill(block))?;
                EntryKind::File(self.sparse(offset, map)?)
            }
            EntryType::Link => EntryKind::HardLink(normal(&link.unwrap_or_default(), offset)?),
            EntryType::Symlink => EntryKind::Symlink(target(link.unwrap_or_default(), offset)?),
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => {
                let (major, minor) = device(header, offset)?;
                EntryKind::CharDevice { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device(header, offset)?;
                EntryKind::BlockDevice { major, minor }
            }
            other => {
                let kind = format!("type {:?}", char::from(other.as_byte()));
                return Err(ArchiveError::Unsupported { name: name(), kind });
            }
        };
        Ok(Entry { path, meta: meta(header, pax, offset)?, kind })
    }

    fn plain(&mut self, size: u64) -> Result<Content, ArchiveError> {
        let from = self.at;
        self.skip(size)?;
        let extents = if size == 0 { Vec::new() } else { vec![Extent { at: 0, from, len: size }] };
        Ok(Content { layer: self.layer, size, extents })
    }

    /// A sparse file, whose data comes next; `None` if its map is invalid.
    fn sparse(&mut self, offset: u64, map: Option<Sparse>) -> Result<Content, ArchiveError> {
        let invalid = ArchiveError::Field { offset, field: "map of a sparse file" };
        let Sparse { size, parts, stored } = map.ok_or(invalid)?;
        let mut from = self.at;
        let mut extents = Vec::with_capacity(parts.len());
        for (at, len) in parts.into_iter().filter(|(_, len)| *len > 0) {
            extents.push(Extent { at, from, len });
            from += len;
        }
        self.skip(stored)?;
        Ok(Content { layer: self.layer, size, extents })
    }
}

/// A name relative to the root. An absolute one means the same as without its slash, as for `docker load`.
fn normal(raw: &[u8], offset: u64) -> Result<Vec<u8>, ArchiveError> {
    let too_long = |max: usize| ArchiveError::TooLong { offset, field: "name", max: max as u64 };
    if raw.len() > MAX_PATH {
        return Err(too_long(MAX_PATH));
    }
    if raw.is_empty() || raw.contains(&0) {
        return Err(ArchiveError::Field { offset, field: "name" });
    }
    let mut path = Vec::with_capacity(raw.len());
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(ArchiveError::Escapes(shortened(&String::from_utf8_lossy(raw)))),
            _ if part.len() > MAX_NAME => return Err(too_long(MAX_NAME)),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path)
}

/// What a symbolic link holds: text that only the guest follows.
fn target(target: Vec<u8>, offset: u64) -> Result<Vec<u8>, ArchiveError> {
    if target.len() > MAX_LINK_TARGET {
        return Err(ArchiveError::TooLong { offset, field: "link target", max: MAX_LINK_TARGET as u64 });
    }
    if target.is_empty() || target.contains(&0) {
        return Err(ArchiveError::Field { offset, field: "link target" });
    }
    Ok(target)
}

fn device(header: &Header, offset: u64) -> Result<(u32, u32), ArchiveError> {
    let numbers = header.device_major().ok().flatten().zip(header.device_minor().ok().flatten());
    numbers
        .filter(|(major, minor)| *major <= MAX_DEVICE_MAJOR && *minor <= MAX_DEVICE_MINOR)
        .ok_or(ArchiveError::Field { offset, field: "device number" })
}

fn meta(header: &Header, pax: Pax, offset: u64) -> Result<Meta, ArchiveError> {
    let field = |field| move || ArchiveError::Field { offset, field };
    let Pax { common, xattrs } = pax;
    let uid = common.uid.or_else(|| format::uid(header)).and_then(format::checked_id);
    let gid = common.gid.or_else(|| format::gid(header)).and_then(format::checked_id);
    let mtime = common.mtime.or_else(|| Some((format::mtime(header)?, 0)));
    let (mtime_secs, mtime_nanos) = mtime.ok_or_else(field("time"))?;
    Ok(Meta {
        mode: format::mode(header).ok_or_else(field("mode"))?,
        uid: uid.ok_or_else(field("user id"))?,
        gid: gid.ok_or_else(field("group id"))?,
        mtime_secs,
        mtime_nanos,
        xattrs,
    })
}
