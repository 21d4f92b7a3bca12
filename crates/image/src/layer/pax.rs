//! PAX records: what an archive says about an entry beyond its header.

use super::sparse::{Records, decimal};
use crate::limits::{MAX_NAME, MAX_XATTR_BYTES, MAX_XATTRS_BYTES};

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// The records that matter to us.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds, and nanoseconds after them.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The map of a sparse file.
    pub(super) sparse: Option<Records>,
}

/// Reads records `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record; `None` if they are not that.
pub(super) fn parse(mut data: &[u8]) -> Option<Pax> {
    let mut pax = Pax::default();
    while !data.is_empty() {
        let blank = data.iter().position(|byte| *byte == b' ')?;
        let length: usize = decimal(&data[..blank])?.try_into().ok()?;
        let record = data.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        note(&mut pax, &record[..equals], &record[equals + 1..])?;
        data = &data[length..];
    }
    // Later records replace earlier ones of the same name.
    let mut xattrs = std::mem::take(&mut pax.xattrs);
    xattrs.reverse();
    xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
    xattrs.dedup_by(|(later, _), (kept, _)| later == kept);
    let total: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    pax.xattrs = xattrs;
    (total <= MAX_XATTRS_BYTES).then_some(pax)
}

fn note(pax: &mut Pax, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        // An empty value means: as the header says.
        b"path" => pax.path = (!value.is_empty()).then(|| value.to_vec()),
        b"linkpath" => pax.link = (!value.is_empty()).then(|| value.to_vec()),
        b"size" => pax.size = optional(value, decimal)?,
        b"uid" => pax.uid = optional(value, decimal)?,
        b"gid" => pax.gid = optional(value, decimal)?,
        b"mtime" => pax.mtime = optional(value, time)?,
        _ => {
            if let Some(key) = key.strip_prefix(SPARSE) {
                return pax.sparse.get_or_insert_default().note(key, value);
            }
            if let Some(name) = key.strip_prefix(XATTR).filter(|name| is_kept(name)) {
                if name.len() > MAX_NAME || value.len() > MAX_XATTR_BYTES {
                    return None;
                }
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Some(())
}

fn optional<T>(value: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { read(value).map(Some) }
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

/// `-1.25` is a second and a quarter before 1970: -2 and 750 million nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = nanos.parse().ok()?;
    match (negative, nanos) {
        (false, _) => Some((secs, nanos)),
        (true, 0) => Some((-secs, 0)),
        (true, _) => Some((-secs - 1, 1_000_000_000 - nanos)),
    }
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
        assert_eq!(pax.path.unwrap(), "ü/b".as_bytes());
    }

    #[test]
    fn the_last_of_equal_records_counts() {
        let records = [record("uid", b"1"), record("SCHILY.xattr.user.a", b"1"), record("uid", b"70000")];
        let records = [records.concat(), record("SCHILY.xattr.user.a", b"2")].concat();
        let pax = parse(&records).unwrap();
        assert_eq!(pax.uid, Some(70_000));
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
    fn times_are_read_with_their_fractions() {
        let mtime = |text: &str| parse(&record("mtime", text.as_bytes())).and_then(|pax| pax.mtime);
        assert_eq!(mtime("12.5"), Some((12, 500_000_000)));
        assert_eq!(mtime("12"), Some((12, 0)));
        assert_eq!(mtime("1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(mtime("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(mtime("1e9"), None);
    }

    #[test]
    fn what_are_no_records_is_refused() {
        let long = vec![b'x'; MAX_XATTR_BYTES + 1];
        for bad in [
            &b"5"[..],
            b" a=b\n",
            b"99 a=b\n",
            b"6 a=b",
            b"4 ab\n",
            b"-6 a=b\n",
            &record("size", b"-1"),
            &record("uid", b"99999999999999999999"),
            &record("SCHILY.xattr.user.a", &long),
        ] {
            assert_eq!(parse(bad), None, "{}", String::from_utf8_lossy(&bad[..bad.len().min(40)]));
        }
        assert!(parse(&record("SCHILY.xattr.user.a", &long[..60_000])).is_some());
    }
}
