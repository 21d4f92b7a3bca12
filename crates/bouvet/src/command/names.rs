//! Arguments that several commands share.

use clap::Args;

use super::usage;
use crate::api::MAX_GRACE_SECS;
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
    /// Seconds before the program is killed; -1 for the longest time, a day [default: the sandbox's, or 10]
    #[arg(short = 't', long = "timeout", alias = "time", value_name = "SECS", value_parser = grace,
        allow_negative_numbers = true)]
    grace_secs: Option<u64>,
    /// Signal that asks the program to end, instead of the image's
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
}

/// Reads a grace period: a negative one is docker's way to wait without limit.
fn grace(text: &str) -> Result<u64, String> {
    match text.parse::<i64>() {
        Ok(seconds) => Ok(u64::try_from(seconds).unwrap_or(MAX_GRACE_SECS)),
        Err(_) => usage::number(text),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_periods_are_seconds_or_longest() {
        assert_eq!((grace("0"), grace("90000")), (Ok(0), Ok(90_000)));
        assert_eq!((grace("-1"), grace("-7")), (Ok(MAX_GRACE_SECS), Ok(MAX_GRACE_SECS)));
        assert_eq!(grace("abc"), Err("a whole number is allowed".into()));
    }
}
