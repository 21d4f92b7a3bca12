//! What several commands are given alike.

use clap::Args;

use crate::api::STOP_GRACE_SECS;

// What is written of these types, and not of their fields, would become the help of the commands that have them.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The sandboxes: their names, ids, or the beginnings of their ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub(super) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Grace {
    /// Seconds that the program has to end before it is killed
    #[arg(short, long, default_value_t = STOP_GRACE_SECS, value_name = "SECS")]
    pub(super) time: u64,
}
