//! Where the server runs, as far as defaults depend on it: who runs it, and where its executable is.

use std::path::{Path, PathBuf};

/// Directories of executables that cargo makes, below `target` in the source tree.
const PROFILES: &[&str] = &["release", "debug"];
/// The working directory of a server that root runs.
const ROOT_DIR: &str = "/tmp/bouvet";

/// The user who runs the server, and the executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whether it is root.
    pub is_root: bool,
    /// Its user id.
    pub uid: u32,
    /// The executable, with links resolved. `None`: not known.
    pub executable: Option<PathBuf>,
}

impl Place {
    /// This process's own.
    pub fn here() -> Self {
        let uid = rustix::process::geteuid();
        // The kernel's name of a file that was replaced since ends in ` (deleted)`, and is not a path.
        Self { is_root: uid.is_root(), uid: uid.as_raw(), executable: std::env::current_exe().ok() }
    }

    /// Directories with images, besides `/var/lib/bouvet`: of the source tree that the executable was built in, and of
    /// the prefix that it was installed to.
    fn image_dirs(&self) -> Vec<PathBuf> {
        let Some(dir) = self.executable.as_deref().and_then(Path::parent) else { return Vec::new() };
        let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let above = dir.parent();
        let tree = above.filter(|above| name(above).as_deref() == Some("target")).and_then(Path::parent);
        match (name(dir).as_deref(), tree, above) {
            (Some(profile), Some(tree), _) if PROFILES.contains(&profile) => {
                vec![tree.join("images/output")]
            }
            (Some("bin"), _, Some(prefix)) => vec![prefix.join("share/bouvet")],
            _ => Vec::new(),
        }
    }

    /// The file that is used where no variable names one: `usual`, or where that is missing one of the same name beside
    /// the executable.
    pub(super) fn image(&self, usual: &Path) -> PathBuf {
        let others = self.image_dirs().into_iter().filter_map(|dir| Some(dir.join(usual.file_name()?)));
        let found = std::iter::once(usual.to_owned()).chain(others).find(|path| path.exists());
        found.unwrap_or_else(|| usual.to_owned())
    }

    /// The working directory, by the XDG base directory specification for a user other than root.
    pub(super) fn state_dir(&self, variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
        let own = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
        match own {
            _ if self.is_root => ROOT_DIR.into(),
            Some(own) => own.join("bouvet"),
            // A directory that other users cannot take for theirs.
            None => format!("{ROOT_DIR}-{}", self.uid).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(executable: &Path) -> Place {
        Place { is_root: false, uid: 1000, executable: Some(executable.to_owned()) }
    }

    #[test]
    fn images_are_found_beside_their_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        let usual = tree.join("var/vmlinux");
        let made = tree.join("images/output/vmlinux");
        let found = |executable: &str| place(&tree.join(executable)).image(&usual);
        assert_eq!(found("target/release/bouvet"), usual, "the tree has no images yet");
        std::fs::create_dir_all(made.parent().unwrap()).unwrap();
        std::fs::write(&made, "").unwrap();
        assert_eq!(found("target/release/bouvet"), made);
        assert_eq!(found("target/debug/bouvet-mcp"), made);
        for elsewhere in ["bin/bouvet", "target/bouvet", "release/bouvet", "target/release/deps/bouvet"] {
            assert_eq!(found(elsewhere), usual, "{elsewhere}");
        }
        std::fs::create_dir_all(usual.parent().unwrap()).unwrap();
        std::fs::write(&usual, "").unwrap();
        assert_eq!(found("target/release/bouvet"), usual, "what is installed goes first");
    }

    #[test]
    fn images_are_found_in_the_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("share/bouvet/vmlinux");
        std::fs::create_dir_all(shared.parent().unwrap()).unwrap();
        std::fs::write(&shared, "").unwrap();
        let found = place(&dir.path().join("bin/bouvet")).image(&dir.path().join("var/vmlinux"));
        assert_eq!(found, shared);
    }

    #[test]
    fn each_user_has_a_state_directory() {
        let of = |is_root, uid, set: &[(&str, &str)]| {
            let place = Place { is_root, uid, executable: None };
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, path)| path.into());
            place.state_dir(variable).display().to_string()
        };
        let home = ("HOME", "/home/ann");
        assert_eq!(of(true, 0, &[home]), "/tmp/bouvet");
        assert_eq!(of(false, 1000, &[home]), "/home/ann/.local/state/bouvet");
        assert_eq!(of(false, 1000, &[home, ("XDG_STATE_HOME", "/state")]), "/state/bouvet");
        assert_eq!(of(false, 1000, &[]), "/tmp/bouvet-1000");
    }
}
