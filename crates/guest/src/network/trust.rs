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

/// What stands before the authority and after it, so that the next one takes its place: between certificates programs
/// overlook all else (RFC 7468, 2).
const BEGIN: &[u8] = b"# Bouvet: the authority of this sandbox\n";
const END: &[u8] = b"# Bouvet: its end\n";

/// Adds `authority` to the files that there are in `root`, in the place of one that was added before.
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
        put(&first, authority)?;
    }
    found.iter().try_for_each(|path| put(path, authority))
}

fn put(path: &Path, authority: &[u8]) -> io::Result<()> {
    let present = fs::read(path)?;
    let mut wanted = without_authorities(&present);
    let is_first = wanted.len() == present.len();
    if !wanted.is_empty() && !wanted.ends_with(b"\n") {
        wanted.push(b'\n');
    }
    for part in [BEGIN, authority, if authority.ends_with(b"\n") { b"" } else { b"\n" }, END] {
        wanted.extend_from_slice(part);
    }
    // A sandbox that starts again has it already. And what is only added to cannot be lost half-way.
    match (wanted == present, is_first) {
        (true, _) => Ok(()),
        (false, false) => fs::write(path, &wanted),
        (false, true) => File::options().append(true).open(path)?.write_all(&wanted[present.len()..]),
    }
}

/// `bundle` without what was put there.
fn without_authorities(bundle: &[u8]) -> Vec<u8> {
    let mut rest = bundle;
    let mut kept = Vec::with_capacity(bundle.len());
    while let Some(begin) = position(rest, BEGIN)
        && let Some(length) = position(&rest[begin..], END)
    {
        kept.extend_from_slice(&rest[..begin]);
        rest = &rest[begin + length + END.len()..];
    }
    kept.extend_from_slice(rest);
    kept
}

fn position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|found| found == part)
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
        assert_eq!(fs::read_to_string(debian).unwrap(), format!("one\n{}", marked("two\n")));
        assert!(openssl.is_symlink());
    }

    fn marked(authority: &str) -> String {
        [std::str::from_utf8(BEGIN).unwrap(), authority, std::str::from_utf8(END).unwrap()].concat()
    }

    /// A persistent sandbox has another with each server that it had.
    #[test]
    fn an_authority_takes_the_place_of_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join(BUNDLES[0]);
        fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        fs::write(&bundle, "one\n").unwrap();
        for authority in ["first\n", "second", "third, which is longer\n"] {
            install(root.path(), authority.as_bytes()).unwrap();
        }
        let third = marked("third, which is longer\n");
        assert_eq!(fs::read_to_string(&bundle).unwrap(), format!("one\n{third}"));
        // What its programs added after it stays, and so does what is only half of one.
        fs::write(
            &bundle,
            format!("one\n{third}own\n{third}{}half", marked("").replace("# Bouvet: its end\n", "")),
        )
        .unwrap();
        install(root.path(), b"last\n").unwrap();
        let half = "# Bouvet: the authority of this sandbox\nhalf\n";
        assert_eq!(fs::read_to_string(&bundle).unwrap(), format!("one\nown\n{half}{}", marked("last\n")));
    }

    #[test]
    fn an_image_without_any_gets_the_one_that_most_programs_read() {
        let root = tempfile::tempdir().unwrap();
        install(root.path(), b"one\n").unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/ssl/certs/ca-certificates.crt")).unwrap(),
            marked("one\n")
        );
    }
}
