//! From a sandbox to this machine. What a sandbox says of its files is not believed: no name leads out of the
//! destination, no link that it made is written through, and nothing becomes setuid.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;

use super::{MAX_DEPTH, Remote, There, io, join, last, means_content};
use crate::api::client::path;
use crate::api::shape::EntryView;
use crate::command::outcome::Failed;
use crate::command::table::note;

/// Permission bits that a file may bring.
const MODE: u32 = 0o777;

/// Copies a file or directory.
pub(super) async fn copy(remote: &Remote<'_>, from: &str, to: &Path) -> Result<(), Failed> {
    match remote.look(from).await? {
        There::Nothing => Err(Failed::new(format!("there is no `{}` in the sandbox", from.escape_debug()))),
        There::Other => {
            let name = last(from).ok_or_else(|| Failed::new("this path names no file"))?;
            let to = if to.is_dir() { to.join(safe(name)?) } else { to.to_owned() };
            let mode = mode_of(remote, from, name).await;
            file(remote, from, mode, &to).await
        }
        There::Directory(entries) => {
            let to = match (to.is_dir(), last(from)) {
                (true, Some(name)) if !means_content(from) => to.join(safe(name)?),
                _ => to.to_owned(),
            };
            directory(remote, from, entries, &to).await
        }
    }
}

/// The permission bits of a file, which only its directory knows.
async fn mode_of(remote: &Remote<'_>, from: &str, name: &str) -> u32 {
    let parent = from.trim_end_matches('/').trim_end_matches(name);
    match remote.look(if parent.is_empty() { "/" } else { parent }).await {
        Ok(There::Directory(entries)) => entries
            .iter()
            .find(|entry| entry.name == name && entry.kind == "file")
            .map_or(0o644, |entry| entry.mode),
        _ => 0o644,
    }
}

/// A name that is one part of a path.
fn safe(name: &str) -> Result<&str, Failed> {
    match name.is_empty() || matches!(name, "." | "..") || name.contains(['/', '\0']) {
        true => Err(Failed::new(format!(
            "the sandbox has a file called `{}`, which is no name",
            name.escape_debug()
        ))),
        false => Ok(name),
    }
}

async fn directory(
    remote: &Remote<'_>,
    from: &str,
    entries: Vec<EntryView>,
    to: &Path,
) -> Result<(), Failed> {
    // Made last: until then nothing can be written through them.
    let mut links: Vec<(PathBuf, String)> = Vec::new();
    let mut left = vec![(from.to_owned(), entries, to.to_owned(), 0)];
    while let Some((from, entries, to, depth)) = left.pop() {
        if depth > MAX_DEPTH {
            return Err(Failed::new(format!("`{from}` is deeper than {MAX_DEPTH} directories")));
        }
        make(&to, depth == 0)?;
        let mut seen = HashSet::new();
        for entry in entries {
            let name = safe(&entry.name)?;
            if !seen.insert(name.to_owned()) {
                return Err(Failed::new(format!("the sandbox lists `{}` twice", name.escape_debug())));
            }
            let (from, to) = (join(&from, name), to.join(name));
            match entry.kind.as_str() {
                "file" => file(remote, &from, entry.mode, &to).await?,
                "directory" => match remote.look(&from).await? {
                    There::Directory(entries) => left.push((from, entries, to, depth + 1)),
                    _ => return Err(Failed::new(format!("`{from}` changed while it was copied"))),
                },
                "symlink" => links.push((to, entry.link_target)),
                _ => {
                    note(&format!("skipped `{}`: it is neither a file nor a directory", from.escape_debug()))
                }
            }
        }
    }
    links.iter().try_for_each(|(at, target)| link(at, target))
}

/// Makes a directory, or takes one that is there; a link to one only where it was typed.
fn make(path: &Path, was_typed: bool) -> Result<(), Failed> {
    let about = if was_typed { fs::metadata(path) } else { fs::symlink_metadata(path) };
    match about {
        Ok(about) if about.is_dir() => Ok(()),
        Ok(_) => Err(Failed::new(format!("`{}` is no directory", path.display()))),
        Err(_) => fs::create_dir(path).map_err(|error| io("make", path, &error)),
    }
}

fn link(at: &Path, target: &str) -> Result<(), Failed> {
    if fs::symlink_metadata(at).is_ok_and(|about| about.is_symlink()) {
        fs::remove_file(at).map_err(|error| io("replace", at, &error))?;
    }
    std::os::unix::fs::symlink(target, at).map_err(|error| io("make", at, &error))
}

/// Writes a file whole or not at all, in place of what is there: a link is replaced and not followed.
async fn file(remote: &Remote<'_>, from: &str, mode: u32, to: &Path) -> Result<(), Failed> {
    let failed = |error: std::io::Error| io("write", to, &error);
    if fs::symlink_metadata(to).is_ok_and(|about| about.is_dir()) {
        return Err(Failed::new(format!("`{}` is a directory", to.display())));
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut content =
        remote.client.download(&path(&["sandboxes", remote.sandbox, "file"], &[("path", from)])).await?;
    let mut young = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    while let Some(bytes) = content.next().await {
        // The disk of this machine takes it at once.
        young.write_all(&bytes?).map_err(failed)?;
    }
    young.as_file().set_permissions(Permissions::from_mode(mode & MODE)).map_err(failed)?;
    young.persist(to).map(drop).map_err(|error| failed(error.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_destination() {
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b"] {
            assert!(safe(name).is_err(), "{name:?}");
        }
        assert_eq!(safe("...").ok(), Some("..."));
    }

    #[test]
    fn directories_are_not_made_through_links_that_nobody_typed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, linked) = (dir.path().join("real"), dir.path().join("linked"));
        fs::create_dir(&real).unwrap();
        link(&linked, "real").unwrap();
        assert!(make(&linked, true).is_ok() && make(&real, false).is_ok());
        assert!(make(&linked, false).is_err());
        link(&linked, "elsewhere").unwrap();
        assert_eq!(fs::read_link(&linked).unwrap(), Path::new("elsewhere"));
        assert!(link(&real, "x").is_err(), "a directory is no link to be replaced");
    }
}
