//! Arguments that several commands share.

use clap::Args;

use crate::api::client::path;

// Documentation of these types would become the help of the commands that have them.
#[derive(Debug, Args)]
pub(crate) struct SandboxNames {
    /// Sandboxes: names, ids, or first characters of ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub(super) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Seconds before the program is killed [default: the sandbox's, or 10]
    #[arg(short = 't', long = "timeout", alias = "time", value_name = "SECS")]
    grace_secs: Option<u64>,
    /// Signal that asks the program to end, instead of the image's
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
}

impl StopArgs {
    /// The path that stops the sandbox `name`.
    pub(super) fn path(&self, name: &str) -> String {
        let seconds = self.grace_secs.map(|seconds| seconds.to_string());
        let mut query: Vec<_> = seconds.iter().map(|seconds| ("grace_secs", &seconds[..])).collect();
        query.extend(self.signal.iter().map(|signal| ("signal", &signal[..])));
        path(&["sandboxes", name, "stop"], &query)
    }
}
