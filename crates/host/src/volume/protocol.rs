//! The messages of the FUSE protocol, version 7 (`include/uapi/linux/fuse.h`), as far as they are answered here.
//! Pure: bytes in, values out. What comes in is whatever a hostile guest likes.

use std::ffi::CStr;

use bouvet_wire::limits::{MAX_FUSE_MESSAGE_BYTES, MAX_VOLUME_IO_BYTES};
use rustix::fs::Timespec;
use rustix::io::Errno;

/// The node that a file system begins with.
pub(super) const ROOT: u64 = 1;
/// Length of a name in a directory: Linux's `NAME_MAX`.
const MAX_NAME_BYTES: usize = 255;
/// Length of what a symbolic link says: Linux's `PATH_MAX`, with its end.
const MAX_LINK_BYTES: usize = 4095;
/// Length of an extended attribute, and of the list of their names (`include/uapi/linux/limits.h`).
pub(super) const MAX_XATTR_BYTES: usize = 64 * 1024;
/// Nodes that one message may forget: as many as fit.
const FORGET_ONE_BYTES: usize = 16;

const HEADER_BYTES: usize = 40;

/// Who asks for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A message that is none: nothing in it can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest sent {0} bytes that are no FUSE message")]
pub(super) struct Garbage(usize);

/// A request, with what it says beside its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Op<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    Lookup {
        name: &'a CStr,
    },
    /// Nodes, and how many lookups of each are over.
    Forget {
        nodes: Vec<(u64, u64)>,
    },
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a CStr,
        target: &'a CStr,
    },
    MkNod {
        name: &'a CStr,
        mode: u32,
    },
    MkDir {
        name: &'a CStr,
        mode: u32,
    },
    Unlink {
        name: &'a CStr,
    },
    RmDir {
        name: &'a CStr,
    },
    Rename {
        name: &'a CStr,
        to: u64,
        to_name: &'a CStr,
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a CStr,
    },
    Open {
        flags: u32,
    },
    Create {
        name: &'a CStr,
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: usize,
    },
    Write {
        handle: u64,
        offset: u64,
        append: bool,
        data: &'a [u8],
    },
    StatFs,
    Release {
        handle: u64,
    },
    FSync {
        handle: u64,
        data_only: bool,
    },
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: usize,
        plus: bool,
    },
    ReleaseDir {
        handle: u64,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a CStr,
        size: usize,
    },
    ListXattr {
        size: usize,
    },
    RemoveXattr {
        name: &'a CStr,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    CopyFileRange {
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
    },
}

/// What of a file's attributes is to change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SetAttr {
    pub(super) handle: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<Time>,
    pub(super) modified: Option<Time>,
}

/// A time to set.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Time {
    Now,
    At(Timespec),
}

/// Takes a message apart into its header and the rest.
pub(super) fn parse(message: &[u8]) -> Result<(Header, &[u8]), Garbage> {
    let garbage = Garbage(message.len());
    if message.len() > MAX_FUSE_MESSAGE_BYTES {
        return Err(garbage);
    }
    let mut fields = Fields(message);
    let mut header = || {
        let length = fields.u32()?;
        let header = Header {
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
        };
        fields.take(8)?; // process id; extensions, which were not asked for
        Ok::<_, Errno>((length, header))
    };
    match header() {
        Ok((length, header)) if length as usize == message.len() => Ok((header, &message[HEADER_BYTES..])),
        _ => Err(garbage),
    }
}

/// What `header` asks for. What is not known here is `ENOSYS`, after which a kernel does not ask again.
pub(super) fn decode<'a>(header: &Header, body: &'a [u8]) -> Result<Op<'a>, Errno> {
    let mut fields = Fields(body);
    let f = &mut fields;
    Ok(match header.opcode {
        1 => Op::Lookup { name: f.name()? },
        2 => Op::Forget { nodes: vec![(header.node, f.u64()?)] },
        3 => f.get_attr()?,
        4 => Op::SetAttr(f.set_attr()?),
        5 => Op::ReadLink,
        6 => Op::Symlink { name: f.name()?, target: f.text(MAX_LINK_BYTES)? },
        8 => f.mk_nod()?,
        9 => Op::MkDir { mode: f.first_of_two()?, name: f.name()? },
        10 => Op::Unlink { name: f.name()? },
        11 => Op::RmDir { name: f.name()? },
        12 => Op::Rename { to: f.u64()?, flags: 0, name: f.name()?, to_name: f.name()? },
        13 => Op::Link { node: f.u64()?, name: f.name()? },
        14 => Op::Open { flags: f.first_of_two()? },
        15 => f.read(|handle, offset, size| Op::Read { handle, offset, size })?,
        16 => f.write()?,
        17 => Op::StatFs,
        18 => Op::Release { handle: f.u64()? },
        20 | 30 => Op::FSync { handle: f.u64()?, data_only: f.u32()? & 1 != 0 },
        21 => f.set_xattr()?,
        22 => Op::GetXattr { size: f.size(MAX_XATTR_BYTES)?, name: f.text(MAX_NAME_BYTES)? },
        23 => Op::ListXattr { size: f.size(MAX_XATTR_BYTES)? },
        24 => Op::RemoveXattr { name: f.text(MAX_NAME_BYTES)? },
        26 => Op::Init { major: f.u32()?, minor: f.u32()?, max_readahead: f.u32()?, flags: f.u32()? },
        27 => Op::OpenDir,
        28 => f.read(|handle, offset, size| Op::ReadDir { handle, offset, size, plus: false })?,
        29 => Op::ReleaseDir { handle: f.u64()? },
        35 => f.create()?,
        42 => f.batch_forget()?,
        43 => f.fallocate()?,
        44 => f.read(|handle, offset, size| Op::ReadDir { handle, offset, size, plus: true })?,
        45 => Op::Rename { to: f.u64()?, flags: f.first_of_two()?, name: f.name()?, to_name: f.name()? },
        47 => f.copy_file_range()?,
        _ => return Err(Errno::NOSYS),
    })
}

/// Whether a request is one that has no answer, not even an error.
pub(super) fn is_forget(header: &Header) -> bool {
    matches!(header.opcode, 2 | 42)
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.take(N)?.try_into().map_err(|_| Errno::INVAL)
    }

    fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_ne_bytes)
    }

    /// A number of which the second half of eight bytes says nothing that matters here.
    fn first_of_two(&mut self) -> Result<u32, Errno> {
        let first = self.u32()?;
        self.u32()?;
        Ok(first)
    }

    /// How much may be answered, and what fills the eight bytes.
    fn size(&mut self, most: usize) -> Result<usize, Errno> {
        Ok((self.first_of_two()? as usize).min(most))
    }

    /// A text up to its NUL.
    fn text(&mut self, most: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.take(text.count_bytes() + 1)?;
        match text.count_bytes() {
            0 => Err(Errno::INVAL),
            bytes if bytes > most => Err(Errno::NAMETOOLONG),
            _ => Ok(text),
        }
    }

    /// A name in a directory: one that leads nowhere else.
    fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text(MAX_NAME_BYTES)?;
        match name.to_bytes() {
            b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(name),
        }
    }

    fn get_attr(&mut self) -> Result<Op<'a>, Errno> {
        let by_handle = self.first_of_two()? & 1 != 0;
        let handle = self.u64()?;
        Ok(Op::GetAttr { handle: by_handle.then_some(handle) })
    }

    fn set_attr(&mut self) -> Result<SetAttr, Errno> {
        let valid = self.first_of_two()?;
        let (handle, size) = (self.u64()?, self.u64()?);
        self.u64()?; // owner of locks
        let seconds = [self.u64()?, self.u64()?, self.u64()?];
        let nanoseconds = [self.u32()?, self.u32()?, self.u32()?];
        let (mode, _, uid, gid) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        let time = |index: usize, set: u32, now: u32| match () {
            () if valid & set == 0 => Ok(None),
            () if valid & now != 0 => Ok(Some(Time::Now)),
            () if nanoseconds[index] >= 1_000_000_000 => Err(Errno::INVAL),
            () => Ok(Some(Time::At(Timespec {
                // The kernel sends what it has as signed.
                tv_sec: seconds[index].cast_signed(),
                tv_nsec: nanoseconds[index].into(),
            }))),
        };
        Ok(SetAttr {
            handle: (valid & 1 << 6 != 0).then_some(handle),
            mode: (valid & 1 != 0).then_some(mode),
            uid: (valid & 1 << 1 != 0).then_some(uid),
            gid: (valid & 1 << 2 != 0).then_some(gid),
            size: (valid & 1 << 3 != 0).then_some(size),
            accessed: time(0, 1 << 4, 1 << 7)?,
            modified: time(1, 1 << 5, 1 << 8)?,
        })
    }

    fn mk_nod(&mut self) -> Result<Op<'a>, Errno> {
        let mode = self.first_of_two()?;
        self.u64()?; // the mask, which the kernel has applied
        Ok(Op::MkNod { mode, name: self.name()? })
    }

    fn create(&mut self) -> Result<Op<'a>, Errno> {
        let (flags, mode) = (self.u32()?, self.u32()?);
        self.u64()?; // the mask, which the kernel has applied
        Ok(Op::Create { flags, mode, name: self.name()? })
    }

    fn read(&mut self, op: impl FnOnce(u64, u64, usize) -> Op<'a>) -> Result<Op<'a>, Errno> {
        let (handle, offset) = (self.u64()?, self.u64()?);
        let size = self.size(MAX_VOLUME_IO_BYTES)?;
        Ok(op(handle, offset, size))
    }

    fn write(&mut self) -> Result<Op<'a>, Errno> {
        const OF_CACHE: u32 = 1;
        const APPEND: u32 = 0o2000;
        let (handle, offset) = (self.u64()?, self.u64()?);
        let (size, write_flags) = (self.u32()? as usize, self.u32()?);
        self.u64()?; // owner of locks
        let append = self.first_of_two()? & APPEND != 0 && write_flags & OF_CACHE == 0;
        if size > MAX_VOLUME_IO_BYTES || size != self.0.len() {
            return Err(Errno::INVAL);
        }
        Ok(Op::Write { handle, offset, append, data: self.0 })
    }

    fn set_xattr(&mut self) -> Result<Op<'a>, Errno> {
        let (size, flags) = (self.u32()? as usize, self.u32()?);
        let name = self.text(MAX_NAME_BYTES)?;
        if size > MAX_XATTR_BYTES || size != self.0.len() {
            return Err(Errno::INVAL);
        }
        Ok(Op::SetXattr { name, value: self.0, flags })
    }

    fn batch_forget(&mut self) -> Result<Op<'a>, Errno> {
        let count = self.first_of_two()? as usize;
        if count > self.0.len() / FORGET_ONE_BYTES {
            return Err(Errno::INVAL);
        }
        let nodes = (0..count).map(|_| Ok((self.u64()?, self.u64()?))).collect::<Result<_, Errno>>()?;
        Ok(Op::Forget { nodes })
    }

    fn fallocate(&mut self) -> Result<Op<'a>, Errno> {
        let (handle, offset, length) = (self.u64()?, self.u64()?, self.u64()?);
        Ok(Op::Fallocate { handle, offset, length, mode: self.u32()? })
    }

    fn copy_file_range(&mut self) -> Result<Op<'a>, Errno> {
        let from = (self.u64()?, self.u64()?);
        self.u64()?; // the node, which the handle tells too
        let to = (self.u64()?, self.u64()?);
        Ok(Op::CopyFileRange { from, to, length: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(opcode: u32) -> Header {
        Header { opcode, unique: 0, node: ROOT, uid: 0, gid: 0 }
    }

    #[test]
    fn a_message_is_as_long_as_it_says() {
        let mut message = vec![0; HEADER_BYTES];
        message[0] = 40;
        assert!(parse(&message).is_ok());
        message.push(0);
        assert_eq!(parse(&message), Err(Garbage(41)));
        assert_eq!(parse(&message[..39]), Err(Garbage(39)));
        assert!(parse(&vec![0; MAX_FUSE_MESSAGE_BYTES + 1]).is_err());
    }

    #[test]
    fn names_lead_nowhere_else() {
        let lookup = |name: &[u8]| decode(&header(1), name).map(|_| ());
        assert_eq!(lookup(b"a\0"), Ok(()));
        assert_eq!(lookup(b"...\0"), Ok(()));
        for name in [&b"..\0"[..], b".\0", b"\0", b"a/b\0", b"/\0", b"no end", b""] {
            assert_eq!(lookup(name), Err(Errno::INVAL), "{name:?}");
        }
        let long = |bytes: usize| [vec![b'a'; bytes], vec![0]].concat();
        assert_eq!(lookup(&long(255)), Ok(()));
        assert_eq!(lookup(&long(256)), Err(Errno::NAMETOOLONG));
        assert_eq!(decode(&header(10), b"..\0"), Err(Errno::INVAL));
        let rename = [&2u64.to_ne_bytes()[..], b"a\0", b"../b\0"].concat();
        assert_eq!(decode(&header(12), &rename), Err(Errno::INVAL));
    }

    #[test]
    fn what_is_unknown_says_so() {
        for opcode in [0, 7, 31, 39, 52, u32::MAX] {
            assert_eq!(decode(&header(opcode), &[0; 64]), Err(Errno::NOSYS));
        }
    }

    proptest! {
        /// Whatever comes, nothing panics, and nothing is taken from beyond the message.
        #[test]
        fn any_bytes_are_taken_apart_or_refused(
            opcode in 0u32..60,
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            decode(&header(opcode), &body).ok();
            parse(&body).ok();
        }
    }
}
