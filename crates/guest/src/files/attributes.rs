//! Attributes of a file: owner, group, permissions and extended attributes, access control lists among them.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;

/// Bytes of the names, or of the value of one, that the kernel lets a file have (xattr(7)).
const MAX_XATTR_BYTES: usize = 64 * 1024;
/// Permissions, set-id and sticky bits.
const MODE_BITS: u32 = 0o7777;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    xattrs: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Attributes of the file at `path`, which is not a link.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        let mut space = vec![0; MAX_XATTR_BYTES];
        let names = names(rustix::fs::llistxattr(path, &mut space[..]), &space)?;
        let mut xattrs = Vec::new();
        for name in names {
            match rustix::fs::lgetxattr(path, &name, &mut space[..]) {
                Ok(length) => xattrs.push((name, space[..length].to_vec())),
                // Removed between the two calls.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & MODE_BITS, xattrs })
    }

    /// Gives all of them, and no others, to `file`.
    pub(super) fn apply(&self, file: &File) -> io::Result<()> {
        rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        let mut space = vec![0; MAX_XATTR_BYTES];
        // A directory may give its new files a list that the old file does not have.
        for name in names(rustix::fs::flistxattr(file, &mut space[..]), &space)? {
            if self.xattrs.iter().all(|(own, _)| *own != name) {
                rustix::fs::fremovexattr(file, &name)?;
            }
        }
        // A change of owner takes set-id bits away, and a list is the last to set permissions of groups.
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))?;
        self.apply_xattrs(file)
    }

    /// Gives the extended ones to `file`: a write takes capabilities away.
    pub(super) fn apply_xattrs(&self, file: &File) -> io::Result<()> {
        for (name, value) in &self.xattrs {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// The names in `space`, each with a NUL after it. A file system may have none.
fn names(length: rustix::io::Result<usize>, space: &[u8]) -> io::Result<Vec<CString>> {
    let length = match length {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = space[..length].split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()).map(CStr::to_owned).collect())
}
