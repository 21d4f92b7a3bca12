//! `bouvet doctor`: whether a server of the environment's configuration can work on this machine, and what to do
//! where it cannot.

mod engines;
mod machine;
mod setup;

use std::io::Write as _;

use anyhow::bail;

pub(crate) use self::setup::examine as examine_setup;
use crate::config::{Config, Unknown};

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// The server works, but less well than it could.
    Warning,
    /// The server does not start, or makes no sandboxes.
    Error,
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) subject: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    /// What to do about it; there is something wherever the level is not [`Level::Ok`].
    pub(crate) advice: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, level: Level::Ok, text: text.into(), advice: None }
    }

    fn warning(subject: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, level: Level::Warning, text: text.into(), advice: Some(advice.into()) }
    }

    fn error(subject: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, level: Level::Error, text: text.into(), advice: Some(advice.into()) }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "ERROR",
        };
        write!(f, "{level:<8} {:<12} {}", self.subject, self.text)?;
        match &self.advice {
            Some(advice) => write!(f, "\n{:22}try: {advice}", ""),
            None => Ok(()),
        }
    }
}

/// Examines everything and prints what it finds. Fails if there is an error among them. `unknown` are variables that are
/// set and not known.
pub(crate) async fn run(config: Config, unknown: &[Unknown]) -> anyhow::Result<()> {
    let (mut levels, mut broken) = (Vec::new(), Vec::new());
    let mut show = |finding: Finding| {
        // One cause is one error: an engine fails too where the directory cannot be used.
        if finding.level == Level::Error && broken.contains(&finding.subject) {
            return;
        }
        // A closed standard output does not stop the examination.
        writeln!(std::io::stdout(), "{finding}").ok();
        levels.push(finding.level);
        if finding.level == Level::Error {
            broken.push(finding.subject);
        }
    };
    setup::examine(&config, unknown).into_iter().for_each(&mut show);
    machine::examine(&config).await.into_iter().for_each(&mut show);
    engines::examine(&config).await.into_iter().for_each(&mut show);
    let count = |level| levels.iter().filter(|found| **found == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    writeln!(std::io::stdout(), "\nchecks: {}, errors: {errors}, warnings: {warnings}", levels.len()).ok();
    match errors {
        0 => Ok(()),
        1 => bail!("the server cannot run with 1 error: see ERROR above"),
        errors => bail!("the server cannot run with {errors} errors: see ERROR above"),
    }
}

/// Prints warnings of variables that are set and not known, where the configuration is invalid: one may be the cause.
pub(crate) fn warn_of_unknown(unknown: &[Unknown]) {
    for finding in setup::misspelled(unknown) {
        // A closed standard output does not stop the examination.
        writeln!(std::io::stdout(), "{finding}").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_to_do_below_what_is_wrong() {
        assert_eq!(Finding::ok("kernel", "there").to_string(), "ok       kernel       there");
        let finding = Finding::error("/dev/kvm", "not there", "modprobe kvm");
        assert_eq!(
            finding.to_string(),
            "ERROR    /dev/kvm     not there\n                      try: modprobe kvm"
        );
    }
}
