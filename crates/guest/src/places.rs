//! Directories that the guest needs, in a tree whose links an image chose.

use std::fs;
use std::io;
use std::path::Path;

/// Links that lead to nothing, on the way to one directory.
const MAX_LINKS: u32 = 40;

/// Makes the directory `path`, and those above it, where they are missing.
///
/// Links on the way are followed. Where one leads to nothing, the directory that it names is made: an image may have
/// `/var/lock` lead to `/run/lock`, and nothing there.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    make_below(path, &mut 0)
}

fn make_below(path: &Path, links: &mut u32) -> io::Result<()> {
    let mut here = std::path::PathBuf::new();
    for part in path.components() {
        here.push(part);
        if here.is_dir() {
            continue;
        }
        match fs::create_dir(&here) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Anything but a link is a file, which stays.
                let target = fs::read_link(&here).map_err(|_| error)?;
                *links += 1;
                if *links > MAX_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                let parent = here.parent().unwrap_or(Path::new("/"));
                make_below(&parent.join(target), links)?;
            }
            made => made?,
        }
    }
    Ok(())
}

/// Makes `path` a directory of its own. Unlike in [`make`], a link or file there is replaced: for mount points below a
/// root that is not this process's yet, out of which a link would lead.
pub(crate) fn replace(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn dangling_links_get_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("b/c", at("a")).unwrap();
        make(&at("a/d")).unwrap();
        assert!(at("b/c/d").is_dir() && at("a").is_symlink());
        symlink(at("e"), at("absolute")).unwrap();
        symlink("absolute", at("twice")).unwrap();
        make(&at("twice")).unwrap();
        assert!(at("e").is_dir());
        make(&at("twice/../e")).unwrap();
    }

    #[test]
    fn links_in_a_circle_and_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("two", at("one")).unwrap();
        symlink("one", at("two")).unwrap();
        assert_eq!(make(&at("one/x")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        fs::write(at("file"), "kept").unwrap();
        make(&at("file/x")).unwrap_err();
        make(&at("file")).unwrap_err();
        assert_eq!(fs::read(at("file")).unwrap(), b"kept");
    }

    #[test]
    fn mount_point_replaces_link_and_keeps_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("there/inner")).unwrap();
        symlink(at("there"), at("link")).unwrap();
        for name in ["link", "there", "new"] {
            replace(&at(name)).unwrap();
            assert!(at(name).is_dir() && !at(name).is_symlink(), "{name}");
        }
        assert!(at("there/inner").is_dir());
    }
}
