//! What a caller may say of volumes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use bouvet_wire::limits::MAX_VOLUMES;
use bouvet_wire::volume::check_target;

use crate::boxconfig::InvalidConfig;

/// A directory or regular file of the host that a sandbox sees as its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// What is shown: an absolute path on the host.
    pub host: PathBuf,
    /// Where it is shown: an absolute path in the sandbox.
    pub guest: String,
    /// Whether the sandbox may read alone.
    pub read_only: bool,
}

impl VolumeSpec {
    /// Parses `host_path:guest_path[:ro|:rw]`. Only the path on the host may have a colon in it. It may be relative
    /// here: the caller knows to what, and makes it absolute.
    ///
    /// ```
    /// use bouvet_host::VolumeSpec;
    ///
    /// let volume = VolumeSpec::parse("/home/me/project:/workspace:ro")?;
    /// assert_eq!((volume.guest.as_str(), volume.read_only), ("/workspace", true));
    /// let error = VolumeSpec::parse("/home/me/project:/proc").unwrap_err();
    /// assert!(error.to_string().starts_with("`volumes` is `/proc`; nothing may be mounted at"));
    /// # Ok::<(), bouvet_host::InvalidConfig>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let (paths, read_only) = match text.rsplit_once(':') {
            Some((paths, "ro")) => (paths, true),
            Some((paths, "rw")) => (paths, false),
            _ => (text, false),
        };
        let Some((host, guest)) = paths.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
            return Err(invalid(text, "it must be `host_path:guest_path`, `:ro` or `:rw` may follow"));
        };
        let spec = Self { host: host.into(), guest: guest.into(), read_only };
        spec.check_guest()?;
        Ok(spec)
    }

    /// Whether a sandbox can have all of `specs`: they are not too many or in each other's place, and what they name
    /// is there.
    ///
    /// ```
    /// use bouvet_host::VolumeSpec;
    ///
    /// let dir = tempfile::tempdir()?;
    /// let at = |guest: &str| VolumeSpec { host: dir.path().into(), guest: guest.into(), read_only: false };
    /// assert_eq!(VolumeSpec::validate_all(&[at("/data"), at("/results")]), Ok(()));
    /// let error = VolumeSpec::validate_all(&[at("/data"), at("/data")]).unwrap_err();
    /// assert_eq!(error.allowed, "only one volume can be mounted at a path");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn validate_all(specs: &[Self]) -> Result<(), InvalidConfig> {
        Self::check_together(specs)?;
        specs.iter().try_for_each(Self::check_host)
    }

    /// The part of [`VolumeSpec::validate_all`] that does not look at the host's files.
    pub(crate) fn check_together(specs: &[Self]) -> Result<(), InvalidConfig> {
        if specs.len() > MAX_VOLUMES {
            let value = format!("{} volumes", specs.len());
            return Err(InvalidConfig { field: FIELD, value, allowed: format!("{MAX_VOLUMES} are allowed") });
        }
        let mut seen = BTreeSet::new();
        for spec in specs {
            spec.check_guest()?;
            if !seen.insert(&spec.guest) {
                return Err(invalid(&spec.guest, "only one volume can be mounted at a path"));
            }
        }
        Ok(())
    }

    fn check_guest(&self) -> Result<(), InvalidConfig> {
        check_target(&self.guest).map_err(|bad| invalid(&self.guest, &bad.to_string()))
    }

    fn check_host(&self) -> Result<(), InvalidConfig> {
        let path = self.host.to_string_lossy();
        if !self.host.is_absolute() {
            return Err(invalid(&path, "the path on the host must be absolute"));
        }
        match fs::metadata(&self.host) {
            Ok(metadata) if metadata.is_dir() || metadata.is_file() => Ok(()),
            Ok(_) => Err(invalid(&path, "a directory or a regular file of the host is allowed")),
            Err(error) => Err(invalid(&path, &format!("it must be there, but: {error}"))),
        }
    }
}

const FIELD: &str = "volumes";
/// Part of a value that an error shows.
const MAX_SHOWN_CHARS: usize = 256;

fn invalid(value: &str, allowed: &str) -> InvalidConfig {
    let shown: String = value.escape_default().take(MAX_SHOWN_CHARS).collect();
    InvalidConfig { field: FIELD, value: format!("`{shown}`"), allowed: allowed.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(host: &str, guest: &str, read_only: bool) -> VolumeSpec {
        VolumeSpec { host: host.into(), guest: guest.into(), read_only }
    }

    #[test]
    fn a_volume_is_two_paths_and_a_mode() {
        let parsed = |text: &str| VolumeSpec::parse(text).unwrap();
        assert_eq!(parsed("/data:/workspace"), spec("/data", "/workspace", false));
        assert_eq!(parsed("/data:/workspace:ro"), spec("/data", "/workspace", true));
        assert_eq!(parsed("/data:/workspace:rw"), spec("/data", "/workspace", false));
        assert_eq!(parsed("./a:b:/workspace"), spec("./a:b", "/workspace", false));
        for text in
            ["", "/data", ":/workspace", "/data:", "/data:ro", "/data:workspace", "/data:/", "/a:/b:rx"]
        {
            let error = VolumeSpec::parse(text).unwrap_err();
            assert_eq!(error.field, "volumes", "{text}");
        }
        let error = VolumeSpec::parse("/data:/proc/x:ro").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`volumes` is `/proc/x`; nothing may be mounted at `/`, at `/run`, or at or below `/proc`, `/sys`, \
             `/dev` and `/run/bouvet`"
        );
    }

    #[test]
    fn limits_hold_at_the_edge_and_not_past_it() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().to_str().unwrap();
        let mut specs: Vec<_> =
            (0..MAX_VOLUMES).map(|number| spec(host, &format!("/v{number}"), false)).collect();
        assert_eq!(VolumeSpec::validate_all(&specs), Ok(()));
        specs.push(spec(host, "/more", false));
        let error = VolumeSpec::validate_all(&specs).unwrap_err();
        assert_eq!(error.to_string(), "`volumes` is 33 volumes; 32 are allowed");
        let twice = [spec(host, "/v", false), spec(host, "/v", true)];
        assert!(VolumeSpec::validate_all(&twice).unwrap_err().to_string().contains("only one volume"));
    }

    #[test]
    fn what_is_shown_must_be_there_and_a_directory_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("file");
        fs::write(&there, "").unwrap();
        let check = |host: &str| VolumeSpec::validate_all(&[spec(host, "/v", false)]);
        assert_eq!(check(there.to_str().unwrap()), Ok(()));
        let said = |host: &str| check(host).unwrap_err().to_string();
        assert!(said(dir.path().join("nothing").to_str().unwrap()).contains("No such file"));
        assert!(said("/dev/null").contains("a directory or a regular file"));
        assert!(said("relative").contains("must be absolute"));
    }

    proptest! {
        #[test]
        fn what_is_parsed_can_be_written_again(text in "[a-z./:]{0,20}") {
            if let Ok(VolumeSpec { host, guest, read_only }) = VolumeSpec::parse(&text) {
                let mode = if read_only { "ro" } else { "rw" };
                let again = format!("{}:{guest}:{mode}", host.display());
                prop_assert_eq!(VolumeSpec::parse(&again), Ok(VolumeSpec { host, guest, read_only }));
            }
        }
    }
}
