//! What several commands are given alike.

use clap::Args;

use crate::api::client::path;

// What is written of these types, and not of their fields, would become the help of the commands that have them.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Sandboxes: names, ids, or first characters of ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub(super) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Grace {
    /// Seconds before the program is killed [default: the sandbox's, or 10]
    #[arg(short, long, value_name = "SECS")]
    time: Option<u64>,
}

impl Grace {
    /// The path that stops the sandbox `name`, by `signal` if that is given.
    pub(super) fn stop(&self, name: &str, signal: Option<&str>) -> String {
        let seconds = self.time.map(|seconds| seconds.to_string());
        let mut query: Vec<_> = seconds.iter().map(|seconds| ("grace_secs", &seconds[..])).collect();
        query.extend(signal.map(|signal| ("signal", signal)));
        path(&["sandboxes", name, "stop"], &query)
    }
}
