//! Answers the requests of one volume: a message in, a message out.

use std::ffi::CStr;
use std::io::IoSlice;

use bouvet_wire::limits::{MAX_VOLUME_IO_BYTES, MAX_VOLUMES};
use bytes::Bytes;
use rustix::fs::{AtFlags, FallocateFlags, FileType, RawDir, SeekFrom, XattrFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::answer::{self, Answer};
use super::owners::Asker;
use super::protocol::{self, Garbage, Header, MAX_XATTR_BYTES, Op};
use super::tree::{Entry, Tree};

const MAJOR: u32 = 7;
/// The version that the messages here are of: that of Linux 5.16, the first kernel that can be told not to ask about
/// files that it closes.
const MINOR: u32 = 35;

/// What is asked of a guest's kernel (`FUSE_INIT` flags): several reads at once; to empty a file as it is opened; to
/// write more than a page; to drop what it read of a file that has changed; names with their attributes, where that
/// pays; several requests about one directory; messages as large as they may be; to leave to the host to take a
/// program's set-user-id away when it is written to. Nothing is written late, and locks stay in the guest.
const WANTED: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 28;
/// Requests that a kernel may have under way for nobody in particular: what it reads ahead.
const MAX_BACKGROUND: u16 = 32;
const PAGE_BYTES: usize = 4096;

/// What is read of a directory at once.
const DIR_BUFFER_BYTES: usize = 32 * 1024;
/// What one request copies: so much that it is worth it, and so little that it does not take long.
const MAX_COPY_BYTES: u64 = 16 * 1024 * 1024;
/// The extended attributes that are let through. Others mean something to the host's kernel.
const XATTRS: &[u8] = b"user.";

const _: () = assert!(MAX_VOLUMES < 1 << 16 && MAX_VOLUME_IO_BYTES.is_multiple_of(PAGE_BYTES));

/// See the module.
#[derive(Debug)]
pub(super) struct Server {
    tree: Tree,
}

impl Server {
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree }
    }

    /// The answer to `message`, if it is one that has an answer.
    pub(super) fn serve(&self, message: &[u8]) -> Result<Option<Bytes>, Garbage> {
        let (header, body) = protocol::parse(message)?;
        let answered = protocol::decode(&header, body).and_then(|op| self.answer(&header, op));
        if protocol::is_forget(&header) {
            return Ok(None);
        }
        Ok(Some(match answered {
            Ok(answer) => answer.message(header.unique),
            Err(error) => answer::failure(header.unique, error),
        }))
    }

    fn answer(&self, header: &Header, op: Op<'_>) -> Result<Answer, Errno> {
        let (tree, node) = (&self.tree, header.node);
        let asker = Asker { uid: header.uid, gid: header.gid };
        let entry = |entry: Entry| Ok(self.put_entry(Answer::empty(), &entry));
        let done = |()| Answer::empty();
        match op {
            Op::Init { major, minor, max_readahead, flags } => init(major, minor, max_readahead, flags),
            Op::Lookup { name } => entry(tree.lookup(node, name)?),
            Op::Forget { nodes } => {
                nodes.into_iter().for_each(|(node, lookups)| tree.forget(node, lookups));
                Ok(Answer::empty())
            }
            Op::GetAttr { handle } => Ok(Answer::empty().attr(&tree.stat(node, handle)?, tree.owners)),
            Op::SetAttr(change) => Ok(Answer::empty().attr(&tree.set_attr(node, &change)?, tree.owners)),
            Op::ReadLink => Ok(Answer::empty().bytes(&tree.read_link(node)?)),
            Op::Symlink { name, target } => entry(tree.make_link(asker, node, name, target)?),
            Op::MkNod { name, mode } => entry(tree.make_file(asker, node, name, mode)?),
            Op::MkDir { name, mode } => entry(tree.make_dir(asker, node, name, mode)?),
            Op::Unlink { name } => tree.remove(node, name, AtFlags::empty()).map(done),
            Op::RmDir { name } => tree.remove(node, name, AtFlags::REMOVEDIR).map(done),
            Op::Rename { name, to, to_name, flags } => {
                tree.rename((node, name), (to, to_name), flags).map(done)
            }
            Op::Link { node: linked, name } => entry(tree.link(linked, node, name)?),
            Op::Open { flags } => Ok(Answer::empty().opened(tree.open(node, flags)?)),
            Op::OpenDir => Ok(Answer::empty().opened(tree.open_dir(node)?)),
            Op::Create { name, flags, mode } => {
                let (entry, handle) = tree.create(asker, (node, name), flags, mode)?;
                Ok(self.put_entry(Answer::empty(), &entry).opened(handle))
            }
            Op::Read { handle, offset, size } => self.read(handle, offset, size),
            Op::Write { handle, offset, append, data } => self.write(handle, offset, append, data),
            Op::StatFs => Ok(Answer::empty().stat_fs(&tree.stat_fs()?)),
            Op::Release { handle } | Op::ReleaseDir { handle } => tree.close(handle).map(done),
            Op::FSync { handle, data_only } => self.sync(handle, data_only).map(done),
            Op::ReadDir { handle, offset, size, plus } => self.read_dir(handle, offset, size, plus),
            Op::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags).map(done),
            Op::GetXattr { name, size } => self.get_xattr(node, name, size),
            Op::ListXattr { size } => self.list_xattrs(node, size),
            Op::RemoveXattr { name } => self.remove_xattr(node, name).map(done),
            Op::Fallocate { handle, offset, length, mode } => {
                self.fallocate(handle, (offset, length), mode).map(done)
            }
            Op::CopyFileRange { from, to, length } => self.copy(from, to, length),
        }
    }

    fn put_entry(&self, answer: Answer, entry: &Entry) -> Answer {
        answer.entry(Some((entry.node, &entry.stat)), self.tree.owners)
    }

    fn read(&self, handle: u64, offset: u64, size: usize) -> Result<Answer, Errno> {
        let handle = self.tree.handle(handle)?;
        Answer::filled(size, |buffer| {
            let mut filled = 0;
            // A short answer is the end of the file to a kernel.
            while filled < buffer.len() {
                let at = offset.checked_add(filled as u64).ok_or(Errno::INVAL)?;
                match rustix::io::pread(&handle.file, &mut buffer[filled..], at) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(filled)
        })
    }

    fn write(&self, handle: u64, offset: u64, append: bool, data: &[u8]) -> Result<Answer, Errno> {
        self.tree.check_writable()?;
        let handle = self.tree.handle(handle)?;
        let start = if append { end_of(&handle.file)? } else { offset };
        self.check_end(start, data.len() as u64)?;
        let flags = if append { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
        let mut written = 0;
        while written < data.len() {
            let at = offset.checked_add(written as u64).filter(|at| *at != u64::MAX).ok_or(Errno::FBIG)?;
            match rustix::io::pwritev2(&handle.file, &[IoSlice::new(&data[written..])], at, flags) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(error) if written == 0 => return Err(error),
                // The next write meets it again.
                Err(_) => break,
            }
        }
        Ok(Answer::empty().u32(u32::try_from(written).map_err(|_| Errno::INVAL)?).u32(0))
    }

    /// Fails if a file would reach beyond where files end.
    fn check_end(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let end = offset.checked_add(length).ok_or(Errno::FBIG)?;
        if end > self.tree.most_bytes { Err(Errno::FBIG) } else { Ok(()) }
    }

    fn sync(&self, handle: u64, data_only: bool) -> Result<(), Errno> {
        let handle = self.tree.handle(handle)?;
        if data_only { rustix::fs::fdatasync(&handle.file) } else { rustix::fs::fsync(&handle.file) }
    }

    fn fallocate(&self, handle: u64, (offset, length): (u64, u64), mode: u32) -> Result<(), Errno> {
        self.tree.check_writable()?;
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(mode);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        self.check_end(offset, length)?;
        rustix::fs::fallocate(&self.tree.handle(handle)?.file, mode, offset, length)
    }

    fn copy(&self, from: (u64, u64), to: (u64, u64), length: u64) -> Result<Answer, Errno> {
        self.tree.check_writable()?;
        let (source, target) = (self.tree.handle(from.0)?, self.tree.handle(to.0)?);
        let length = length.min(MAX_COPY_BYTES);
        self.check_end(to.1, length)?;
        let (mut read_at, mut write_at) = (from.1, to.1);
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        let copied = rustix::fs::copy_file_range(
            &source.file,
            Some(&mut read_at),
            &target.file,
            Some(&mut write_at),
            length,
        )?;
        Ok(Answer::empty().u32(u32::try_from(copied).map_err(|_| Errno::INVAL)?).u32(0))
    }

    fn read_dir(&self, handle: u64, offset: u64, size: usize, plus: bool) -> Result<Answer, Errno> {
        let handle = self.tree.handle(handle)?;
        let _reading = handle.reading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        rustix::fs::seek(&handle.file, SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(DIR_BUFFER_BYTES);
        let mut entries = RawDir::new(&handle.file, buffer.spare_capacity_mut());
        let mut answer = Answer::empty();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if answer.len() + answer::dirent_bytes(name.to_bytes(), plus) > size {
                // What comes next is read again when it is asked for.
                break;
            }
            // What is above the volume is none of the guest's business.
            let ino = if name.to_bytes() == b".." { protocol::ROOT } else { entry.ino() };
            if plus {
                answer = self.put_known(answer, handle.node, name);
            }
            answer = answer.dirent(name.to_bytes(), ino, entry.file_type(), entry.next_entry_cookie());
        }
        Ok(answer)
    }

    /// The entry of a name in a directory that is read: none if it is gone meanwhile, or there is no room for it.
    fn put_known(&self, answer: Answer, dir: u64, name: &CStr) -> Answer {
        let looked_up = match name.to_bytes() {
            b"." | b".." => None,
            _ => self.tree.lookup(dir, name).ok(),
        };
        let entry = looked_up.as_ref().map(|entry| (entry.node, &entry.stat));
        answer.entry(entry, self.tree.owners)
    }

    fn set_xattr(&self, node: u64, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        self.tree.check_writable()?;
        check_xattr(name)?;
        let file = self.tree.for_xattrs(node)?;
        rustix::fs::fsetxattr(file, name, value, XattrFlags::from_bits_retain(flags))
    }

    fn remove_xattr(&self, node: u64, name: &CStr) -> Result<(), Errno> {
        self.tree.check_writable()?;
        check_xattr(name)?;
        rustix::fs::fremovexattr(self.tree.for_xattrs(node)?, name)
    }

    fn get_xattr(&self, node: u64, name: &CStr, size: usize) -> Result<Answer, Errno> {
        check_xattr(name)?;
        let file = self.tree.for_xattrs(node)?;
        let mut value = vec![0; MAX_XATTR_BYTES];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        sized(size, &value[..length])
    }

    fn list_xattrs(&self, node: u64, size: usize) -> Result<Answer, Errno> {
        let file = self.tree.for_xattrs(node)?;
        let mut names = vec![0; MAX_XATTR_BYTES];
        let length = rustix::fs::flistxattr(file, &mut names[..])?;
        let names = names[..length].split_inclusive(|byte| *byte == 0);
        sized(size, &names.filter(|name| name.starts_with(XATTRS)).flatten().copied().collect::<Vec<_>>())
    }
}

fn init(major: u32, minor: u32, max_readahead: u32, flags: u32) -> Result<Answer, Errno> {
    if major != MAJOR || minor < MINOR {
        return Err(Errno::PROTO);
    }
    let io_bytes = u32::try_from(MAX_VOLUME_IO_BYTES).map_err(|_| Errno::INVAL)?;
    let pages = u16::try_from(MAX_VOLUME_IO_BYTES / PAGE_BYTES).map_err(|_| Errno::INVAL)?;
    let nanosecond = 1;
    let answer = Answer::empty().u32(MAJOR).u32(MINOR).u32(max_readahead).u32(flags & WANTED);
    let answer = answer.u16(MAX_BACKGROUND).u16(MAX_BACKGROUND / 4 * 3).u32(io_bytes).u32(nanosecond);
    Ok(answer.u16(pages).u16(0).bytes(&[0; 32]))
}

fn end_of(file: &std::os::fd::OwnedFd) -> Result<u64, Errno> {
    let stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::BADF);
    }
    Ok(stat.st_size.unsigned_abs())
}

fn check_xattr(name: &CStr) -> Result<(), Errno> {
    if name.to_bytes().starts_with(XATTRS) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// A value, or where nobody has room for one yet, how much it takes.
fn sized(size: usize, value: &[u8]) -> Result<Answer, Errno> {
    match size {
        0 => Ok(Answer::empty().u32(u32::try_from(value.len()).map_err(|_| Errno::INVAL)?).u32(0)),
        _ if value.len() > size => Err(Errno::RANGE),
        _ => Ok(Answer::empty().bytes(value)),
    }
}

#[cfg(test)]
mod hostile;
