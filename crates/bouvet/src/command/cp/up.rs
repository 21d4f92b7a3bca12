//! From this machine to a sandbox.

use std::fs::{self, Metadata};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use hyper::Method;

use super::{MAX_DEPTH, Remote, There, io, join, last, means_content};
use crate::api::client::path;
use crate::command::outcome::Failed;
use crate::command::table::note;

/// What is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Copies a file or directory.
pub(super) async fn copy(remote: &Remote<'_>, from: &Path, to: &str) -> Result<(), Failed> {
    let about = fs::metadata(from).map_err(|error| io("read", from, &error))?;
    let shown = from.to_string_lossy().into_owned();
    let there = remote.look(to).await?;
    if !about.is_dir() {
        let to = match there {
            There::Directory(_) => join(to, last(&shown).unwrap_or("file")),
            There::Nothing if to.ends_with('/') => {
                return Err(Failed::new(format!(
                    "there is no directory `{}` in the sandbox",
                    to.escape_debug()
                )));
            }
            There::Nothing | There::Other => to.to_owned(),
        };
        return file(remote, from, &about, &to).await;
    }
    let to = match there {
        There::Other => {
            return Err(Failed::new(format!("`{}` in the sandbox is no directory", to.escape_debug())));
        }
        There::Directory(_) if !means_content(&shown) => join(to, name(from).as_deref().unwrap_or("")),
        There::Directory(_) | There::Nothing => to.to_owned(),
    };
    directory(remote, from, &to).await
}

/// What a directory is called, also where it was typed as `..`.
fn name(path: &Path) -> Option<String> {
    Some(fs::canonicalize(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

async fn directory(remote: &Remote<'_>, from: &Path, to: &str) -> Result<(), Failed> {
    // Directories that are to be copied yet.
    let mut left: Vec<(PathBuf, String, usize)> = vec![(from.to_owned(), to.to_owned(), 0)];
    while let Some((from, to, depth)) = left.pop() {
        if depth > MAX_DEPTH {
            return Err(Failed::new(format!("`{}` is deeper than {MAX_DEPTH} directories", from.display())));
        }
        let entries = fs::read_dir(&from).map_err(|error| io("read", &from, &error))?;
        let mut is_empty = true;
        for entry in entries {
            let entry = entry.map_err(|error| io("read", &from, &error))?;
            is_empty = false;
            let Ok(name) = entry.file_name().into_string() else {
                note(&format!("skipped `{}`: its name is not UTF-8", entry.path().display()));
                continue;
            };
            let (from, to) = (entry.path(), join(&to, &name));
            let kind = entry.file_type().map_err(|error| io("read", &from, &error))?;
            match fs::metadata(&from) {
                Ok(_) if kind.is_dir() => left.push((from, to, depth + 1)),
                // What a link to a file points to is copied; of one to a directory nobody knows where it ends.
                Ok(about) if about.is_file() => file(remote, &from, &about, &to).await?,
                Ok(_) => note(&format!("skipped `{}`: it is neither a file nor a directory", from.display())),
                Err(error) => note(&format!("skipped `{}`: {error}", from.display())),
            }
        }
        if is_empty {
            remote.client.act(Method::POST, &remote.files(&to)).await?;
        }
    }
    Ok(())
}

async fn file(remote: &Remote<'_>, from: &Path, about: &Metadata, to: &str) -> Result<(), Failed> {
    let opened = fs::File::open(from).map_err(|error| io("read", from, &error))?;
    let content = stream::unfold(Some(opened), async |file| {
        let mut file = file?;
        let mut buffer = vec![0; READ_BYTES];
        // The disk of this machine answers at once.
        match file.read(&mut buffer) {
            Ok(0) => None,
            Ok(length) => {
                buffer.truncate(length);
                Some((Ok(Bytes::from(buffer)), Some(file)))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    let mode = (about.permissions().mode() & 0o7777).to_string();
    let path = path(&["sandboxes", remote.sandbox, "file"], &[("path", to), ("mode", &mode)]);
    Ok(remote.client.upload(&path, content).await?)
}
