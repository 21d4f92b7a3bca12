//! The states of a sandbox, and what may happen in each. Pure: no I/O, no clock.
//!
//! ```text
//!              Ready             Failed(reason)
//!   Starting ─────────▶ Running ───────────────▶ Failed
//!      │ Failed            │ Destroy                │ Destroy
//!      ▼                   ▼                        ▼
//!    Failed           Destroying ──Released──▶ Destroyed
//! ```
//!
//! A failed sandbox holds nothing any more; it stays known, so that its client learns what became of it.

/// Where a sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its VM is being made.
    Starting,
    /// It takes requests.
    Running,
    /// It ended by itself, and why.
    Failed(String),
    /// It is being taken apart.
    Destroying,
    /// Nothing of it is left.
    Destroyed,
}

impl State {
    /// The name that clients see.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Failed(_) => "failed",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }
}

/// What a client may ask of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run a program or handle files.
    Use,
    /// End it.
    Destroy,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its VM is up, linked and personalised.
    Ready,
    /// Its VM died, its link broke, or its time was over.
    Failed(String),
    /// A client or the end of the host ended it.
    Destroy,
    /// All that it held was released.
    Released,
}

/// Why a request cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not ready yet.
    #[error("the sandbox is still starting")]
    Starting,
    /// It ended by itself.
    #[error("the sandbox has failed: {0}")]
    Failed(String),
    /// It was destroyed.
    #[error("the sandbox was destroyed")]
    Destroyed,
}

/// Whether `request` may be served in `state`.
pub(crate) fn legal(state: &State, request: Request) -> Result<(), Refusal> {
    match (state, request) {
        (State::Running, _) | (State::Starting | State::Failed(_) | State::Destroying, Request::Destroy) => {
            Ok(())
        }
        (State::Starting, Request::Use) => Err(Refusal::Starting),
        (State::Failed(reason), Request::Use) => Err(Refusal::Failed(reason.clone())),
        (State::Destroying, Request::Use) | (State::Destroyed, _) => Err(Refusal::Destroyed),
    }
}

/// The state after `event`; `None` where the event changes nothing.
pub(crate) fn next(state: &State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Starting, Event::Ready) => Some(State::Running),
        (State::Starting | State::Running, Event::Failed(reason)) => Some(State::Failed(reason)),
        (State::Starting | State::Running | State::Failed(_), Event::Destroy) => Some(State::Destroying),
        (State::Destroying, Event::Released) => Some(State::Destroyed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            Just(Event::Ready),
            Just(Event::Failed("gone".into())),
            Just(Event::Destroy),
            Just(Event::Released),
        ];
        prop::collection::vec(event, 0..12)
    }

    /// A model with other means: what has ever happened, instead of a state.
    #[derive(Default)]
    struct Model {
        ready: bool,
        failed: bool,
        destroy: bool,
        released: bool,
    }

    impl Model {
        fn happen(&mut self, event: &Event) {
            match event {
                Event::Ready if !self.failed && !self.destroy => self.ready = true,
                Event::Failed(_) if !self.destroy => self.failed = true,
                Event::Destroy => self.destroy = true,
                Event::Released if self.destroy => self.released = true,
                _ => {}
            }
        }

        fn usable(&self) -> bool {
            self.ready && !self.failed && !self.destroy
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_the_model(events in events()) {
            let (mut state, mut model) = (State::Starting, Model::default());
            for event in events {
                model.happen(&event);
                state = next(&state, event).unwrap_or(state);
                prop_assert_eq!(legal(&state, Request::Use).is_ok(), model.usable(), "{:?}", state);
                prop_assert_eq!(legal(&state, Request::Destroy).is_ok(), !model.released, "{:?}", state);
                prop_assert_eq!(state == State::Destroyed, model.released);
            }
        }

        /// Once over, always over.
        #[test]
        fn nothing_leaves_the_end(events in events()) {
            for event in events {
                prop_assert_eq!(next(&State::Destroyed, event), None);
            }
        }
    }
}
