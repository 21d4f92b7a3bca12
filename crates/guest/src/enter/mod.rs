//! What a program is before it is that program: a process of ours that takes from itself what the program is not to
//! have, and then becomes it.
//!
//! Nothing is done between fork and exec but what only a child can do; here it is ordinary code, one thread, with an
//! allocator. The service hands it an [`Entry`] and learns by a pipe that is closed when the program begins.

mod identity;
mod init;
mod strip;
mod view;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::io::FdFlags;
use rustix::thread::LinkNameSpaceType;

use self::identity::Identity;
use crate::exec::entry::{Entry, Obstacle};

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
    #[error("there is no {0} `{1}` in the sandbox")]
    Unknown(&'static str, String),
    #[error("the working directory `{0}` cannot be entered")]
    Directory(PathBuf, #[source] io::Error),
    #[error("there is no program `{0}` in the sandbox")]
    Missing(String, #[source] io::Error),
    #[error("the program `{0}` cannot be run")]
    Unfit(String, #[source] io::Error),
}

impl Error {
    fn obstacle(&self) -> Obstacle {
        match self {
            Self::Missing(..) => Obstacle::Missing,
            Self::Unfit(..) => Obstacle::Unfit,
            _ => Obstacle::Other,
        }
    }
}

/// The numbers of `user`, by the sandbox's own files: `user`, `uid`, either with `:group` or `:gid`.
pub(crate) fn owner(user: &str) -> Result<(u32, u32), String> {
    let found = Identity::find(user).map_err(|error| crate::chain(&error))?;
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
        Ok(()) if entry.argv.is_empty() => {
            drop(errors);
            stay()
        }
        Ok(()) if entry.first && confinement_has_init(&entry) => init::run(&entry, errors),
        Ok(()) => fail(&mut errors, &become_program(&entry)),
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

fn prepare(entry: &Entry, namespaces: Vec<OwnedFd>) -> Result<(), Error> {
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
        return strip::hold();
    }
    if entry.terminal {
        rustix::process::setsid().map_err(step("begin a session"))?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(step("take its terminal"))?;
    }
    std::env::set_current_dir(entry.cwd()).map_err(|error| Error::Directory(entry.cwd(), error))?;
    let identity = Identity::find(&entry.user)?;
    identity.own_streams();
    strip::take(confinement, &identity)
}

/// Becomes the program. Returns only when it cannot.
fn become_program(entry: &Entry) -> Error {
    let words: Vec<OsString> =
        entry.argv.iter().map(|word| std::os::unix::ffi::OsStringExt::from_vec(word.clone())).collect();
    let mut env = entry.environment();
    if !env.contains_key(std::ffi::OsStr::new("HOME")) {
        let home = Identity::find(&entry.user).map(|identity| identity.home).unwrap_or_else(|_| "/".into());
        env.insert("HOME".into(), home.into());
    }
    #[expect(clippy::disallowed_methods, reason = "this process becomes the program")]
    let mut command = std::process::Command::new(&words[0]);
    let error = command.args(&words[1..]).env_clear().envs(env).exec();
    let name = words[0].to_string_lossy().into_owned();
    match error.kind() {
        io::ErrorKind::NotFound => Error::Missing(name, error),
        _ => Error::Unfit(name, error),
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
