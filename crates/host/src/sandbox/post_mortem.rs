//! What a call whose link broke tells its caller: why the VM died says more than that its link did.

use std::time::Duration;

use tokio::sync::watch;

use super::state::{self, Refusal, Request, State};

/// How long such a call waits to learn it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why the sandbox with this state cannot be used any more; `None` if it still can.
pub(crate) async fn reason(mut state: watch::Receiver<State>) -> Option<Refusal> {
    let ended = state.wait_for(|state| !matches!(state, State::Running | State::Paused));
    let ended = tokio::time::timeout(PATIENCE, ended).await.ok()?.ok()?.clone();
    state::legal(&ended, Request::Use).err()
}
