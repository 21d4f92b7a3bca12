//! The guest binary. As PID 1 of a VM it brings the VM up and reaps; as `bouvet-guest serve …` it serves
//! the link, and as `bouvet-guest enter …` it becomes a program. All are this same binary, which PID 1 starts.

use std::io::Write as _;
use std::process::ExitCode;

use bouvet_guest::{enter, init, serve};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    // Before the other: the first program of a namespace is process 1 there.
    if args.next().as_deref() == Some("enter".as_ref()) {
        return enter::run(args);
    }
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
