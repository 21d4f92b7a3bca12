//! Writes a tree as an EROFS image: read-only, uncompressed, in blocks of 4 KiB.
//!
//! The format is that of the kernel's `fs/erofs/erofs_fs.h`. Of it we use the least that holds all there is: extended
//! inodes of 64 bytes, attributes after them, then, where it fits into the rest of the block, the end of the contents
//! (`FLAT_INLINE`); all other contents in whole blocks of their own (`FLAT_PLAIN`). In the image are the superblock,
//! all inodes, and all blocks, in this order. Equal trees give equal images, to the byte.
//!
//! Uncompressed, since guests are often emulated and read from the page cache of their host, which one image shares
//! among all of them. Holes of files and blocks of zeros are holes of the image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::layer::entries::{Content, Meta};
use crate::tree::{Id, Kind, Node, ROOT, Tree};

/// The version of what this writes, and of how layers are merged: part of the name by which images are kept.
pub(crate) const VERSION: u32 = 2;

const BLOCK: u64 = 4096;
/// Inodes are found by their place in units of this size.
const SLOT: u64 = 32;
const INODE: u64 = 64;
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: u64 = 128;
const MAGIC: u32 = 0xE0F5_E1E2;
const DIRENT: usize = 12;

/// `i_format`: an extended inode, whose contents are in blocks of their own, or whose last are beside it.
const FLAT_PLAIN: u16 = 1;
const FLAT_INLINE: u16 = 1 | 2 << 1;

/// Contents' last bytes are kept beside the inode up to this size: larger ones waste more there, when they do not
/// fit into what is left of a block, than in a block of their own.
const MAX_TAIL: u64 = BLOCK / 2;
/// Copied at a time; a multiple of [`BLOCK`].
const PIECE: usize = 1 << 20;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file failed: the image's or a layer's.
    #[error("could not write the root file system")]
    File(#[from] io::Error),
    /// More blocks than 32 bits can count.
    #[error("the root file system is larger than its format allows")]
    TooLarge,
}

/// Writes `tree` into the empty file `into`. The contents of files come from `layers`. `written` is called with the
/// bytes that were written and that are to be, now and then.
pub(crate) fn write(
    tree: &Tree,
    layers: &[File],
    into: &File,
    written: &dyn Fn(u64, u64),
) -> Result<(), WriteError> {
    let plan = Plan::new(tree)?;
    let total = u64::from(plan.blocks) * BLOCK;
    into.set_len(total)?;
    into.write_all_at(&plan.superblock(), SUPERBLOCK_AT)?;
    let mut copier = Copier { layers, into, piece: vec![0; PIECE], done: 0, total, written };
    for inode in &plan.inodes {
        plan.write_inode(tree, inode, into)?;
        match &tree.node(inode.id).kind {
            Kind::File(content) => copier.copy(content, inode)?,
            Kind::Directory(_) => inode.put(&plan.directory(tree, inode), into)?,
            Kind::Symlink(target) => inode.put(target, into)?,
            _ => {}
        }
    }
    written(total, total);
    Ok(())
}

/// How many bytes an image has, as its superblock states; `None` if there is no superblock.
pub(crate) fn stated_bytes(image: &File) -> io::Result<Option<u64>> {
    const BLOCKS_AT: u64 = 36;
    let read = |at| {
        let mut number = [0; 4];
        image.read_exact_at(&mut number, SUPERBLOCK_AT + at).map(|()| u32::from_le_bytes(number))
    };
    match read(0).and_then(|magic| Ok((magic, read(BLOCKS_AT)?))) {
        Ok((MAGIC, blocks)) => Ok(Some(u64::from(blocks) * BLOCK)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where everything goes.
struct Plan {
    inodes: Vec<Inode>,
    /// By node number, the index of its inode.
    index: Vec<usize>,
    blocks: u32,
}

struct Inode {
    id: Id,
    parent: Id,
    names: u32,
    /// Bytes from the start of the image.
    at: u64,
    xattrs: Vec<u8>,
    size: u64,
    /// How much of the contents' end is beside the inode.
    tail: u64,
    /// The first block of the rest.
    block: u32,
}

impl Plan {
    fn new(tree: &Tree) -> Result<Self, WriteError> {
        let (order, names) = tree.walk();
        let mut parents = vec![ROOT; names.len()];
        let mut index = vec![0; names.len()];
        for (at, &id) in order.iter().enumerate() {
            index[id] = at;
            if let Kind::Directory(children) = &tree.node(id).kind {
                children.values().for_each(|&child| parents[child] = id);
            }
        }
        let mut inodes = Vec::with_capacity(order.len());
        // The root comes first: the superblock has 16 bits for its place.
        let mut at = SUPERBLOCK_AT + SUPERBLOCK;
        for id in order {
            let node = tree.node(id);
            let (xattrs, size) = (xattrs(&node.meta), size(&node.kind));
            let fixed = INODE + xattrs.len() as u64;
            let tail =
                Some(size % BLOCK).filter(|tail| *tail <= MAX_TAIL && fixed + tail <= BLOCK).unwrap_or(0);
            // Neither an inode nor a tail may lie across the border of two blocks; attributes may.
            let whole = fixed + tail;
            if at % BLOCK + whole.min(BLOCK) > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            inodes.push(Inode {
                id,
                parent: parents[id],
                names: names[id],
                at,
                xattrs,
                size,
                tail,
                block: 0,
            });
            at = (at + whole).next_multiple_of(SLOT);
        }
        let mut block = at.div_ceil(BLOCK);
        for inode in &mut inodes {
            inode.block = u32::try_from(block).map_err(|_| WriteError::TooLarge)?;
            block = block.saturating_add((inode.size - inode.tail).div_ceil(BLOCK));
        }
        Ok(Self { inodes, index, blocks: u32::try_from(block).map_err(|_| WriteError::TooLarge)? })
    }

    /// The number by which the format knows a node.
    fn number(&self, id: Id) -> u64 {
        self.inodes[self.index[id]].at / SLOT
    }

    /// Without checksum, identifier or time of making: equal trees shall give equal images.
    fn superblock(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend(MAGIC.to_le_bytes());
        out.extend([0; 8]); // checksum, compatible features: none
        out.push(12); // the block size, as a power of two
        out.push(0); // extension slots
        out.extend(u16::try_from(self.number(ROOT)).unwrap_or_default().to_le_bytes());
        out.extend((self.inodes.len() as u64).to_le_bytes());
        out.extend([0; 12]); // time of making
        out.extend(self.blocks.to_le_bytes());
        // Inodes are counted from block 0; nothing is shared; no name, no incompatible features, no other devices.
        out.resize(128, 0);
        out
    }

    fn write_inode(&self, tree: &Tree, inode: &Inode, into: &File) -> io::Result<()> {
        let Node { meta, kind } = tree.node(inode.id);
        let place = match kind {
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
            }
            _ => inode.block,
        };
        let number = u32::try_from(self.index[inode.id]).unwrap_or(u32::MAX).saturating_add(1);
        let attributes = u16::try_from(inode.xattrs.len().saturating_sub(8) / 4).unwrap_or_default();
        let mut out = Vec::with_capacity(64 + inode.xattrs.len());
        out.extend((if inode.tail > 0 { FLAT_INLINE } else { FLAT_PLAIN }).to_le_bytes());
        out.extend(attributes.to_le_bytes());
        out.extend((format_bits(kind) | meta.mode).to_le_bytes());
        out.extend([0; 2]);
        out.extend(inode.size.to_le_bytes());
        out.extend(place.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(meta.uid.to_le_bytes());
        out.extend(meta.gid.to_le_bytes());
        out.extend(meta.mtime_secs.to_le_bytes());
        out.extend(meta.mtime_nanos.to_le_bytes());
        out.extend(inode.names.to_le_bytes());
        out.extend([0; 16]);
        out.extend(&inode.xattrs);
        into.write_all_at(&out, inode.at)
    }

    /// The contents of a directory: in each block the entries, sorted, then their names.
    fn directory(&self, tree: &Tree, inode: &Inode) -> Vec<u8> {
        let Kind::Directory(children) = &tree.node(inode.id).kind else { return Vec::new() };
        let mut entries: Vec<(&[u8], Id)> = children.iter().map(|(name, id)| (&**name, *id)).collect();
        entries.extend([(&b"."[..], inode.id), (b"..", inode.parent)]);
        entries.sort();
        let mut out = Vec::new();
        for block in blocks(&entries) {
            out.resize(out.len().next_multiple_of(4096), 0);
            let mut name_at = block.len() * DIRENT;
            for (name, id) in block {
                out.extend(self.number(*id).to_le_bytes());
                out.extend(u16::try_from(name_at).unwrap_or_default().to_le_bytes());
                out.extend([file_type(&tree.node(*id).kind), 0]);
                name_at += name.len();
            }
            block.iter().for_each(|(name, _)| out.extend(*name));
        }
        out
    }
}

impl Inode {
    /// Writes contents that are in memory.
    fn put(&self, content: &[u8], into: &File) -> io::Result<()> {
        let (blocks, tail) = content.split_at(content.len() - usize::try_from(self.tail).unwrap_or_default());
        into.write_all_at(blocks, u64::from(self.block) * BLOCK)?;
        into.write_all_at(tail, self.tail_at())
    }

    fn tail_at(&self) -> u64 {
        self.at + INODE + self.xattrs.len() as u64
    }
}

/// The runs of entries that fill one block each.
fn blocks<'a, 'b>(entries: &'a [(&'b [u8], Id)]) -> impl Iterator<Item = &'a [(&'b [u8], Id)]> {
    let mut filled = 0;
    let mut start = true;
    entries.chunk_by(move |(before, _), (next, _)| {
        if std::mem::take(&mut start) {
            filled = DIRENT + before.len();
        }
        filled += DIRENT + next.len();
        let fits = filled <= 4096;
        if !fits {
            filled = DIRENT + next.len();
        }
        fits
    })
}

fn size(kind: &Kind) -> u64 {
    match kind {
        Kind::Directory(children) => {
            let mut names: Vec<(&[u8], Id)> = children.keys().map(|name| (&**name, ROOT)).collect();
            names.extend([(&b"."[..], ROOT), (b"..", ROOT)]);
            names.sort();
            let mut size = 0_usize;
            for block in blocks(&names) {
                let names: usize = block.iter().map(|(name, _)| DIRENT + name.len()).sum();
                size = size.next_multiple_of(4096) + names;
            }
            size as u64
        }
        Kind::File(content) => content.size,
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

/// `S_IFMT` of `i_mode`.
fn format_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

/// The type in a directory (`FT_*`).
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// The attributes of an inode: a header of 12 bytes, then entries, each filled up to four bytes.
fn xattrs(meta: &Meta) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in &meta.xattrs {
        let Some((index, rest)) = xattr_name(name) else { continue };
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(rest.len()), u16::try_from(value.len())) else {
            continue;
        };
        if out.is_empty() {
            out.resize(12, 0);
        }
        out.extend([name_len, index]);
        out.extend(value_len.to_le_bytes());
        out.extend(rest);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The number of an attribute's prefix, and the rest of its name.
fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(u8, &[u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
    PREFIXES.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// Copies the contents of files out of the layers.
struct Copier<'a> {
    layers: &'a [File],
    into: &'a File,
    piece: Vec<u8>,
    done: u64,
    total: u64,
    written: &'a dyn Fn(u64, u64),
}

impl Copier<'_> {
    fn copy(&mut self, content: &Content, inode: &Inode) -> io::Result<()> {
        let in_blocks = inode.size - inode.tail;
        for extent in &content.extents {
            let layer = self.layers.get(content.layer).ok_or(io::ErrorKind::NotFound)?;
            let mut copied = 0;
            while copied < extent.len {
                let at = extent.at + copied;
                // What is beside the inode has another place than what is before it; and pieces end at blocks, so
                // that those of zeros can be left out.
                let (border, to) = if at < in_blocks {
                    let border = (at - at % BLOCK).saturating_add(self.piece.len() as u64).min(in_blocks);
                    (border, u64::from(inode.block) * BLOCK + at)
                } else {
                    (inode.size, inode.tail_at() + at - in_blocks)
                };
                let len = (extent.len - copied).min(border - at);
                let piece = &mut self.piece[..usize::try_from(len).unwrap_or(PIECE)];
                layer.read_exact_at(piece, extent.from + copied)?;
                put_sparse(self.into, piece, to)?;
                copied += len;
                self.done += len;
                (self.written)(self.done, self.total);
            }
        }
        Ok(())
    }
}

/// Writes `piece` but for the blocks in it that are zeros: the file is new, and reads as zeros where it has holes.
fn put_sparse(into: &File, piece: &[u8], to: u64) -> io::Result<()> {
    let until_border = usize::try_from(BLOCK - to % BLOCK).unwrap_or_default().min(piece.len());
    let (head, rest) = piece.split_at(until_border);
    let chunks = std::iter::once(head).chain(rest.chunks(4096));
    let mut at = 0;
    let mut run: Option<usize> = None;
    for chunk in chunks {
        if chunk.iter().all(|byte| *byte == 0) {
            if let Some(start) = run.take() {
                into.write_all_at(&piece[start..at], to + start as u64)?;
            }
        } else {
            run.get_or_insert(at);
        }
        at += chunk.len();
    }
    if let Some(start) = run {
        into.write_all_at(&piece[start..], to + start as u64)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "erofs_tests.rs"]
mod tests;
