//! From a sandbox to this machine. What a sandbox says of its files is not believed: no name leads out of the
//! destination, no link that it made is written through, and nothing becomes setuid.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use bouvet_archive::{CONTENT, Destination, Links, Owner};
use bouvet_host::chain;
use hyper::Method;
use tokio::sync::mpsc;

use super::stream::{WAITING_CHUNKS, reader};
use super::{Local, Remote, Skipped, io, last, means_content, not_a_place};
use crate::api::client::Frames;
use crate::api::frame::Frame;
use crate::api::shape::{FailureView, SkippedView};
use crate::command::outcome::Failed;

/// Permission bits that a file may bring.
const MODE_MASK: u32 = 0o1777;

/// Copies a file or directory.
pub(super) async fn copy(remote: &Remote, from: &str, to: &Local) -> Result<Skipped, Failed> {
    let none = || Failed::new(format!("there is no `{}` in the sandbox", from.escape_debug()));
    let stat = remote.stat(from).await?.ok_or_else(none)?;
    let is_followed = remote.follow && stat.kind == "symlink";
    let (source, is_dir) = match is_followed {
        true => (stat.target.as_str(), stat.target_kind.as_deref() == Some("directory")),
        false => (from, stat.kind == "directory"),
    };
    if source.is_empty() {
        return Err(Failed::new(format!("the link `{}` in the sandbox leads nowhere", from.escape_debug())));
    }
    // The typed path gives the name, not the target of a link.
    let content = is_dir && means_content(from);
    let name = if content { CONTENT } else { last(from).unwrap_or(CONTENT) };
    let path = match to {
        Local::Path(path) => path,
        Local::Stream if io::stdout().is_terminal() => {
            return Err(Failed::new("an archive is not written to a terminal")
                .hint("redirect it, as in `bouvet cp SANDBOX:PATH - > FILE.tar`"));
        }
        Local::Stream => return print(receive(remote, source, name).await?).await,
    };
    let (directory, name) = place(path, name, is_dir, content)?;
    let name = name.to_str().ok_or_else(|| Failed::new("the destination's name must be UTF-8"))?.to_owned();
    let frames = receive(remote, source, &name).await?;
    let destination = Destination {
        path: directory,
        name: Some(name.into()),
        owner: if remote.keep_owners { Owner::Archive } else { Owner::Process },
        links: Links::Refuse,
        mode_mask: MODE_MASK,
    };
    unpack(frames, destination).await
}

async fn receive(remote: &Remote, path: &str, name: &str) -> Result<Frames, Failed> {
    let path = remote.archive_path(&[("path", path), ("name", name)]);
    Ok(remote.client.frames(Method::GET, &path, futures_util::stream::empty()).await?)
}

/// The directory where the copy goes, and its name there, by docker's rules.
fn place(to: &Path, name: &str, is_dir: bool, content: bool) -> Result<(PathBuf, PathBuf), Failed> {
    let failed = |error: &io::Error| io("use", to, error);
    let slash = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    match fs::metadata(to) {
        Ok(about) if about.is_dir() => {
            let name = if content { CONTENT } else { name };
            Ok((to.to_owned(), name.into()))
        }
        Ok(_) if is_dir => Err(Failed::new(format!("`{}` is not a directory", to.display()))),
        Ok(about) if !about.is_file() => Err(not_a_place(&format!("`{}`", to.display()))),
        Ok(_) => {
            let real = fs::canonicalize(to).map_err(|error| failed(&error))?;
            apart(&real)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && slash && !is_dir => {
            Err(Failed::new(format!("there is no directory `{}`", to.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (parent, name) = apart(to)?;
            match parent.is_dir() {
                true => Ok((parent, name)),
                false => Err(Failed::new(format!("there is no directory `{}`", parent.display()))),
            }
        }
        Err(error) => Err(failed(&error)),
    }
}

fn apart(path: &Path) -> Result<(PathBuf, PathBuf), Failed> {
    let unclear = || Failed::new(format!("`{}` names no file", path.display()));
    let name = path.file_name().ok_or_else(unclear)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_owned(), name.into()))
}

/// The next part of an archive.
enum Part {
    Data(bytes::Bytes),
    Skipped(SkippedView),
    End,
}

async fn next(frames: &mut Frames) -> Result<Part, Failed> {
    match frames.next().await? {
        Some(Frame::Stdout(data)) => Ok(Part::Data(data)),
        Some(Frame::Stderr(json)) => Ok(Part::Skipped(serde_json::from_slice(&json).map_err(Failed::new)?)),
        Some(Frame::Exit(_)) => Ok(Part::End),
        Some(Frame::Error(json)) => {
            let failure: FailureView = serde_json::from_slice(&json).map_err(Failed::new)?;
            Err(failure.into())
        }
        None => Err(Failed::new("the server closed the connection before the archive ended")),
        Some(_) => Err(Failed::new("the server sent a frame that has no place in an archive")),
    }
}

async fn print(mut frames: Frames) -> Result<Skipped, Failed> {
    let mut skipped = Skipped::default();
    loop {
        match next(&mut frames).await? {
            Part::Data(data) => io::stdout().write_all(&data)?,
            Part::Skipped(file) => skipped.add(file),
            Part::End => {
                io::stdout().flush()?;
                return Ok(skipped);
            }
        }
    }
}

async fn unpack(mut frames: Frames, destination: Destination) -> Result<Skipped, Failed> {
    let (chunks, received) = mpsc::channel(WAITING_CHUNKS);
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut skipped = Skipped::default();
        let unpacked = bouvet_archive::unpack(reader(received), &destination, &mut |file| {
            skipped.add(file.into());
        });
        unpacked.map(|_| skipped)
    });
    let mut skipped = Skipped::default();
    let fed = loop {
        match next(&mut frames).await {
            Ok(Part::Data(data)) => {
                // Unpacking has ended early, and says why.
                if chunks.send(Ok(data)).await.is_err() {
                    break Ok(());
                }
            }
            Ok(Part::Skipped(file)) => skipped.add(file),
            Ok(Part::End) => break Ok(()),
            Err(failed) => {
                chunks.send(Err(io::ErrorKind::ConnectionAborted.into())).await.ok();
                break Err(failed);
            }
        }
    };
    drop(chunks);
    let unpacked = unpacking.await.map_err(Failed::new)?;
    fed?;
    let more = unpacked.map_err(|error| Failed::new(chain(&error)))?;
    skipped.count += more.count;
    skipped.named.extend(more.named);
    Ok(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_follow_dockers_rules() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("there")).unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let (here, there) = (dir.path().to_owned(), at("there"));
        let real = fs::canonicalize(dir.path()).unwrap();
        let file = |to: &str| place(&at(to), "x", false, false).ok();
        assert_eq!(file("new"), Some((here.clone(), "new".into())));
        assert_eq!(file("file"), Some((real.clone(), "file".into())));
        assert_eq!(file("link"), Some((real, "file".into())), "what a link that was typed leads to");
        assert_eq!(file("there"), Some((there.clone(), "x".into())));
        assert_eq!((file("new/"), file("no/new")), (None, None));
        let tree = |to: &str, content| place(&at(to), "x", true, content).ok();
        assert_eq!(tree("new", false), Some((here.clone(), "new".into())));
        assert_eq!(tree("new/", true), Some((here, "new".into())));
        assert_eq!(tree("there", false), Some((there.clone(), "x".into())));
        assert_eq!(tree("there", true), Some((there, CONTENT.into())));
        assert_eq!(tree("file", false), None);
    }

    #[test]
    fn pipes_and_sockets_are_not_destinations() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), kind, mode, 0).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
        std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
        for name in ["pipe", "socket", "link"] {
            let failed = place(&at(name), "x", false, false).unwrap_err();
            assert!(failed.text.ends_with("must be a directory or a regular file"), "{}", failed.text);
            assert_eq!(failed.code, 1, "as docker");
        }
        assert!(place(Path::new("/dev/null"), "x", false, false).is_err());
    }
}
