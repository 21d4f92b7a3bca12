//! The command line of Bouvet.

use std::process::ExitCode;

fn main() -> ExitCode {
    bouvet::cli::bouvet(std::env::args_os())
}
