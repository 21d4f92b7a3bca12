//! The programs that run, for those who signal them or resize their terminals.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bouvet_wire::v1;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::Winsize;
use tonic::Status;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<u32, Program>>);

#[derive(Debug)]
struct Program {
    /// Names it for as long as this is open, whatever becomes of its number.
    handle: OwnedFd,
    terminal: Option<Arc<OwnedFd>>,
}

impl Running {
    fn programs(&self) -> MutexGuard<'_, HashMap<u32, Program>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Knows the program with the first process `pid` until what is returned is dropped.
    pub(super) fn enter(self: &Arc<Self>, pid: u32, terminal: Option<Arc<OwnedFd>>) -> Place {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let handle = number.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        // Without a handle it has ended.
        if let Some(Ok(handle)) = handle {
            self.programs().insert(pid, Program { handle, terminal });
        }
        Place { running: self.clone(), pid }
    }

    /// Sends its first process `signal`.
    pub(super) fn signal(&self, pid: u32, signal: u32) -> Result<(), Status> {
        let number = i32::try_from(signal).ok().filter(|number| (1..=64).contains(number));
        let number = number.ok_or_else(|| Status::invalid_argument(format!("the signal {signal}")))?;
        let programs = self.programs();
        let program = programs.get(&pid).ok_or_else(|| missing(pid))?;
        #[expect(unsafe_code, reason = "the typed form has no signals of libc and no real-time ones")]
        // SAFETY: the number is one of a signal, and it is sent to another process: none of this one's is raised.
        let signal_to_send = unsafe { Signal::from_raw_unchecked(number) };
        match rustix::process::pidfd_send_signal(&program.handle, signal_to_send) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(missing(pid)),
            Err(error) => Err(Status::invalid_argument(format!("the signal {signal}: {error}"))),
        }
    }

    /// Says how large its terminal is now.
    pub(super) fn resize(&self, pid: u32, size: v1::WindowSize) -> Result<(), Status> {
        let programs = self.programs();
        let terminal = programs.get(&pid).and_then(|program| program.terminal.as_ref());
        let terminal = terminal.ok_or_else(|| missing(pid))?;
        rustix::termios::tcsetwinsize(terminal, winsize(size))
            .map_err(|error| Status::internal(format!("could not resize a terminal: {error}")))
    }
}

fn missing(pid: u32) -> Status {
    Status::not_found(format!("the program {pid}"))
}

/// The kernel's form of a size.
pub(super) fn winsize(size: v1::WindowSize) -> Winsize {
    let bounded = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Winsize { ws_row: bounded(size.rows), ws_col: bounded(size.columns), ws_xpixel: 0, ws_ypixel: 0 }
}

/// A program's place among those that run.
#[derive(Debug)]
pub(super) struct Place {
    running: Arc<Running>,
    pid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.programs().remove(&self.pid);
    }
}
