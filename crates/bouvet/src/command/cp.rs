//! `bouvet cp`.

mod down;
mod stream;
mod up;

use std::path::{Path, PathBuf};

use clap::Args;

use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::{CallError, Client, path};
use crate::api::shape::{SkippedView, StatView};

/// The exit code when all was copied but for what was named on standard error.
const SKIPPED: u8 = 1;
/// The exit code for a destination that would be replaced, as docker has it.
const REFUSED: u8 = 1;

#[derive(Debug, Args)]
#[command(
    after_help = "SANDBOX:PATH is in the sandbox, where relative paths begin at its root; a path of this machine \
    with a colon is written `./a:b`. A directory goes into a destination that exists, and becomes one that does not; \
    with `/.` at its end its content is copied.\n\nWith `-` as destination a tar archive is written to standard output; \
    with `-` as source one is read from standard input and unpacked into a directory of the sandbox, with the owners \
    that it names. A file called `-` is written `./-`.\n\nThe disk of a stopped sandbox can be read until it is started \
    or removed; a persistent one can be written too. Its volumes and file systems in memory are not there.\n\nNamed \
    pipes, sockets and devices are not copied: they are named on standard error, and the exit code is 1."
)]
pub(crate) struct Line {
    /// Keep the owners (by number) of what is copied
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symbolic link SOURCE leads to, instead of the link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not report skipped files
    #[arg(short, long)]
    quiet: bool,
    /// Source: a path, SANDBOX:PATH, or `-` for standard input
    source: String,
    /// Destination: a path, SANDBOX:PATH, or `-` for standard output
    destination: String,
}

/// Files of this machine, or a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Local {
    Path(PathBuf),
    /// Standard input or output.
    Stream,
}

impl Local {
    fn of(text: &str) -> Self {
        if text == "-" { Self::Stream } else { Self::Path(text.into()) }
    }
}

/// Which way it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Up { from: Local, sandbox: String, to: String },
    Down { sandbox: String, from: String, to: Local },
}

/// `SANDBOX:PATH`, unless it is a path of this machine.
fn remote(text: &str) -> Option<(String, String)> {
    let (sandbox, path) = text.split_once(':')?;
    if sandbox.is_empty() || sandbox.contains('/') || sandbox.starts_with('.') {
        return None;
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some((sandbox.to_owned(), path))
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> Option<String> {
        match self.route().ok()? {
            Route::Up { sandbox, .. } | Route::Down { sandbox, .. } => Some(sandbox),
        }
    }

    /// Which way it goes.
    pub(super) fn route(&self) -> Result<Route, Failed> {
        match (remote(&self.source), remote(&self.destination)) {
            (None, Some((sandbox, to))) => Ok(Route::Up { from: Local::of(&self.source), sandbox, to }),
            (Some((sandbox, from)), None) => {
                Ok(Route::Down { sandbox, from, to: Local::of(&self.destination) })
            }
            (None, None) => {
                Err(Failed::new("neither path is in a sandbox").hint("write one as SANDBOX:PATH"))
            }
            (Some(_), Some(_)) => {
                Err(Failed::new("both paths are in sandboxes").hint("copy it to this machine first"))
            }
        }
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let client = connection.client.clone();
    let (keep_owners, follow, quiet) = (line.archive, line.follow_link, line.quiet);
    let skipped = match line.route()? {
        Route::Up { from, sandbox, to } => {
            let remote = Remote { client, sandbox, keep_owners, follow };
            up::copy(&remote, &from, &to).await?
        }
        Route::Down { sandbox, from, to } => {
            let remote = Remote { client, sandbox, keep_owners, follow };
            down::copy(&remote, &from, &to).await?
        }
    };
    if !quiet {
        for file in &skipped.named {
            // A sandbox may call its files anything.
            table::note(&table::plain(&format!("skipped `{}`: {}", file.path, file.reason)));
        }
        if skipped.count > skipped.named.len() as u64 {
            table::note(&format!("skipped {} files in all", skipped.count));
        }
    }
    Ok(if skipped.count == 0 { 0 } else { SKIPPED })
}

/// Files that are named at most.
const MAX_NAMED: usize = 1000;

/// Files that were not copied.
#[derive(Debug, Default)]
struct Skipped {
    /// The first of them.
    named: Vec<SkippedView>,
    count: u64,
}

impl Skipped {
    fn add(&mut self, file: SkippedView) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(file);
        }
    }
}

impl From<bouvet_archive::Skipped> for SkippedView {
    fn from(file: bouvet_archive::Skipped) -> Self {
        Self { path: file.path, reason: file.reason }
    }
}

/// The files of a sandbox, and how they are copied.
struct Remote {
    client: Client,
    sandbox: String,
    keep_owners: bool,
    /// Whether a source that is a link is followed.
    follow: bool,
}

impl Remote {
    fn archive_path(&self, query: &[(&str, &str)]) -> String {
        path(&["sandboxes", &self.sandbox, "archive"], query)
    }

    /// The file at a path; `None` if there is none.
    async fn stat(&self, at: &str) -> Result<Option<StatView>, Failed> {
        match self.client.get::<StatView>(&path(&["sandboxes", &self.sandbox, "stat"], &[("path", at)])).await
        {
            Ok(stat) => Ok(Some(stat)),
            Err(CallError::Refused(failure)) if failure.kind == "no_file" => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The directory of a path in a sandbox, and the name there.
fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (directory, name) = path.rsplit_once('/')?;
    let directory = if directory.is_empty() { "/" } else { directory };
    (!matches!(name, "" | "." | "..")).then_some((directory, name))
}

/// Whether the content of a directory is meant, and not itself.
fn means_content(path: &str) -> bool {
    path.ends_with("/.") || path == "." || path.trim_end_matches('/').is_empty()
}

/// The last part of a path.
fn last(path: &str) -> Option<&str> {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."))
}

/// A destination that is a device, a named pipe or a socket, which a copy would replace. `place` has the path, as shown.
fn not_a_place(place: &str) -> Failed {
    let text = format!("the destination {place} must be a directory or a regular file");
    Failed { code: REFUSED, ..Failed::new(text) }
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("could not {what} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(source: &str, destination: &str) -> Result<Route, Failed> {
        let (archive, follow_link, quiet) = Default::default();
        Line { archive, follow_link, quiet, source: source.into(), destination: destination.into() }.route()
    }

    #[test]
    fn a_colon_names_a_sandbox_unless_it_is_in_a_path() {
        let up = |from: &str, to: &str| Route::Up {
            from: Local::Path(from.into()),
            sandbox: "box".into(),
            to: to.into(),
        };
        assert_eq!(route("dir", "box:/srv"), Ok(up("dir", "/srv")));
        assert_eq!(route("./a:b", "box:srv/x"), Ok(up("./a:b", "/srv/x")));
        assert_eq!(route("/tmp/a:b", "box:"), Ok(up("/tmp/a:b", "/")));
        let down =
            Route::Down { sandbox: "box".into(), from: "/etc/a:b".into(), to: Local::Path(".".into()) };
        assert_eq!(route("box:/etc/a:b", "."), Ok(down));
        assert!(route("a", "b").is_err() && route("a:/b", "c:/d").is_err() && route("-", "-").is_err());
    }

    #[test]
    fn dash_is_a_stream_unless_a_path() {
        let of = |text: &str| match route("box:/x", text).unwrap() {
            Route::Down { to, .. } => to,
            Route::Up { .. } => panic!("{text}"),
        };
        assert_eq!(
            (of("-"), of("./-"), of("-x")),
            (Local::Stream, Local::Path("./-".into()), Local::Path("-x".into()))
        );
        assert!(matches!(route("-", "box:/x"), Ok(Route::Up { from: Local::Stream, .. })));
    }

    #[test]
    fn paths_are_taken_apart_as_people_mean_them() {
        assert_eq!((last("/a/b/"), last("/"), last("a/.")), (Some("b"), None, None));
        assert!(means_content("a/.") && means_content(".") && means_content("/") && !means_content("a/b"));
        assert_eq!((split("/a/b/"), split("/a"), split("/")), (Some(("/a", "b")), Some(("/", "a")), None));
    }
}
