//! Whether an executable can run in the jailer's root directory, which has no other files of the system.

use std::path::Path;

use elf::ElfBytes;
use elf::abi::PT_INTERP;
use elf::endian::AnyEndian;

/// More than an interpreter's path has.
const MAX_INTERPRETER_BYTES: usize = 4096;

/// Why the executable cannot run where it is alone: it needs an interpreter, as dynamically linked ones and scripts do.
/// `None`: it can, or cannot be read, which starting it reports.
pub(super) fn obstacle(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    if bytes.starts_with(b"#!") {
        return Some("it is a script, and the jailer's root directory has no interpreter for it".into());
    }
    let interpreter = interpreter(&bytes)?;
    Some(format!(
        "it is dynamically linked, and the jailer's root directory has no `{}`: a static build, as the releases have, \
         is needed",
        interpreter.escape_debug()
    ))
}

/// The program that the kernel starts in the executable's stead.
fn interpreter(bytes: &[u8]) -> Option<String> {
    let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).ok()?;
    let header = file.segments()?.iter().find(|header| header.p_type == PT_INTERP)?;
    let path = file.segment_data(&header).ok()?;
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(&path[..path.len().min(MAX_INTERPRETER_BYTES)]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamically_linked_executable_names_its_interpreter() {
        // Tests are linked to the system's C library.
        let own = std::env::current_exe().unwrap();
        let why = obstacle(&own).unwrap();
        assert!(why.contains("dynamically linked") && why.contains("ld-linux"), "{why}");
    }

    #[test]
    fn scripts_are_named_and_broken_files_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            obstacle(file.path())
        };
        assert!(found(b"#!/bin/sh\n").unwrap().contains("script"));
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 4, 63, 64, 100] {
            assert_eq!(found(&own[..length]), None, "{length} bytes");
        }
        assert_eq!(obstacle(Path::new("/nonexistent/firecracker")), None);
    }
}
