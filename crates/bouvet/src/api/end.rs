//! How a sandbox ended, also of one that is gone as soon as it has.

use bouvet_host::{EventWatch, Happening, Refusal, Sandbox, State, Stop, Watched};
use futures_util::FutureExt as _;

/// Waits until `sandbox` has stopped, and says how. `events` began before whatever may end it: one that is removed when
/// it stops cannot be asked any more.
pub(super) async fn ended(mut events: EventWatch, sandbox: Sandbox) -> Result<Stop, Refusal> {
    loop {
        let event = match sandbox.state() {
            State::Stopped(stop) => return Ok(stop),
            State::Failed(reason) => return Err(Refusal::Failed(reason)),
            // What it was announced with has come before.
            State::Destroyed => events.next().now_or_never().flatten(),
            _ => events.next().await,
        };
        match event {
            Some(Watched::Event(event)) if event.sandbox == sandbox.id() => match event.happening {
                Happening::Stop(stop) => return Ok(stop),
                Happening::Fail { reason } => return Err(Refusal::Failed(reason)),
                Happening::Destroy => return Err(Refusal::Destroyed),
                _ => {}
            },
            Some(Watched::Event(_)) => {}
            Some(Watched::Missed(_)) | None => return sandbox.wait().await,
        }
    }
}
