//! PAX records: what an archive states of an entry beyond its header.

use super::sparse::Records;
use super::{MAX_FILE_BYTES, decimal};

const SPARSE: &[u8] = b"GNU.sparse.";

/// The records of one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pax {
    /// Name of the entry.
    pub path: Option<Vec<u8>>,
    /// Target of a link.
    pub link: Option<Vec<u8>>,
    /// Bytes of content, at most [`MAX_FILE_BYTES`].
    pub size: Option<u64>,
    /// Owner's number, not checked.
    pub uid: Option<u64>,
    /// Group's number, not checked.
    pub gid: Option<u64>,
    /// Seconds since 1970, and nanoseconds after them.
    pub mtime: Option<(i64, u32)>,
    /// Map of a sparse file.
    pub sparse: Option<Records>,
}

/// Reads records `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record; `None` if one is invalid. Records with
/// other keys go to `other`, which returns `None` for an invalid one.
pub fn parse(mut data: &[u8], mut other: impl FnMut(&[u8], &[u8]) -> Option<()>) -> Option<Pax> {
    let mut pax = Pax::default();
    while !data.is_empty() {
        let blank = data.iter().position(|byte| *byte == b' ')?;
        let length: usize = decimal(&data[..blank])?.try_into().ok()?;
        let record = data.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        note(&mut pax, &record[..equals], &record[equals + 1..], &mut other)?;
        data = &data[length..];
    }
    Some(pax)
}

fn note(
    pax: &mut Pax,
    key: &[u8],
    value: &[u8],
    other: &mut impl FnMut(&[u8], &[u8]) -> Option<()>,
) -> Option<()> {
    match key {
        // An empty value means: as the header states.
        b"path" => pax.path = (!value.is_empty()).then(|| value.to_vec()),
        b"linkpath" => pax.link = (!value.is_empty()).then(|| value.to_vec()),
        b"size" => pax.size = optional(value, |text| decimal(text).filter(|size| *size <= MAX_FILE_BYTES))?,
        b"uid" => pax.uid = optional(value, decimal)?,
        b"gid" => pax.gid = optional(value, decimal)?,
        b"mtime" => pax.mtime = optional(value, time)?,
        _ => match key.strip_prefix(SPARSE) {
            Some(key) => return pax.sparse.get_or_insert_default().note(key, value),
            None => return other(key, value),
        },
    }
    Some(())
}

fn optional<T>(value: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { read(value).map(Some) }
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
        let digits = (1..).find(|digits| (body + digits).to_string().len() == *digits).unwrap();
        [format!("{} {key}=", body + digits).as_bytes(), value, b"\n"].concat()
    }

    fn parsed(data: &[u8]) -> Option<Pax> {
        parse(data, |_, _| Some(()))
    }

    #[test]
    fn values_may_have_newlines_and_zeros() {
        let capability = b"\x01\0\0\x02\n=\n\0\x20";
        let mut records = record("SCHILY.xattr.security.capability", capability);
        records.extend(record("path", "ü/b".as_bytes()));
        let mut others = Vec::new();
        let pax = parse(&records, |key, value| {
            others.push((key.to_vec(), value.to_vec()));
            Some(())
        });
        assert_eq!(others, [(b"SCHILY.xattr.security.capability".to_vec(), capability.to_vec())]);
        assert_eq!(pax.unwrap().path.unwrap(), "ü/b".as_bytes());
    }

    #[test]
    fn the_last_of_equal_records_counts() {
        let records = [record("uid", b"1"), record("uid", b"70000"), record("gid", b"5"), record("gid", b"")];
        let pax = parsed(&records.concat()).unwrap();
        assert_eq!((pax.uid, pax.gid), (Some(70_000), None));
    }

    #[test]
    fn times_are_read_with_their_fractions() {
        let mtime = |text: &str| parsed(&record("mtime", text.as_bytes())).and_then(|pax| pax.mtime);
        assert_eq!(mtime("12.5"), Some((12, 500_000_000)));
        assert_eq!(mtime("12"), Some((12, 0)));
        assert_eq!(mtime("1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(mtime("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(mtime("1e9"), None);
    }

    #[test]
    fn sizes_hold_at_the_limit_and_not_past_it() {
        let size = |text: &str| parsed(&record("size", text.as_bytes())).map(|pax| pax.size);
        assert_eq!(size("9223372036854775807"), Some(Some(MAX_FILE_BYTES)));
        assert_eq!((size("9223372036854775808"), size("18446744073709551615")), (None, None));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5"[..],
            b" a=b\n",
            b"99 a=b\n",
            b"6 a=b",
            b"4 ab\n",
            b"-6 a=b\n",
            b"1 a=b\n",
            b"0 a=b\n",
            &record("size", b"-1"),
            &record("uid", b"99999999999999999999"),
        ] {
            assert_eq!(parsed(bad), None, "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(parse(&record("other", b"1"), |_, _| None), None);
    }
}
