//! Small JSON files with a format version and a checksum.
//!
//! The checksum is the last field, and of all bytes before it: version 0.1.0, which wrote neither, still reads such a file.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Format of what is written. Format 1 is that of version 0.1.0, without a version and a checksum.
const FORMAT: u32 = 2;
/// Largest record that is read: an image's configuration has 4 MiB at most.
const MAX_RECORD_BYTES: u64 = 16 << 20;
const CHECKSUM: &str = ",\"checksum\":\"";
const END: &str = "\"}";
const HEX_DIGITS: usize = 64;

/// Why something kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// It is missing, cut short or changed.
    #[error("{0}")]
    Damaged(String),
    /// The system does not let us read it.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

impl Broken {
    /// A file called `name` could not be read.
    pub(crate) fn reading(name: &str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Damaged(format!("`{name}` is missing")),
            io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                Self::Damaged(format!("`{name}` is not a file"))
            }
            // The device lost it.
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Self::Damaged(format!("`{name}` cannot be read: {error}"))
            }
            _ => Self::Unreadable(error),
        }
    }
}

#[derive(Serialize)]
struct Written<'a, T> {
    format: u32,
    #[serde(flatten)]
    value: &'a T,
}

#[derive(Deserialize)]
struct Format {
    #[serde(default = "first_format")]
    format: u32,
}

fn first_format() -> u32 {
    1
}

/// Reads the record at `path`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Broken> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| Broken::reading(&name, error))?;
    parse(&bytes).map_err(|reason| Broken::Damaged(format!("`{name}` {reason}")))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if bytes.is_empty() {
        return Err("is empty".to_owned());
    }
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(format!("has more than {MAX_RECORD_BYTES} bytes"));
    }
    let is_sealed = match sealed(bytes) {
        Some((content, checksum)) if Digest::of(content).hex().as_bytes() != checksum => {
            return Err("has another content than its checksum says".to_owned());
        }
        sealed => sealed.is_some(),
    };
    let malformed = |error| format!("is not the record that it should be: {error}");
    let Format { format } = serde_json::from_slice(bytes).map_err(malformed)?;
    match (format, is_sealed) {
        (1, false) | (FORMAT, true) => serde_json::from_slice(bytes).map_err(malformed),
        (FORMAT, false) => Err("has lost its checksum".to_owned()),
        _ => Err(format!("is of format {format}; this version of Bouvet reads formats 1 and {FORMAT}")),
    }
}

/// What the checksum of a record is of, and the checksum; `None` if it has none.
fn sealed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = bytes.strip_suffix(END.as_bytes())?;
    let (content, checksum) = text.split_at_checked(text.len().checked_sub(HEX_DIGITS)?)?;
    content.ends_with(CHECKSUM.as_bytes()).then_some((content, checksum))
}

/// Writes a record, which must be an object. It is there with all its contents or not at all.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(&Written { format: FORMAT, value })?;
    text.pop();
    text.extend_from_slice(CHECKSUM.as_bytes());
    let checksum = Digest::of(&text);
    text.extend_from_slice(checksum.hex().as_bytes());
    text.extend_from_slice(END.as_bytes());
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::Write::write_all(&mut file, &text)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    }

    fn reason(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, bytes).unwrap();
        match read::<Thing>(&path) {
            Err(Broken::Damaged(reason)) => reason,
            other => panic!("{}: {other:?}", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn damaged_records_are_never_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let thing = Thing { name: "a \"quoted\" }ü".to_owned(), size: Some(7) };
        write(&path, &thing).unwrap();
        assert_eq!(read::<Thing>(&path).unwrap(), thing);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            reason(&whole[..length]);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                reason(&flipped);
            }
        }
        assert_eq!(reason(b""), "`x.json` is empty");
        assert!(reason(&[0xff; 100]).contains("is not the record"));
        assert!(reason(br#"{"format":3,"name":"a"}"#).contains("is of format 3"));
        assert_eq!(reason(br#"{"format":2,"name":"a"}"#), "`x.json` has lost its checksum");
        assert!(
            matches!(read::<Thing>(&dir.path().join("none")), Err(Broken::Damaged(reason)) if reason == "`none` is missing")
        );
        assert!(
            matches!(read::<Thing>(dir.path()), Err(Broken::Damaged(reason)) if reason.ends_with("is not a file"))
        );
    }

    #[test]
    fn records_of_the_first_version_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, br#"{"name":"a"}"#).unwrap();
        assert_eq!(read::<Thing>(&path).unwrap(), Thing { name: "a".to_owned(), size: None });
        // It reads those of this one: fields that it does not know are ignored.
        write(&path, &Thing { name: "b".to_owned(), size: None }).unwrap();
        let thing: Thing = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(thing.name, "b");
    }

    #[test]
    fn records_are_limited_at_the_limit() {
        let of = |length: usize| {
            let mut text = br#"{"name":"a"}"#.to_vec();
            text.resize(length, b' ');
            parse::<Thing>(&text)
        };
        let max = usize::try_from(MAX_RECORD_BYTES).unwrap();
        assert!(of(max).is_ok());
        assert_eq!(of(max + 1).unwrap_err(), format!("has more than {max} bytes"));
    }
}
