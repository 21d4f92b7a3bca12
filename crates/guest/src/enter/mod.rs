//! What a program is before it is that program: a process of ours that takes from itself what the program is not to
//! have, and then becomes it.
//!
//! Nothing is done between fork and exec but what only a child can do; here it is ordinary code, one thread, with an
//! allocator. The service hands it an [`Entry`] and learns by a pipe that is closed when the program begins.

mod init;
mod obstacle;
mod strip;
mod view;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::io::FdFlags;
use rustix::thread::LinkNameSpaceType;

use self::obstacle::Why;
use crate::exec::entry::{Entry, Obstacle};
use crate::identity::{self, Identity};

/// As a shell has it for a program that could not be started.
const FAILED: u8 = 126;

/// Why a stage did not become its program.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not {0}")]
    Step(&'static str, #[source] io::Error),
    #[error("could not mount `{0}`")]
    Mount(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Sysctl(#[from] crate::sysctl::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("the working directory `{0}` cannot be entered")]
    Directory(PathBuf, #[source] io::Error),
    #[error("there is no program `{0}` in the sandbox")]
    Missing(String),
    #[error("the program `{name}` cannot be run: {why}")]
    Unfit { name: String, why: Why },
    #[error("the program `{0}` cannot be run")]
    Refused(String, #[source] io::Error),
}

impl Error {
    fn obstacle(&self) -> Obstacle {
        match self {
            Self::Missing(_) => Obstacle::Missing,
            Self::Unfit { why, .. } => why.obstacle(),
            Self::Refused(..) => Obstacle::Unfit,
            _ => Obstacle::Other,
        }
    }
}

/// The numbers of `user`, by the sandbox's own files: `user`, `uid`, either with `:group` or `:gid`.
pub(crate) fn owner(user: &str) -> Result<(u32, u32), String> {
    let found = Identity::find(user, &[]).map_err(|error| crate::chain(&error))?;
    Ok((found.uid, found.gid))
}

/// Makes an error of what was tried.
fn step(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |error| Error::Step(what, error.into())
}

/// Runs as `bouvet-guest enter ENTRY ERRORS [NAMESPACE…]`, all of them descriptors. Returns if it fails.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut fds = args.map_while(|arg| inherited(&arg));
    let (Some(entry), Some(errors)) = (fds.next(), fds.next()) else {
        return ExitCode::from(FAILED);
    };
    let mut errors = File::from(errors);
    let entry = match Entry::read(entry.into()) {
        Ok(entry) => entry,
        Err(error) => return fail(&mut errors, &Error::Step("read what it is to be", error)),
    };
    match prepare(&entry, fds.collect()) {
        Ok(None) => {
            drop(errors);
            stay()
        }
        Ok(Some(identity)) if entry.first && confinement_has_init(&entry) => {
            init::run(&entry, &identity, errors)
        }
        Ok(Some(identity)) => fail(&mut errors, &become_program(&entry, &identity)),
        Err(error) => fail(&mut errors, &error),
    }
}

fn confinement_has_init(entry: &Entry) -> bool {
    entry.confinement.as_ref().is_some_and(|confinement| confinement.init)
}

fn fail(errors: &mut File, error: &Error) -> ExitCode {
    let report = [&[error.obstacle().letter()], crate::chain(error).as_bytes()].concat();
    // The service may have given it up.
    errors.write_all(&report).ok();
    ExitCode::from(FAILED)
}

/// The descriptor of this number, which the program does not get.
fn inherited(number: &OsString) -> Option<OwnedFd> {
    let number = number.to_str()?.parse::<i32>().ok().filter(|number| *number > 2)?;
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number alone")]
    // SAFETY: the service passed the descriptor for this one use.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Makes this process what its program is to be, and returns who that is; `None`: there is no program.
fn prepare(entry: &Entry, namespaces: Vec<OwnedFd>) -> Result<Option<Identity>, Error> {
    for namespace in namespaces {
        // Which kind it is, the descriptor knows.
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            None::<LinkNameSpaceType>,
        )
        .map_err(step("join the sandbox's namespaces"))?;
    }
    let confinement = entry.confinement.as_ref();
    if entry.first {
        let root = (!entry.root.is_empty()).then(|| Path::new(OsStr::from_bytes(&entry.root)));
        view::make(confinement, root)?;
        if root.is_some() {
            std::fs::create_dir_all(entry.cwd()).map_err(|error| Error::Directory(entry.cwd(), error))?;
        }
    }
    if entry.argv.is_empty() {
        return strip::hold().map(|()| None);
    }
    if entry.terminal {
        rustix::process::setsid().map_err(step("begin a session"))?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(step("take its terminal"))?;
    }
    std::env::set_current_dir(entry.cwd()).map_err(|error| Error::Directory(entry.cwd(), error))?;
    let groups = confinement.map_or(&[][..], |confinement| &confinement.groups);
    let identity = Identity::find(&entry.user, groups)?;
    identity.own_streams();
    strip::take(confinement, &identity)?;
    Ok(Some(identity))
}

/// Becomes the program. Returns only when it cannot.
fn become_program(entry: &Entry, identity: &Identity) -> Error {
    let words: Vec<OsString> =
        entry.argv.iter().map(|word| std::os::unix::ffi::OsStringExt::from_vec(word.clone())).collect();
    let mut env = entry.environment();
    // As in runc, an empty one counts as missing.
    if env.get(OsStr::new("HOME")).is_none_or(|home| home.is_empty()) {
        env.insert("HOME".into(), identity.home.clone().into());
    }
    let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_default();
    reset_signals();
    let error = obstacle::execute(&words, &env, &path);
    let name = words[0].to_string_lossy().escape_debug().to_string();
    match Why::of(&words[0], &path, &error) {
        Why::Missing => Error::Missing(name),
        Why::Unknown => Error::Refused(name, error),
        why => Error::Unfit { name, why },
    }
}

/// Lets the program begin with the signals of any other: Rust ignores SIGPIPE, and a process 1 blocks all.
fn reset_signals() {
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: it replaces no handler of ours, and the set is initialised by `sigemptyset`.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Stays, as the first process of a namespace must. Orphans become its children, and the kernel reaps those of a process
/// that ignores their ends (sigaction(2), `SA_NOCLDWAIT`).
fn stay() -> ExitCode {
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: it replaces no handler of ours, and `pause` only waits.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        loop {
            libc::pause();
        }
    }
}
