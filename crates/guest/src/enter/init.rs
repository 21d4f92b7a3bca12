//! Process 1 of a sandbox whose description asks for one: it starts the main program, forwards signals to it, reaps
//! orphans, and ends as the program does.

use std::fs::File;
use std::io;
use std::process::ExitCode;

use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, setpgid, wait};

use super::{FAILED, become_program, fail};
use crate::exec::entry::Entry;
use crate::identity::Identity;

/// Signals of this process's own faults, and of terminals: not forwarded.
const OWN: [i32; 9] = [
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Runs the program of `entry` as `identity`. Returns its exit code; 128 + N if the signal N ended it.
pub(super) fn run(entry: &Entry, identity: &Identity, mut errors: File) -> ExitCode {
    let signals = block_signals();
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: this process has one thread, so the child is a whole copy of it.
    let child = unsafe { libc::fork() };
    match Pid::from_raw(child) {
        None => {
            if entry.terminal {
                lead_terminal();
            }
            // The signal mask is reset there.
            fail(&mut errors, &become_program(entry, identity));
            #[expect(unsafe_code, reason = "no safe wrapper exists")]
            // SAFETY: it ends this process.
            unsafe {
                libc::_exit(FAILED.into())
            }
        }
        Some(_) if child < 0 => {
            fail(&mut errors, &super::Error::Step("start the program", io::Error::last_os_error()))
        }
        Some(child) => {
            // The end of the pipe says that the program runs: the child has the only other copy.
            drop(errors);
            // It is shown by ps(1) instead of this executable's name.
            rustix::thread::set_name(c"init").ok();
            supervise(child, &signals)
        }
    }
}

/// The program, and not this process, is what the terminal's keys send signals to.
fn lead_terminal() {
    // SIGTTOU is blocked. Where this fails, signals come by way of process 1.
    setpgid(None, None).ok();
    rustix::termios::tcsetpgrp(rustix::stdio::stdin(), getpid()).ok();
}

/// Blocks all signals; returns those that are to be waited for.
fn block_signals() -> libc::sigset_t {
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: both sets are initialised by `sigfillset`, and this process has one thread.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let mut forwarded = all;
        for signal in OWN {
            libc::sigdelset(&raw mut forwarded, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        forwarded
    }
}

fn supervise(child: Pid, signals: &libc::sigset_t) -> ExitCode {
    loop {
        #[expect(unsafe_code, reason = "no safe wrapper exists")]
        // SAFETY: the set is initialised, and no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(signals, std::ptr::null_mut()) };
        if signal == libc::SIGCHLD {
            if let Some(status) = reap(child) {
                return ExitCode::from(exit_code(status));
            }
        } else if signal > 0 {
            #[expect(unsafe_code, reason = "real-time signals have no typed form")]
            // SAFETY: it sends a signal. A child that has ended stays until it is reaped, above.
            unsafe {
                libc::kill(child.as_raw_nonzero().get(), signal);
            }
        }
    }
}

/// Reaps all that have ended; returns how `child` did, if it is among them.
fn reap(child: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == child {
            ended = Some(status);
        }
    }
    ended
}

fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}
