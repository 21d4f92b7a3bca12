//! Signals to the main program of one run, from the order to the guest's answer.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

use super::order::{Answer, OrderError};
use crate::exec::{ExecControl, ExecError, Signal};

/// Signals on their way to the main program. The owner stays free to obey other orders meanwhile.
#[derive(Debug, Default)]
pub(super) struct Signals {
    sending: JoinSet<Result<(), ExecError>>,
    waiting: HashMap<Id, Waiting>,
    /// Whether a signal that asks for the end was delivered.
    is_asked: bool,
}

#[derive(Debug)]
struct Waiting {
    asks_to_end: bool,
    answer: Answer,
}

impl Signals {
    /// Sends `signal`. `asks_to_end`: a program that it ends is not to be started again.
    pub(super) fn send(&mut self, control: ExecControl, signal: Signal, asks_to_end: bool, answer: Answer) {
        let sending = self.sending.spawn(async move { control.signal(signal).await });
        self.waiting.insert(sending.id(), Waiting { asks_to_end, answer });
    }

    /// Passes the next answer of the guest on; waits for ever if none is awaited. Cancel safe.
    pub(super) async fn answered(&mut self) {
        let Some(sent) = self.sending.join_next_with_id().await else { return std::future::pending().await };
        let (id, sent) = match sent {
            Ok(sent) => sent,
            Err(error) => (error.id(), Err(ExecError::Link(error.to_string()))),
        };
        let Some(Waiting { asks_to_end, answer }) = self.waiting.remove(&id) else { return };
        self.is_asked |= asks_to_end && sent.is_ok();
        answer.send(sent.map_err(OrderError::Program)).ok();
    }

    /// Whether the main program was asked to end. A signal counts from its order on: the program may end before the
    /// guest's answer arrives. It counts no longer once the guest refuses it.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked || self.waiting.values().any(|waiting| waiting.asks_to_end)
    }

    /// Answers the signals that are still on their way to a program that has ended.
    pub(super) fn program_ended(&mut self) {
        for Waiting { asks_to_end, answer } in self.waiting.drain().map(|(_, waiting)| waiting) {
            self.is_asked |= asks_to_end;
            let sent = if asks_to_end { Ok(()) } else { Err(OrderError::Program(ExecError::Ended)) };
            answer.send(sent).ok();
        }
    }
}
