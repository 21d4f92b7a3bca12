//! The Bouvet MCP server, configured by environment variables. `bouvet serve` is the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    bouvet::cli::server(std::env::args_os())
}
