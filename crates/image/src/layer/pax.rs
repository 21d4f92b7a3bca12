//! PAX records of a layer: those that every archive may have, and extended attributes.

use bouvet_archive::format::pax;

use crate::limits::{MAX_NAME, MAX_XATTR_BYTES, MAX_XATTRS_BYTES};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records of one entry.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pax {
    pub(super) common: pax::Pax,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads records; `None` if one is invalid.
pub(super) fn parse(data: &[u8]) -> Option<Pax> {
    let mut xattrs = Vec::new();
    let common = pax::parse(data, |key, value| {
        if let Some(name) = key.strip_prefix(XATTR).filter(|name| is_kept(name)) {
            if name.len() > MAX_NAME || value.len() > MAX_XATTR_BYTES {
                return None;
            }
            xattrs.push((name.to_vec(), value.to_vec()));
        }
        Some(())
    })?;
    // Later records replace earlier ones of the same name.
    xattrs.reverse();
    xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
    xattrs.dedup_by(|(later, _), (kept, _)| later == kept);
    let total: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    (total <= MAX_XATTRS_BYTES).then_some(Pax { common, xattrs })
}

/// Whether a guest could use the attribute. Those by which overlay file systems keep their books would be
/// orders to the guest's own, whose lower layer this becomes.
fn is_kept(name: &[u8]) -> bool {
    let kept = [&b"user."[..], b"trusted.", b"security."];
    let books = [&b"user.overlay."[..], b"trusted.overlay."];
    let acls = [&b"system.posix_acl_access"[..], b"system.posix_acl_default"];
    let named = kept.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix));
    acls.contains(&name) || named && !books.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn values_may_have_newlines_and_zeros() {
        let capability = b"\x01\0\0\x02\n=\n\0\x20";
        let mut records = record("SCHILY.xattr.security.capability", capability);
        records.extend(record("path", "ü/b".as_bytes()));
        let pax = parse(&records).unwrap();
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
        assert_eq!(pax.common.path.unwrap(), "ü/b".as_bytes());
    }

    #[test]
    fn the_last_of_equal_records_counts() {
        let records = [record("uid", b"1"), record("SCHILY.xattr.user.a", b"1"), record("uid", b"70000")];
        let records = [records.concat(), record("SCHILY.xattr.user.a", b"2")].concat();
        let pax = parse(&records).unwrap();
        assert_eq!(pax.common.uid, Some(70_000));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"2".to_vec())]);
    }

    #[test]
    fn attributes_that_would_be_orders_to_the_guest_are_left_out() {
        for name in ["trusted.overlay.opaque", "user.overlay.redirect", "system.nfs4_acl", "user.", "mine"] {
            assert_eq!(
                parse(&record(&format!("SCHILY.xattr.{name}"), b"y")).unwrap(),
                Pax::default(),
                "{name}"
            );
        }
        let kept = ["user.a", "trusted.b", "security.capability", "system.posix_acl_default"];
        for name in kept {
            assert_eq!(
                parse(&record(&format!("SCHILY.xattr.{name}"), b"y")).unwrap().xattrs.len(),
                1,
                "{name}"
            );
        }
    }

    #[test]
    fn attributes_are_limited_in_size() {
        let long = vec![b'x'; MAX_XATTR_BYTES + 1];
        assert_eq!(parse(&record("SCHILY.xattr.user.a", &long)), None);
        assert!(parse(&record("SCHILY.xattr.user.a", &long[..60_000])).is_some());
        assert_eq!(parse(b"99 a=b\n"), None);
    }
}
