//! From this machine to a sandbox.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use bouvet_archive::{CONTENT, Source};
use bouvet_host::chain;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::stream::{CHUNK_BYTES, WAITING_CHUNKS, writer};
use super::{Local, Remote, Skipped, io, last, means_content, not_a_place, split};
use crate::api::client::CallError;
use crate::api::shape::{StatView, UnpackedView};
use crate::command::outcome::Failed;

/// Copies a file or directory, or unpacks standard input.
pub(super) async fn copy(remote: &Remote, from: &Local, to: &str) -> Result<Skipped, Failed> {
    match from {
        Local::Path(from) => tree(remote, from, to).await,
        Local::Stream => standard_input(remote, to).await,
    }
}

async fn standard_input(remote: &Remote, to: &str) -> Result<Skipped, Failed> {
    if io::stdin().is_terminal() {
        return Err(Failed::new("an archive is not read from a terminal")
            .hint("pipe it in, as in `tar c DIRECTORY | bouvet cp - SANDBOX:PATH`"));
    }
    let stat = remote.stat(to).await?;
    if stat.as_ref().and_then(|stat| stat.target_kind.as_deref()) != Some("directory") {
        let what = if stat.is_none() {
            "there is no directory"
        } else {
            "an archive is unpacked into a directory, not"
        };
        return Err(Failed::new(format!("{what} `{}` in the sandbox", to.escape_debug())));
    }
    let (chunks, content) = mpsc::channel(WAITING_CHUNKS);
    // The thread may wait for input for ever, which keeps no command from its end.
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = input.read(&mut chunk).map(|length| {
                chunk.truncate(length);
                Bytes::from(chunk)
            });
            let is_end = matches!(&read, Ok(chunk) if chunk.is_empty());
            let is_broken = read.is_err();
            if is_end || chunks.blocking_send(read).is_err() || is_broken {
                return;
            }
        }
    });
    let unpacked = send(remote, to, "", true, content).await?;
    Ok(Skipped { named: unpacked.skipped, count: unpacked.skipped_count })
}

async fn tree(remote: &Remote, from: &Path, to: &str) -> Result<Skipped, Failed> {
    let about = match remote.follow {
        true => fs::metadata(from),
        false => fs::symlink_metadata(from),
    };
    let is_dir = about.map_err(|error| io("read", from, &error))?.is_dir();
    let path = match remote.follow {
        true => fs::canonicalize(from).map_err(|error| io("read", from, &error))?,
        false => from.to_owned(),
    };
    let shown = from.to_string_lossy().into_owned();
    let content = is_dir && means_content(&shown);
    let name = last(&shown).map(str::to_owned).or_else(|| real_name(from));
    let name = name.unwrap_or_else(|| CONTENT.into());
    let stat = remote.stat(to).await?;
    let (directory, name) = place(stat.as_ref(), to, &name, is_dir, content)?;
    let (chunks, sent) = mpsc::channel(WAITING_CHUNKS);
    let source = Source { path, name: PathBuf::from(&name) };
    let packing = tokio::task::spawn_blocking(move || {
        let mut skipped = Skipped::default();
        let out = writer(chunks.clone());
        let packed = bouvet_archive::pack(&source, out, &mut |file| skipped.add(file.into()));
        if packed.is_err() {
            // The sandbox must not take it for the end.
            chunks.blocking_send(Err(io::ErrorKind::ConnectionAborted.into())).ok();
        }
        packed.map(|()| skipped)
    });
    let unpacked = send(remote, &directory, &name, remote.keep_owners, sent).await;
    let packed = packing.await.map_err(Failed::new)?;
    let mut skipped = match (packed, &unpacked) {
        (Ok(skipped), _) => skipped,
        // Why this end was broken off, the other says.
        (Err(bouvet_archive::PackError::Write(_)), Err(_)) => Skipped::default(),
        (Err(error), _) => return Err(Failed::new(chain(&error))),
    };
    let unpacked = unpacked?;
    skipped.count += unpacked.skipped_count;
    skipped.named.extend(unpacked.skipped);
    Ok(skipped)
}

/// What a directory is called, also where it was typed as `..`.
fn real_name(path: &Path) -> Option<String> {
    Some(fs::canonicalize(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// The directory where the copy goes, and its name there, by docker's rules.
fn place(
    stat: Option<&StatView>,
    to: &str,
    name: &str,
    is_dir: bool,
    content: bool,
) -> Result<(String, String), Failed> {
    let shown = to.escape_debug();
    let unclear = || Failed::new(format!("`{shown}` names no file"));
    let apart = |path: &str| {
        split(path).map(|(directory, name)| (directory.to_owned(), name.to_owned())).ok_or_else(unclear)
    };
    match stat.map(|stat| (stat.target_kind.as_deref(), stat)) {
        Some((Some("directory"), _)) => {
            Ok((to.to_owned(), if content { CONTENT.to_owned() } else { name.to_owned() }))
        }
        Some(_) if is_dir => Err(Failed::new(format!("`{shown}` in the sandbox is not a directory"))),
        Some((Some(kind), _)) if kind != "file" => Err(not_a_place(&format!("`{shown}` in the sandbox"))),
        // Writing through a link changes what it points to, as everywhere.
        Some((Some(_), stat)) => apart(&stat.target),
        None if to.ends_with('/') && !is_dir => {
            Err(Failed::new(format!("there is no directory `{shown}` in the sandbox")))
        }
        Some((None, _)) | None => apart(to),
    }
}

async fn send(
    remote: &Remote,
    directory: &str,
    name: &str,
    keep_owners: bool,
    content: mpsc::Receiver<io::Result<Bytes>>,
) -> Result<UnpackedView, Failed> {
    let keep_owners = keep_owners.to_string();
    let path = remote.archive_path(&[("path", directory), ("name", name), ("keep_owners", &keep_owners)]);
    match remote.client.upload(&path, ReceiverStream::new(content)).await {
        Err(CallError::Refused(failure)) if failure.kind == "no_file" => {
            Err(Failed::new(format!("there is no directory `{}` in the sandbox", directory.escape_debug())))
        }
        sent => Ok(sent?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_follow_dockers_rules() {
        let stat = |target_kind: Option<&str>, target: &str| StatView {
            target_kind: target_kind.map(Into::into),
            target: target.into(),
            ..StatView::default()
        };
        let (dir, file) = (stat(Some("directory"), "/real"), stat(Some("file"), "/real/f"));
        let lost = stat(None, "");
        let of = |stat: Option<&StatView>, to: &str, is_dir, content| {
            place(stat, to, "x", is_dir, content).map_err(|failed| failed.text)
        };
        let ok = |directory: &str, name: &str| Ok((directory.to_owned(), name.to_owned()));
        assert_eq!(of(None, "/a/new", false, false), ok("/a", "new"));
        assert_eq!(of(None, "/a/new/", true, true), ok("/a", "new"));
        assert_eq!(of(Some(&dir), "/l", true, false), ok("/l", "x"));
        assert_eq!(of(Some(&dir), "/l", true, true), ok("/l", CONTENT));
        assert_eq!(of(Some(&file), "/l", false, false), ok("/real", "f"));
        assert_eq!(
            of(Some(&lost), "/l", false, false),
            ok("/", "l"),
            "a link that leads nowhere is replaced"
        );
        assert!(of(Some(&file), "/l", true, false).is_err());
        let device = stat(Some("other"), "/dev/null");
        let refused = "the destination `/l` in the sandbox must be a directory or a regular file";
        assert_eq!(of(Some(&device), "/l", false, false), Err(refused.to_owned()));
        assert!(of(None, "/a/new/", false, false).is_err());
    }
}
