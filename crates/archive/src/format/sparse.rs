//! Files whose holes an archive leaves out: the maps of old GNU tar, and of its formats 0.0, 0.1 and 1.0 in PAX archives
//! (GNU tar manual, "Storing Sparse Files").

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK_BYTES, MAX_FILE_BYTES, decimal};

/// Digits of a number in a map: those of the largest that fits.
const MAX_DIGITS: usize = 20;

/// A stretch of data: where in the file, and how many bytes.
pub type Part = (u64, u64);

/// A sparse file whose data is what comes next in the archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Size with the holes, at most [`MAX_FILE_BYTES`].
    pub size: u64,
    /// Stretches in order, which do not overlap and end within the file.
    pub parts: Vec<Part>,
    /// Bytes of data: the sum of all stretches.
    pub stored: u64,
}

impl Sparse {
    /// `None` if the map does not fit the file or the `stored` bytes of data.
    fn checked(size: u64, parts: Vec<Part>, stored: u64) -> Option<Self> {
        let (mut end, mut sum) = (0, 0_u64);
        for (at, len) in &parts {
            if *at < end {
                return None;
            }
            end = at.checked_add(*len).filter(|end| *end <= size)?;
            sum += len;
        }
        (size <= MAX_FILE_BYTES && sum == stored).then_some(Self { size, parts, stored })
    }
}

/// Reads the map that a header of old GNU tar has, and the blocks after it that `fill` reads. `None` if it is invalid or
/// has more than `max_parts` stretches.
pub fn read_gnu<E>(
    header: &Header,
    stored: u64,
    max_parts: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Option<Sparse>, E> {
    let Some(gnu) = header.as_gnu() else { return Ok(None) };
    let Ok(size) = gnu.real_size() else { return Ok(None) };
    let mut parts = Vec::new();
    let mut add = |list: &[GnuSparseHeader]| {
        for part in list.iter().filter(|part| !part.is_empty()) {
            parts.push((part.offset().ok()?, part.length().ok()?));
        }
        (parts.len() <= max_parts).then_some(())
    };
    let mut is_valid = add(&gnu.sparse).is_some();
    let mut more = gnu.is_extended();
    while is_valid && more {
        let mut block = GnuExtSparseHeader::new();
        fill(block.as_mut_bytes())?;
        is_valid = add(&block.sparse).is_some();
        more = block.is_extended();
    }
    Ok(if is_valid { Sparse::checked(size, parts, stored) } else { None })
}

/// Statements of PAX records on a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Records {
    name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    parts: Option<u64>,
    /// Where each stretch is and how long it is, in turn.
    numbers: Vec<u64>,
}

impl Records {
    /// Name of the file. The entry itself has an invented one.
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// Notes the record `GNU.sparse.{key}`; `None` if it is invalid.
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

    /// Reads the map: from the records, or from the first of the `stored` bytes of content, whose blocks `fill` reads.
    /// `None` if it is invalid or has more than `max_parts` stretches.
    pub fn read<E>(
        &self,
        stored: u64,
        max_parts: usize,
        fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Sparse>, E> {
        let Some(size) = self.size else { return Ok(None) };
        match (self.major.unwrap_or(0), self.minor.unwrap_or(0)) {
            (1, 0) => in_front(size, stored, max_parts, fill),
            (0, 0 | 1) => {
                let parts = self.parts_within(max_parts);
                Ok(parts.and_then(|parts| Sparse::checked(size, parts, stored)))
            }
            _ => Ok(None),
        }
    }

    fn parts_within(&self, max_parts: usize) -> Option<Vec<Part>> {
        let parts: Vec<Part> = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let has_all = self.parts.is_none_or(|wanted| wanted == parts.len() as u64);
        (self.numbers.len().is_multiple_of(2) && has_all && parts.len() <= max_parts).then_some(parts)
    }
}

/// Format 1.0: the map is text in whole blocks before the data.
fn in_front<E>(
    size: u64,
    stored: u64,
    max_parts: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Option<Sparse>, E> {
    let (mut reader, mut left) = (MapReader::default(), stored);
    loop {
        let Some(rest) = left.checked_sub(BLOCK_BYTES) else { return Ok(None) };
        left = rest;
        let mut block = [0; 512];
        fill(&mut block)?;
        match reader.block(&block, max_parts) {
            Ok(Some(parts)) => return Ok(Sparse::checked(size, parts, left)),
            Ok(None) => {}
            Err(Invalid) => return Ok(None),
        }
    }
}

struct Invalid;

/// Reads the map of format 1.0: the number of stretches, then two numbers for each, one a line.
#[derive(Debug, Default)]
struct MapReader {
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl MapReader {
    /// Reads a block, of which what follows the map is not looked at. The map once it is whole.
    fn block(&mut self, block: &[u8], max_parts: usize) -> Result<Option<Vec<Part>>, Invalid> {
        for byte in block {
            match byte {
                b'\n' => {
                    self.numbers.push(decimal(&self.digits).ok_or(Invalid)?);
                    self.digits.clear();
                    if self.numbers[0] > max_parts as u64 {
                        return Err(Invalid);
                    }
                }
                b'0'..=b'9' if self.digits.len() < MAX_DIGITS => self.digits.push(*byte),
                _ => return Err(Invalid),
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
