//! `bouvet cp`.

mod down;
mod up;

use std::path::{Path, PathBuf};

use clap::Args;

use super::outcome::{Connection, Failed};
use crate::api::client::{CallError, Client, path};
use crate::api::shape::{EntryView, ListingView};

/// Directories within each other.
const MAX_DEPTH: usize = 100;

/// What is typed after `bouvet cp`.
#[derive(Debug, Args)]
#[command(
    after_help = "SANDBOX:PATH is in the sandbox, where relative paths begin at its root; a path of this machine \
    with a colon is written `./a:b`. A directory goes into a destination that is there, and becomes one that is not; \
    with `/.` at its end its content is copied."
)]
pub(crate) struct Line {
    /// What is copied: a path, or SANDBOX:PATH
    source: String,
    /// Where to: a path, or SANDBOX:PATH
    destination: String,
}

/// Which way it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Up { from: PathBuf, sandbox: String, to: String },
    Down { sandbox: String, from: String, to: PathBuf },
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
    /// Which way it goes.
    pub(super) fn route(&self) -> Result<Route, Failed> {
        match (remote(&self.source), remote(&self.destination)) {
            (None, Some((sandbox, to))) => Ok(Route::Up { from: PathBuf::from(&self.source), sandbox, to }),
            (Some((sandbox, from)), None) => {
                Ok(Route::Down { sandbox, from, to: PathBuf::from(&self.destination) })
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
    let client = &connection.client;
    match line.route()? {
        Route::Up { from, sandbox, to } => {
            up::copy(&Remote { client, sandbox: &sandbox }, &from, &to).await?
        }
        Route::Down { sandbox, from, to } => {
            down::copy(&Remote { client, sandbox: &sandbox }, &from, &to).await?
        }
    }
    Ok(0)
}

/// The files of a sandbox.
struct Remote<'a> {
    client: &'a Client,
    sandbox: &'a str,
}

/// What is at a path of a sandbox.
enum There {
    Nothing,
    Directory(Vec<EntryView>),
    Other,
}

impl Remote<'_> {
    fn files(&self, of: &str) -> String {
        path(&["sandboxes", self.sandbox, "files"], &[("path", of)])
    }

    async fn look(&self, at: &str) -> Result<There, Failed> {
        match self.client.get::<ListingView>(&self.files(at)).await {
            Ok(ListingView { truncated: true, .. }) => Err(Failed::new(format!(
                "the directory `{}` has more entries than can be listed",
                at.escape_debug()
            ))
            .hint("pack it with `tar` in the sandbox, and copy that")),
            Ok(listing) => Ok(There::Directory(listing.entries)),
            Err(CallError::Refused(failure)) if failure.kind == "no_file" => Ok(There::Nothing),
            Err(CallError::Refused(failure)) if failure.kind == "wrong_kind" => Ok(There::Other),
            Err(error) => Err(error.into()),
        }
    }
}

/// `directory` and a name in it.
fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// Whether the content of a directory is meant, and not itself.
fn means_content(path: &str) -> bool {
    path.ends_with("/.") || path == "." || path == "/"
}

/// The last part of a path.
fn last(path: &str) -> Option<&str> {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."))
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("could not {what} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(source: &str, destination: &str) -> Result<Route, Failed> {
        Line { source: source.into(), destination: destination.into() }.route()
    }

    #[test]
    fn a_colon_names_a_sandbox_unless_it_is_in_a_path() {
        let up = |from: &str, to: &str| Route::Up { from: from.into(), sandbox: "box".into(), to: to.into() };
        assert_eq!(route("dir", "box:/srv"), Ok(up("dir", "/srv")));
        assert_eq!(route("./a:b", "box:srv/x"), Ok(up("./a:b", "/srv/x")));
        assert_eq!(route("/tmp/a:b", "box:"), Ok(up("/tmp/a:b", "/")));
        let down = Route::Down { sandbox: "box".into(), from: "/etc/a:b".into(), to: ".".into() };
        assert_eq!(route("box:/etc/a:b", "."), Ok(down));
        assert!(route("a", "b").is_err() && route("a:/b", "c:/d").is_err());
    }

    #[test]
    fn paths_are_taken_apart_as_people_mean_them() {
        assert_eq!((last("/a/b/"), last("/"), last("a/.")), (Some("b"), None, None));
        assert!(means_content("a/.") && means_content(".") && !means_content("a/b"));
        assert_eq!((join("/", "a"), join("/a/", "b")), ("/a".into(), "/a/b".into()));
    }
}
