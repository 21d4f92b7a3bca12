//! What the end-to-end tests share: hosts on each engine, the conformance list, and how a test says that it
//! was skipped.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "test code: a panic is how it reports")]

pub mod conformance;
pub mod drive;
pub mod internet;
pub mod probe;
pub mod registry;
pub mod site;
pub mod skip;
pub mod system;
pub mod tls;
pub mod zone;
