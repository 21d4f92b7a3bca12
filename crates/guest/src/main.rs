//! The guest binary. As PID 1 of a VM it brings the VM up and reaps; as `bouvet-guest serve …` it serves
//! the link. The VM's service is this same binary, started by PID 1.

use std::io::Write as _;
use std::process::ExitCode;

use bouvet_guest::{init, serve};

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        return init::run();
    }
    let result = serve::Options::parse(std::env::args_os().skip(1)).and_then(|options| serve::run(&options));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody reads a failed write to the console.
            writeln!(std::io::stderr(), "bouvet-guest: {}", bouvet_guest::chain(&error)).ok();
            ExitCode::FAILURE
        }
    }
}
