//! A file or directory as a tar stream, in the GNU format: names of any length, and files with holes.

use std::collections::HashMap;
use std::collections::hash_map;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use tar::{Builder, EntryType, Header};

use super::{CONTENT, Skipped, special};

/// Largest depth of directories: beyond it a path has more bytes than the system takes.
const MAX_DEPTH: usize = 2048;

/// The name by which GNU tar marks an extension with a target that does not fit into a header.
const LONG_LINK: &[u8] = b"././@LongLink";

/// A file or directory to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is. A symbolic link is packed as a link.
    pub path: PathBuf,
    /// The name that it gets in the archive; [`CONTENT`] for the content of a directory.
    pub name: PathBuf,
}

/// Why packing stopped.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file could not be read.
    #[error("could not read `{}`", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The stream could not be written.
    #[error("could not write the archive")]
    Write(#[source] io::Error),
    /// Directories are nested too deeply.
    #[error("`{}` is deeper than {MAX_DEPTH} directories", .0.display())]
    Depth(PathBuf),
}

/// Packs `source` into `out`. Names what is left out to `skipped`: special files, and what vanished meanwhile.
pub fn pack(source: &Source, out: impl Write, skipped: &mut dyn FnMut(Skipped)) -> Result<(), PackError> {
    let mut packer = Packer { builder: Builder::new(out), links: HashMap::new(), skipped };
    let about = fs::symlink_metadata(&source.path).map_err(|error| read(&source.path, error))?;
    packer.tree(source, &about)?;
    packer.builder.into_inner().and_then(|mut out| out.flush()).map_err(PackError::Write)
}

fn read(path: &Path, error: io::Error) -> PackError {
    PackError::Read(path.to_owned(), error)
}

struct Packer<'a, W: Write> {
    builder: Builder<W>,
    /// Names of files that have several, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
    skipped: &'a mut dyn FnMut(Skipped),
}

/// A directory whose entries are being packed.
struct Level {
    path: PathBuf,
    name: PathBuf,
    /// In reverse order.
    left: Vec<OsString>,
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self, source: &Source, about: &Metadata) -> Result<(), PackError> {
        self.entry(&source.path, &source.name, about)?;
        if !about.is_dir() {
            return Ok(());
        }
        let name = if source.name == Path::new(CONTENT) { PathBuf::new() } else { source.name.clone() };
        let left = names(&source.path).map_err(|error| read(&source.path, error))?;
        let mut levels = vec![Level { path: source.path.clone(), name, left }];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.left.pop() else {
                levels.pop();
                continue;
            };
            let (path, name) = (level.path.join(&entry), level.name.join(&entry));
            let about = match fs::symlink_metadata(&path) {
                Ok(about) => about,
                Err(error) => {
                    self.skip(&path, &error.to_string());
                    continue;
                }
            };
            self.entry(&path, &name, &about)?;
            if about.is_dir() {
                if levels.len() == MAX_DEPTH {
                    return Err(PackError::Depth(path));
                }
                match names(&path) {
                    Ok(left) => levels.push(Level { path, name, left }),
                    Err(error) => self.skip(&path, &error.to_string()),
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        (self.skipped)(Skipped { path: path.to_string_lossy().into_owned(), reason: reason.to_owned() });
    }

    fn entry(&mut self, path: &Path, name: &Path, about: &Metadata) -> Result<(), PackError> {
        let kind = about.file_type();
        if kind.is_dir() {
            let mut header = header(about, EntryType::Directory);
            return self.append(&mut header, name, io::empty());
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|error| read(path, error))?;
            return self.link(header(about, EntryType::Symlink), name, &target);
        }
        if !kind.is_file() {
            let what = special(FileType::from_raw_mode(about.mode()));
            self.skip(path, what);
            return Ok(());
        }
        if about.nlink() > 1 {
            match self.links.entry((about.dev(), about.ino())) {
                hash_map::Entry::Occupied(first) => {
                    let first = first.get().clone();
                    return self.link(header(about, EntryType::Link), name, &first);
                }
                hash_map::Entry::Vacant(place) => drop(place.insert(name.to_owned())),
            }
        }
        self.file(path, name)
    }

    fn file(&mut self, path: &Path, name: &Path) -> Result<(), PackError> {
        let mut file = match open(path) {
            Ok(file) => file,
            Err(error) => {
                self.skip(path, &error.to_string());
                return Ok(());
            }
        };
        let about = file.metadata().map_err(|error| read(path, error))?;
        if about.blocks() * 512 < about.len() {
            // The builder finds the holes itself.
            return self.builder.append_file(name, &mut file).map_err(PackError::Write);
        }
        let mut header = header(&about, EntryType::Regular);
        header.set_size(about.len());
        let mut content = Exact { file: file.take(about.len()), left: about.len(), was_short: false };
        self.append(&mut header, name, &mut content)?;
        if content.was_short {
            self.skip(path, "became shorter while it was read: zeros are in place of its end");
        }
        Ok(())
    }

    /// Adds a link. Unlike the builder's own way, the target keeps all of its bytes.
    fn link(&mut self, mut header: Header, name: &Path, target: &Path) -> Result<(), PackError> {
        let target = target.as_os_str().as_bytes();
        if header.set_link_name_literal(target).is_err() {
            let mut long = Header::new_gnu();
            let length = target.len() as u64 + 1;
            if let Some(gnu) = long.as_gnu_mut() {
                gnu.name[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
            }
            long.set_entry_type(EntryType::GNULongLink);
            long.set_size(length);
            long.set_mode(0o644);
            long.set_cksum();
            let padding = vec![0; usize::try_from(length.next_multiple_of(512) - length).unwrap_or(0) + 1];
            let out = self.builder.get_mut();
            let parts = [&long.as_bytes()[..], target, &padding];
            parts.iter().try_for_each(|part| out.write_all(part)).map_err(PackError::Write)?;
        }
        self.append(&mut header, name, io::empty())
    }

    fn append(&mut self, header: &mut Header, name: &Path, content: impl io::Read) -> Result<(), PackError> {
        // A path that ends with a slash is a directory's in every implementation.
        let name = if header.entry_type().is_dir() { name.join("") } else { name.to_owned() };
        self.builder.append_data(header, name, content).map_err(PackError::Write)
    }
}

/// Exactly as many bytes as a header has promised.
struct Exact {
    file: io::Take<File>,
    left: u64,
    was_short: bool,
}

impl io::Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut length = self.file.read(&mut buffer[..room])?;
        if length == 0 && room > 0 {
            self.was_short = true;
            buffer[..room].fill(0);
            length = room;
        }
        self.left -= length as u64;
        Ok(length)
    }
}

/// Opens a regular file, and nothing that was put in its place: opening a pipe could wait for ever.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it changed while it was read")),
    }
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let names: io::Result<Vec<_>> = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn header(about: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(about);
    header.set_entry_type(kind);
    header.set_size(0);
    header
}
