//! The parts of a sandbox's description that programs, contexts and files share: the user, the groups and the working
//! directory.

use std::path::{Path, PathBuf};

use bouvet_wire::v1;

use crate::identity::{self, Identity};

/// Where programs without a home directory start.
const ROOT: &str = "/";

/// See the module. The default of a VM until it is furnished: root, in its home directory.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    /// The home directory of root.
    root_home: PathBuf,
    /// `None`: the home directory of the user.
    working_dir: Option<PathBuf>,
    /// As [`Identity::find`] takes it.
    user: String,
    groups: Vec<String>,
}

impl Description {
    pub(crate) fn new(root_home: &Path) -> Self {
        Self { root_home: root_home.to_owned(), working_dir: None, user: String::new(), groups: Vec::new() }
    }

    /// Takes over what `request` sets.
    pub(crate) fn furnish(&mut self, request: &v1::FurnishRequest) {
        if !request.working_dir.is_empty() {
            self.working_dir = Some(Path::new(ROOT).join(&request.working_dir));
        }
        if let Some(confinement) = &request.confinement {
            self.user.clone_from(&confinement.user);
            self.groups.clone_from(&confinement.groups);
        }
    }

    /// Whether it names a user.
    pub(crate) fn has_user(&self) -> bool {
        !self.user.is_empty()
    }

    /// The user of a program whose start names `user`; empty: the sandbox's. Reads files.
    pub(crate) fn identity(&self, user: &str) -> Result<Identity, identity::Error> {
        let user = if user.is_empty() { &self.user } else { user };
        Identity::find(user, &self.groups)
    }

    /// The home directory of root.
    pub(crate) fn root_home(&self) -> &Path {
        &self.root_home
    }

    /// The home directory of the sandbox's user, which may not exist. Reads files.
    pub(crate) fn home(&self) -> PathBuf {
        if self.user.is_empty() {
            return self.root_home.clone();
        }
        match self.identity("") {
            Ok(identity) if identity.uid == 0 => self.root_home.clone(),
            Ok(identity) => identity.home,
            // The start of a program reports the error.
            Err(_) => ROOT.into(),
        }
    }

    /// Where programs and relative paths start. Reads files.
    pub(crate) fn start_dir(&self) -> PathBuf {
        self.working_dir.clone().unwrap_or_else(|| {
            let home = self.home();
            if home.is_dir() { home } else { ROOT.into() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn furnished(working_dir: &str, user: &str) -> Description {
        let mut description = Description::new(Path::new("/root-of-vm"));
        let confinement = v1::Confinement { user: user.into(), ..v1::Confinement::default() };
        let working_dir = working_dir.into();
        description.furnish(&v1::FurnishRequest {
            working_dir,
            confinement: Some(confinement),
            ..v1::FurnishRequest::default()
        });
        description
    }

    #[test]
    fn working_directory_is_the_start_of_all() {
        assert_eq!(furnished("/srv", "").start_dir(), Path::new("/srv"));
        assert_eq!(furnished("app", "1000").start_dir(), Path::new("/app"), "as in an image");
        let mut later = furnished("/srv", "1000");
        later.furnish(&v1::FurnishRequest::default());
        assert_eq!((later.start_dir().as_path(), &later.user[..]), (Path::new("/srv"), "1000"));
    }

    #[test]
    fn unknown_users_start_in_the_root_directory() {
        assert_eq!(furnished("", "").home(), Path::new("/root-of-vm"));
        assert_eq!(furnished("", "0:1").home(), Path::new("/root-of-vm"));
        assert_eq!(furnished("", "2147483647").home(), Path::new("/"));
        assert_eq!(furnished("", "").start_dir(), Path::new("/"), "its home directory does not exist");
        assert_eq!(furnished("", "no-such-user").start_dir(), Path::new("/"));
    }
}
