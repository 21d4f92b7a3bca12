//! Writes files. The new content first arrives whole in a temporary file beside the old one, whose owner, group,
//! permissions and attributes it then takes over, and whose place by rename(2). Where that would be another file to
//! others, who know it by a second name or by a mount, the content is copied into the old one.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bouvet_wire::v1;
use rustix::fs::{FallocateFlags, Mode};
use rustix::io::Errno;
use tokio::io::AsyncWriteExt as _;
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use super::attributes::Attributes;
use super::owned::{give, make_directories, remove_directories};
use super::{Place, check_regular, resolve, status};
use crate::description::Description;
use crate::identity::Identity;

/// Links that lead to one file, as many as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Names of temporary files that are tried.
const MAX_ATTEMPTS: usize = 16;
/// Permissions of a new file before the umask, and of one that is to get others.
const NEW_MODE: u32 = 0o666;
const PRIVATE_MODE: u32 = 0o600;
const MODE_BITS: u32 = 0o7777;
/// Content is copied in parts of this size.
const COPY_BYTES: usize = 128 * 1024;

/// Where files are written, and for whom.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) place: Place,
    pub(crate) description: Description,
    /// Where content arrives that cannot do so beside its file.
    pub(crate) spare_dir: PathBuf,
}

/// Writes a file from the messages of `input`.
pub(crate) async fn write(
    scene: Scene,
    mut input: Streaming<v1::WriteInput>,
) -> Result<v1::WriteReply, Status> {
    let Some(v1::write_input::Input::Start(start)) = input.message().await?.and_then(|m| m.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    // Where it is opened it is also cleaned up after: a caller who goes away meanwhile leaves nothing.
    let opened = tokio::task::spawn_blocking(move || Target::open(&scene, &start));
    let mut target = opened.await.map_err(|error| Status::internal(error.to_string()))??;
    let mut written_bytes = 0;
    while let Some(message) = input.next().await.transpose()? {
        let Some(v1::write_input::Input::Data(data)) = message.input else {
            return Err(Status::invalid_argument("only the first message may be `start`"));
        };
        written_bytes += data.len() as u64;
        target.file.write_all(&data).await.map_err(|error| status(&target.path, &error))?;
    }
    // tokio's file writes behind; this is where the last error shows.
    target.file.flush().await.map_err(|error| status(&target.path, &error))?;
    let settled = tokio::task::spawn_blocking(move || target.settle());
    settled.await.map_err(|error| Status::internal(error.to_string()))??;
    Ok(v1::WriteReply { written_bytes })
}

/// A file being written. Dropped before it was settled, it leaves nothing, but for what was appended.
#[derive(Debug)]
struct Target {
    /// No link.
    path: PathBuf,
    file: tokio::fs::File,
    /// Form that the content must have at the end.
    shape: Shape,
    /// `None` once it was settled.
    rest: Option<Rest>,
}

/// Files and directories that a failed write must remove.
#[derive(Debug)]
struct Rest {
    /// `None`: the file itself is appended to.
    temporary: Option<PathBuf>,
    /// Directories that were made for the file.
    made: Vec<PathBuf>,
}

impl Rest {
    fn remove(&self) {
        if let Some(temporary) = &self.temporary {
            // A temporary file that stays has no name that the caller knows.
            fs::remove_file(temporary).ok();
        }
        remove_directories(&self.made);
    }
}

/// Ways in which temporary content becomes the file.
#[derive(Debug, Clone)]
enum Shape {
    /// There was none: with these permissions, or those that it has.
    New { mode: u32 },
    /// By rename, with the attributes of the old file, or by copy.
    Replaced { attributes: Attributes, mode: u32, is_shared: bool },
}

impl Target {
    fn open(scene: &Scene, start: &v1::WriteStart) -> Result<Self, Status> {
        let asked = resolve(&scene.place, &start.path)?;
        let failed = |error: io::Error| status(&asked, &error);
        // Followed here too: what it leads to may be no file at all.
        if let Ok(metadata) = fs::metadata(&asked) {
            check_regular(&asked, &metadata)?;
        }
        let path = follow(asked.clone()).map_err(failed)?;
        let owner = scene.description.identity("");
        let owner = owner.map_err(|error| Status::unknown(format!("`{}`: {error}", path.display())))?;
        let Some(parent) = path.parent() else {
            return Err(Status::invalid_argument("this path names no file"));
        };
        let made = make_directories(parent, &owner).map_err(failed)?;
        let opened = match start.append {
            true => append(&path, &owner, start.mode),
            false => replace(&path, &owner, start.mode, &scene.spare_dir),
        };
        match opened {
            Ok((file, temporary, shape)) => {
                let (file, rest) = (tokio::fs::File::from_std(file), Some(Rest { temporary, made }));
                Ok(Self { path, file, shape, rest })
            }
            Err(error) => {
                remove_directories(&made);
                Err(failed(error))
            }
        }
    }

    /// Makes what was written the file.
    fn settle(mut self) -> Result<(), Status> {
        let temporary = self.rest.as_ref().and_then(|rest| rest.temporary.clone());
        if let Some(temporary) = temporary {
            self.place(&temporary)?;
        }
        self.rest = None;
        Ok(())
    }

    /// Puts what is in `temporary` into the file's place. Nothing of it is left there, if that is done.
    fn place(&self, temporary: &Path) -> Result<(), Status> {
        let failed = |error: io::Error| status(&self.path, &error);
        let content = File::open(temporary).map_err(failed)?;
        let is_renamed = match &self.shape {
            Shape::New { mode } => {
                set_mode(&content, *mode).and_then(|()| fs::rename(temporary, &self.path)).map(|()| true)
            }
            Shape::Replaced { is_shared: true, .. } => Ok(false),
            Shape::Replaced { attributes, mode, .. } => {
                rename_over(&content, temporary, &self.path, attributes, *mode)
            }
        };
        if !is_renamed.map_err(failed)? {
            copy_into(content, &self.path, &self.shape)?;
            fs::remove_file(temporary).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            // It may be in a volume, for which this thread must not wait.
            drop(tokio::task::spawn_blocking(move || rest.remove()));
        }
    }
}

/// The file that `path` leads to by links, whether it exists or not: an editor would make it.
fn follow(mut path: PathBuf) -> io::Result<PathBuf> {
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::LOOP.into())
}

type Opened = (File, Option<PathBuf>, Shape);

fn append(path: &Path, owner: &Identity, mode: u32) -> io::Result<Opened> {
    let file = match no_link(File::options().append(true)).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = no_link(File::options().append(true).create_new(true).mode(NEW_MODE)).open(path)?;
            let given = give(&file, path, owner).and_then(|()| set_mode(&file, mode & MODE_BITS));
            given.inspect_err(|_| drop(fs::remove_file(path)))?;
            file
        }
        opened => opened?,
    };
    Ok((file, None, Shape::New { mode: 0 }))
}

fn replace(path: &Path, owner: &Identity, mode: u32, spare_dir: &Path) -> io::Result<Opened> {
    let mode = mode & MODE_BITS;
    let Some(old) = existing(path)? else {
        let first_mode = if mode == 0 { NEW_MODE } else { PRIVATE_MODE };
        let (file, temporary) = temporary(path.parent().unwrap_or(Path::new("/")), first_mode)?;
        if let Err(error) = give(&file, path, owner) {
            fs::remove_file(&temporary).ok();
            return Err(error);
        }
        return Ok((file, Some(temporary), Shape::New { mode }));
    };
    let attributes = Attributes::of(path)?;
    let beside = temporary(path.parent().unwrap_or(Path::new("/")), PRIVATE_MODE);
    let (is_apart, (file, temporary)) = match beside {
        // The file itself may be on another file system, which can be written to; or be one that the kernel makes up.
        Err(error) if is_barred(&error) || error.kind() == io::ErrorKind::NotFound => {
            (true, temporary(spare_dir, PRIVATE_MODE)?)
        }
        beside => (false, beside?),
    };
    let is_shared = is_apart || old.nlink() > 1;
    Ok((file, Some(temporary), Shape::Replaced { attributes, mode, is_shared }))
}

fn existing(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A new file in `dir`, with a name that nobody could have guessed and put something else there.
fn temporary(dir: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..MAX_ATTEMPTS {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let path = dir.join(format!(".bouvet-write-{:016x}", u64::from_ne_bytes(random)));
        match File::options().write(true).create_new(true).mode(mode).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn no_link(options: &mut fs::OpenOptions) -> fs::OpenOptions {
    // Without O_NONBLOCK the open of a pipe would wait for its other end.
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).clone()
}

/// Whether a file could not be put into a directory, or into the place of another, for what these are.
fn is_barred(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [libc::EBUSY, libc::EXDEV, libc::EPERM, libc::EACCES, libc::EROFS]
        .into_iter()
        .any(|bar| errno == Some(bar))
}

/// Sets permissions; 0: none are.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if mode == 0 {
        return Ok(());
    }
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Puts the content in the place of `path`, as the same file; whether that was possible.
fn rename_over(
    content: &File,
    temporary: &Path,
    path: &Path,
    attributes: &Attributes,
    mode: u32,
) -> io::Result<bool> {
    // If a new file cannot have the attributes, the old file is written to instead.
    if attributes.apply(content).and_then(|()| set_mode(content, mode)).is_err() {
        return Ok(false);
    }
    match fs::rename(temporary, path) {
        Ok(()) => Ok(true),
        Err(error) if is_barred(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies the content into the file that is there. Room is made first: only a file system that fails leaves it half
/// written.
fn copy_into(mut content: File, path: &Path, shape: &Shape) -> Result<(), Status> {
    let failed = |error: io::Error| status(path, &error);
    let length = content.metadata().map_err(failed)?.len();
    let mut file = no_link(File::options().write(true)).open(path).map_err(failed)?;
    if length > 0 {
        let reserved = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, length);
        // Any other error: a file system that reserves nothing.
        if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) = reserved {
            return Err(failed(error.into()));
        }
    }
    let copied =
        content.rewind().and_then(|()| copy(&mut content, &mut file)).and_then(|()| file.set_len(length));
    copied.map_err(|error| Status::unknown(format!("`{}` was written in part: {error}", path.display())))?;
    if let Shape::Replaced { attributes, mode, .. } = shape {
        attributes.apply_xattrs(&file).and_then(|()| set_mode(&file, *mode)).map_err(failed)?;
    }
    Ok(())
}

fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut part = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut part)? {
            0 => return Ok(()),
            length => to.write_all(&part[..length])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A user that files can be given to: nobody can give them away but root.
    fn owner() -> (u32, u32) {
        let own = rustix::process::geteuid();
        if own.is_root() { (1234, 1235) } else { (own.as_raw(), rustix::process::getegid().as_raw()) }
    }

    fn scene(dir: &Path, user: &str) -> Scene {
        let mut description = Description::new(dir);
        let confinement = v1::Confinement { user: user.into(), ..v1::Confinement::default() };
        description.furnish(&v1::FurnishRequest { confinement: Some(confinement), ..Default::default() });
        let place = Place { start: dir.into(), home: dir.into() };
        Scene { place, description, spare_dir: dir.join("spare") }
    }

    fn user() -> String {
        let (uid, gid) = owner();
        format!("{uid}:{gid}")
    }

    async fn write(dir: &Path, start: v1::WriteStart, content: &str) -> Result<(), Status> {
        let mut target = Target::open(&scene(dir, &user()), &start)?;
        target.file.write_all(content.as_bytes()).await.unwrap();
        target.file.flush().await.unwrap();
        tokio::task::spawn_blocking(move || target.settle()).await.unwrap()
    }

    fn to(path: &str) -> v1::WriteStart {
        v1::WriteStart { path: path.into(), ..v1::WriteStart::default() }
    }

    fn owned(path: &Path) -> (u32, u32, u32) {
        let about = fs::symlink_metadata(path).unwrap();
        (about.uid(), about.gid(), about.mode() & MODE_BITS)
    }

    /// Names in `dir`, sorted.
    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn new_files_and_directories_are_the_user_s() {
        let dir = tempfile::tempdir().unwrap();
        let (uid, gid) = owner();
        write(dir.path(), to("a/b/new"), "x").await.unwrap();
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        let masked = |mode| mode & !umask.as_raw_mode();
        assert_eq!(owned(&dir.path().join("a")), (uid, gid, masked(0o777)));
        assert_eq!(owned(&dir.path().join("a/b/new")), (uid, gid, masked(0o666)));
        write(dir.path(), v1::WriteStart { mode: 0o4711, ..to("program") }, "x").await.unwrap();
        assert_eq!(owned(&dir.path().join("program")), (uid, gid, 0o4711));
        write(dir.path(), v1::WriteStart { append: true, ..to("log") }, "x").await.unwrap();
        assert_eq!(owned(&dir.path().join("log")), (uid, gid, masked(0o666)));
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o2775)).unwrap();
        write(dir.path(), to("shared/new"), "x").await.unwrap();
        assert_eq!(owned(&shared.join("new")).1, owned(&shared).1, "the group of its directory");
    }

    #[tokio::test]
    async fn replaced_files_keep_owner_mode_and_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        let has_xattrs = rustix::fs::fsetxattr(&file, "user.note", b"mine", flags).is_ok();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4640)).unwrap();
        let before = (owned(&path), Attributes::of(&path).unwrap());
        write(dir.path(), to("kept"), "new content").await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new content");
        assert_eq!((owned(&path), Attributes::of(&path).unwrap()), before);
        let mut value = [0; 16];
        if has_xattrs {
            assert_eq!(rustix::fs::lgetxattr(&path, "user.note", &mut value), Ok(4));
        }
        assert_eq!(names(dir.path()), ["kept"]);
    }

    #[tokio::test]
    async fn hard_links_and_symlinks_lead_to_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        fs::write(&path, "a long content that must go").unwrap();
        fs::hard_link(&path, dir.path().join("two")).unwrap();
        symlink("one", dir.path().join("link")).unwrap();
        symlink("link", dir.path().join("chain")).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        write(dir.path(), to("chain"), "short").await.unwrap();
        for name in ["one", "two", "link", "chain"] {
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "short", "{name}");
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        symlink("sub/target", dir.path().join("dangling")).unwrap();
        write(dir.path(), to("dangling"), "made").await.unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("sub/target")).unwrap(), "made");
        assert!(fs::symlink_metadata(dir.path().join("dangling")).unwrap().is_symlink());
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(write(dir.path(), to("loop"), "x").await.is_err());
        assert_eq!(names(dir.path()), ["chain", "dangling", "link", "loop", "one", "sub", "two"]);
    }

    #[tokio::test]
    async fn unfinished_writes_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept"), "old").unwrap();
        for path in ["kept", "new/dir/file"] {
            let mut target = Target::open(&scene(dir.path(), &user()), &to(path)).unwrap();
            target.file.write_all(b"half").await.unwrap();
            target.file.flush().await.unwrap();
            let rest = target.rest.take().unwrap();
            assert!(rest.temporary.is_some());
            drop(target);
            tokio::task::spawn_blocking(move || rest.remove()).await.unwrap();
        }
        assert!(Target::open(&scene(dir.path(), "no-such-user"), &to("x/y")).is_err());
        assert!(Target::open(&scene(dir.path(), &user()), &to("kept/file")).is_err());
        assert_eq!(names(dir.path()), ["kept"]);
        assert_eq!(fs::read_to_string(dir.path().join("kept")).unwrap(), "old");
    }
}
