//! Files whose holes an archive leaves out: the maps of old GNU tar, and of its formats 0.0, 0.1 and 1.0 in PAX archives
//! (GNU tar manual, "Storing Sparse Files").

use super::entries::{Content, Extent};
use crate::limits::MAX_EXTENSION_BYTES;

/// Stretches of data in one file. A stretch takes two numbers of a header of old GNU tar, 24 bytes.
pub(super) const MAX_PARTS: u64 = MAX_EXTENSION_BYTES / 24;
/// Digits of a number in a map: those of the largest that fits.
const MAX_DIGITS: usize = 20;

/// A stretch of data: where in the file, and how many bytes.
pub(super) type Part = (u64, u64);

/// PAX records of a sparse file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Records {
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    parts: Option<u64>,
    /// Where each stretch is and how long it is, in turn.
    numbers: Vec<u64>,
}

/// Where the map of a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// In the records.
    Here(Vec<Part>),
    /// Before the data, as text.
    InFront,
}

impl Records {
    /// Notes the record `GNU.sparse.{key}`; `None` if it is not a valid one.
    pub(super) fn note(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let digits = || decimal(value);
        match key {
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"major" => self.major = Some(digits()?),
            b"minor" => self.minor = Some(digits()?),
            b"size" | b"realsize" => self.size = Some(digits()?),
            b"numblocks" => self.parts = Some(digits()?),
            // Format 0.0 repeats these two.
            b"offset" if self.numbers.len().is_multiple_of(2) => self.numbers.push(digits()?),
            b"numbytes" if self.numbers.len() % 2 == 1 => self.numbers.push(digits()?),
            b"map" if value.is_empty() => self.numbers.clear(),
            b"map" => {
                self.numbers = value.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?;
            }
            _ => return None,
        }
        Some(())
    }

    /// The size of the file and its map; `None` if they make no sense.
    pub(super) fn map(&self) -> Option<(u64, Map)> {
        let size = self.size?;
        match (self.major.unwrap_or(0), self.minor.unwrap_or(0)) {
            (1, 0) => Some((size, Map::InFront)),
            (0, 0 | 1) => {
                let parts: Vec<Part> = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                let has_all = self.parts.is_none_or(|wanted| wanted == parts.len() as u64);
                let is_even = self.numbers.len().is_multiple_of(2);
                (is_even && has_all && parts.len() as u64 <= MAX_PARTS).then_some((size, Map::Here(parts)))
            }
            _ => None,
        }
    }
}

/// Reads the map of format 1.0, block by block: the number of stretches, then two numbers for each, one a line.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl MapReader {
    /// Reads a block, of which what follows the map is not looked at. The map once it is whole; `Err` if it is none.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<Part>>, ()> {
        for byte in block {
            match byte {
                b'\n' => {
                    self.numbers.push(decimal(&self.digits).ok_or(())?);
                    self.digits.clear();
                    if self.numbers[0] > MAX_PARTS {
                        return Err(());
                    }
                }
                b'0'..=b'9' if self.digits.len() < MAX_DIGITS => self.digits.push(*byte),
                _ => return Err(()),
            }
            if let Some((count, numbers)) = self.numbers.split_first()
                && numbers.len() as u64 == count * 2
            {
                return Ok(Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()));
            }
        }
        Ok(None)
    }
}

/// A file of `size` bytes whose `stored` bytes of data begin at `from`; `None` if the map does not fit them.
pub(super) fn content(layer: usize, size: u64, parts: &[Part], from: u64, stored: u64) -> Option<Content> {
    let mut extents = Vec::new();
    let (mut next, mut end) = (from, 0);
    for &(at, len) in parts {
        let after = at.checked_add(len)?;
        if at < end || after > size {
            return None;
        }
        if len > 0 {
            extents.push(Extent { at, from: next, len });
        }
        next = next.checked_add(len)?;
        end = after;
    }
    (next - from == stored).then_some(Content { layer, size, extents })
}

/// A number in decimal digits alone.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let is_plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_plain.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}
