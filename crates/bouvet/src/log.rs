//! The log of the server and of commands, on standard error: standard output may be an MCP transport.
//!
//! What clients send (code, commands, standard input, environment, content of files) is never logged, at any level. Our
//! own statements log its length and digest. Libraries print whole messages, so their statements below `warn` are left
//! out whatever the filter is; of the MCP library only errors are logged.

#[cfg(all(test, feature = "fake"))]
mod marked;

use std::io::IsTerminal as _;

use sha2::{Digest as _, Sha256};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What the MCP library's service reports is the daily life of clients: answers that are errors, calls that are cancelled,
/// clients that leave.
const MCP_LIBRARY: &str = "rmcp::service=off";
/// Digits of a digest that tell two contents apart.
const DIGEST_DIGITS: usize = 16;

/// Starts the log of this process, by `filter` or at `info`.
pub(crate) fn start(filter: Option<String>) -> Result<(), String> {
    let filter = filter.filter(|filter| !filter.trim().is_empty()).unwrap_or_else(|| "info".into());
    let parsed = EnvFilter::try_new(adapted(&filter)).map_err(|error| {
        format!("RUST_LOG is `{filter}`; it must be a level or a filter like bouvet=debug,info: {error}")
    })?;
    subscriber(parsed, std::io::stderr, std::io::stderr().is_terminal()).init();
    Ok(())
}

fn subscriber<W>(filter: EnvFilter, writer: W, with_color: bool) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(with_color);
    tracing_subscriber::registry().with(filter).with(filter_fn(is_without_contents)).with(lines)
}

/// Whether a statement logs nothing that a client sent, by where it stands.
fn is_without_contents(statement: &Metadata<'_>) -> bool {
    let root = statement.target().split("::").next().unwrap_or_default();
    match root {
        "rmcp" => *statement.level() == Level::ERROR,
        ours if ours == "bouvet" || ours.starts_with("bouvet_") => true,
        _ => *statement.level() <= Level::WARN,
    }
}

/// `bouvet_mcp`, the server's published name in filters, stands for all crates of ours.
fn adapted(filter: &str) -> String {
    format!("{},{MCP_LIBRARY}", filter.replace("bouvet_mcp", "bouvet"))
}

/// What may be logged of `contents` that a client sent.
pub(crate) fn digest(contents: &[u8]) -> String {
    let digest = hex::encode(Sha256::digest(contents));
    format!("{} bytes, sha256 {}", contents.len(), &digest[..DIGEST_DIGITS])
}

/// The same of a value that was parsed, where the log is detailed enough to hold it.
pub(crate) fn digest_of(value: &impl serde::Serialize) -> Option<String> {
    tracing::enabled!(Level::DEBUG).then(|| digest(&serde_json::to_vec(value).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_name_our_crates() {
        assert_eq!(adapted("info"), "info,rmcp::service=off");
        assert_eq!(adapted("bouvet_mcp=debug,info"), "bouvet=debug,info,rmcp::service=off");
    }

    #[test]
    fn digest_has_length_and_no_content() {
        let logged = digest(b"marked");
        assert!(logged.starts_with("6 bytes, sha256 ") && !logged.contains("marked"), "{logged}");
        assert_ne!(digest(b"marked"), digest(b"MARKED"));
    }
}
