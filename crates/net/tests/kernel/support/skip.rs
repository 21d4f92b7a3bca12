//! Tests that need what this machine lacks.

use std::io::Write as _;

/// Says that the calling test is skipped and why: on standard error, and in the file that `make test` counts from. Where
/// `require` is set in the environment (`REQUIRE_VM=1`), that is a failure.
#[expect(clippy::print_stderr, reason = "for who runs the tests")]
pub(crate) fn skipped(require: &str, reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let required = std::env::var_os(require).is_some_and(|value| value != "0");
    assert!(!required, "{test}: {require} is set, but {reason}");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("BOUVET_SKIP_LOG") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}
