//! What the images that are measured are made of: files of no meaning, the same ones every time.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Half of a layer's bytes are in files from the first to the second of these sizes, evenly by order of magnitude...
const SMALL_BYTES: [u64; 2] = [256, 64 * 1024];
/// ... and half in files of this size.
const LARGE_BYTES: u64 = 16_000_000;
const FILES_IN_DIRECTORY: u32 = 64;
/// Contents are text and noise in turn, so much of each: half can be compressed.
const PAGE_BYTES: usize = 4096;
/// Words that text is made of: as many as a byte can choose from.
const WORDS: usize = 256;

/// Numbers that look random, and are the same for the same seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One that is less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// The contents of a file.
    fn content(&mut self, bytes: usize, words: &[Vec<u8>]) -> Vec<u8> {
        let mut content = Vec::with_capacity(bytes + PAGE_BYTES);
        let mut is_text = self.below(2) == 0;
        while content.len() < bytes {
            let end = content.len() + PAGE_BYTES;
            while content.len() < end {
                let number = self.next();
                match is_text {
                    true => content.extend(&words[usize::from(number.to_le_bytes()[0])]),
                    false => content.extend(number.to_le_bytes()),
                }
            }
            content.truncate(end);
            is_text = !is_text;
        }
        content.truncate(bytes);
        content
    }

    fn words(&mut self) -> Vec<Vec<u8>> {
        let word = |numbers: &mut Self| {
            let letters = 2 + numbers.below(9);
            (0..letters).map(|_| b'a' + numbers.next().to_le_bytes()[0] % 26).chain([b' ']).collect()
        };
        (0..WORDS).map(|_| word(self)).collect()
    }

    fn small_size(&mut self) -> u64 {
        let [least, most] = SMALL_BYTES;
        let magnitude = least << self.below((most / least).ilog2().into());
        magnitude + self.below(magnitude)
    }
}

/// Writes layer `number` of an image as an archive: `bytes` of files, half of which can be compressed.
pub(super) fn write_layer(number: u64, bytes: u64, into: impl Write) -> io::Result<()> {
    let mut numbers = Numbers(number);
    let words = numbers.words();
    let mut archive = tar::Builder::new(into);
    let small = bytes / 2;
    for (kind, bytes) in [("small", small), ("large", bytes - small)] {
        let (mut file, mut left) = (0, bytes);
        while left > 0 {
            let size = if kind == "small" { numbers.small_size() } else { LARGE_BYTES };
            let size = size.min(left);
            let path = format!("srv/{number}/{kind}/{}/{file}", file / FILES_IN_DIRECTORY);
            let content = numbers.content(usize::try_from(size).map_err(io::Error::other)?, &words);
            append(&mut archive, path, 0o644, &content)?;
            left -= size;
            file += 1;
        }
    }
    archive.into_inner()?.flush()
}

/// Writes a layer with this machine's `program` as `/usr/bin/NAME`, and the `libraries` that it needs where they are here.
pub(super) fn write_program(
    name: &str,
    program: &Path,
    libraries: &[PathBuf],
    into: impl Write,
) -> io::Result<()> {
    let mut archive = tar::Builder::new(into);
    append(&mut archive, format!("usr/bin/{name}"), 0o755, &fs::read(program)?)?;
    for library in libraries {
        let path = library.strip_prefix("/").unwrap_or(library);
        append(&mut archive, path, 0o755, &fs::read(library)?)?;
    }
    archive.into_inner()?.flush()
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    path: impl AsRef<Path>,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, path, content)
}

/// The files that `ldd` says a program is linked with.
pub(super) fn libraries(ldd: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    ldd.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(number: u64, bytes: u64) -> Vec<u8> {
        let mut archive = Vec::new();
        write_layer(number, bytes, &mut archive).unwrap();
        archive
    }

    #[test]
    fn a_layer_is_the_same_every_time_and_like_no_other() {
        assert_eq!(layer(1, 1_000_000), layer(1, 1_000_000));
        assert_ne!(layer(1, 1_000_000), layer(2, 1_000_000));
    }

    #[test]
    fn a_layer_has_as_many_bytes_as_it_should_half_of_them_in_small_files() {
        let archive = layer(3, 40_000_001);
        let mut archive = tar::Archive::new(&archive[..]);
        let sizes: Vec<u64> = archive.entries().unwrap().map(|entry| entry.unwrap().size()).collect();
        assert_eq!(sizes.iter().sum::<u64>(), 40_000_001);
        let small: Vec<u64> = sizes.iter().copied().filter(|size| *size < SMALL_BYTES[1]).collect();
        assert_eq!(small.iter().sum::<u64>(), 20_000_000);
        assert!((1000..4000).contains(&small.len()), "{}", small.len());
    }

    #[test]
    fn every_other_page_is_text() {
        let mut numbers = Numbers(7);
        let words = numbers.words();
        let content = numbers.content(10 * PAGE_BYTES + 1, &words);
        assert_eq!(content.len(), 10 * PAGE_BYTES + 1);
        let is_text = |page: &[u8]| page.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b' ');
        assert_eq!(content.chunks_exact(PAGE_BYTES).filter(|page| is_text(page)).count(), 5);
    }

    #[test]
    fn a_program_is_where_it_is_looked_for_wherever_it_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let (program, library) = (dir.path().join("odd"), dir.path().join("libodd.so"));
        fs::write(&program, "program").unwrap();
        fs::write(&library, "library").unwrap();
        let mut archive = Vec::new();
        write_program("echo", &program, std::slice::from_ref(&library), &mut archive).unwrap();
        let mut archive = tar::Archive::new(&archive[..]);
        let paths: Vec<PathBuf> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(paths, [Path::new("usr/bin/echo"), library.strip_prefix("/").unwrap()]);
    }

    #[test]
    fn libraries_are_what_ldd_found() {
        let said = "\tlinux-vdso.so.1 (0x00007fa81740c000)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fa81720d000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007fa81740e000)\n";
        let found = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(said), found.map(PathBuf::from));
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
