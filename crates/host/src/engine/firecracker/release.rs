//! Releases of Firecracker, and what came with which.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// A release, by its numbers; of a build between two releases, those of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release(u32, u32, u32);

/// The oldest that we use: the first whose snapshots hold everything that a clone needs.
pub(super) const OLDEST: Release = Release(1, 5, 0);
/// Memory in pages of 2 MiB (its CHANGELOG, 1.7.0).
pub(super) const HUGE_PAGES: Release = Release(1, 7, 0);
/// Devices described by ACPI (its CHANGELOG, 1.8.0). Before, the kernel must take them from its command line, which
/// distributions' kernels do not.
pub(super) const ACPI: Release = Release(1, 8, 0);

impl Release {
    /// From what `GET /version` answers: `1.16.1`, `1.17.0-dev`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let numbers = text.trim().trim_start_matches('v').split(['-', '+']).next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let release = Self(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(release)
    }
}

/// Whether the Firecracker at `binary` carries its seccomp filters. Builds for glibc do not: theirs, which the kernel
/// counts as in force too, allow everything (its docs/seccomp.md and `resources/seccomp/unimplemented.json`).
pub(super) fn carries_filters(binary: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(binary)?.take(4096).read_to_end(&mut start)?;
    Ok(!is_for_glibc(&start))
}

/// Whether a program that starts like this is built for glibc, whose start files alone mark it by a note: name size,
/// content size and type (1, `NT_GNU_ABI_TAG` of elf.h), and the name.
fn is_for_glibc(start: &[u8]) -> bool {
    const ABI_TAG: &[u8; 16] = b"\x04\0\0\0\x10\0\0\0\x01\0\0\0GNU\0";
    start.windows(ABI_TAG.len()).any(|bytes| bytes == ABI_TAG)
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_without_filters_are_told_by_their_libc() {
        // The program of this test is one.
        assert!(!carries_filters(&std::env::current_exe().unwrap()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("static"), b"\x7fELF and no note").unwrap();
        assert!(carries_filters(&dir.path().join("static")).unwrap());
    }

    #[test]
    fn releases_are_read_and_compared_by_their_numbers() {
        assert_eq!(Release::parse("1.16.1"), Some(Release(1, 16, 1)));
        assert_eq!(Release::parse("v1.5.0-dev"), Some(OLDEST));
        assert!(Release::parse("1.10.0") > Some(ACPI), "numbers, not text");
        for none in ["", "1.5", "1.5.x", "1.5.0.1", "firecracker"] {
            assert_eq!(Release::parse(none), None, "{none}");
        }
        assert_eq!(Release(1, 7, 0).to_string(), "1.7.0");
    }
}
