//! Certificates that programs are to trust beside the image's own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Where programs look for all certificates in one file: Debian's and Alpine's, Fedora's, SUSE's and OpenSSL's own. The
/// first is there in any case, for those that are told.
const BUNDLES: &[&str] = &[
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];

/// Adds `authority` to the files that there are in `root`.
pub(super) fn install(root: &Path, authority: &[u8]) -> io::Result<()> {
    // Several of these names may be links to one file.
    let found = BUNDLES.iter().filter_map(|path| fs::canonicalize(root.join(path)).ok());
    // Nor does a link lead out of it.
    let own = fs::canonicalize(root)?;
    let found: BTreeSet<_> = found.filter(|path| path.starts_with(&own) && path.is_file()).collect();
    let first = root.join(BUNDLES[0]);
    if !first.is_file() {
        if let Some(dir) = first.parent() {
            fs::create_dir_all(dir)?;
        }
        match found.first() {
            Some(other) => drop(fs::copy(other, &first)?),
            None => fs::write(&first, "")?,
        }
        append(&first, authority)?;
    }
    found.iter().try_for_each(|path| append(path, authority))
}

fn append(path: &Path, authority: &[u8]) -> io::Result<()> {
    let present = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    // A sandbox that starts again with its disk may have this one already.
    if present.windows(authority.len()).any(|part| part == authority) {
        return Ok(());
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    if !present.is_empty() && !present.ends_with(b"\n") {
        file.write_all(b"\n")?;
    }
    file.write_all(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_added_once_to_each_file_that_there_is() {
        let root = tempfile::tempdir().unwrap();
        let [debian, openssl] =
            ["etc/ssl/certs/ca-certificates.crt", "etc/ssl/cert.pem"].map(|path| root.path().join(path));
        fs::create_dir_all(debian.parent().unwrap()).unwrap();
        fs::write(&debian, "one").unwrap();
        std::os::unix::fs::symlink("certs/ca-certificates.crt", &openssl).unwrap();
        for _ in 0..2 {
            install(root.path(), b"two\n").unwrap();
        }
        assert_eq!(fs::read_to_string(debian).unwrap(), "one\ntwo\n");
        assert!(openssl.is_symlink());
    }

    #[test]
    fn an_image_without_any_gets_the_one_that_most_programs_read() {
        let root = tempfile::tempdir().unwrap();
        install(root.path(), b"one\n").unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/ssl/certs/ca-certificates.crt")).unwrap(),
            "one\n"
        );
    }
}
