//! How commands end, and what they speak to.

use std::fmt::Display;
use std::io;

use bouvet_host::chain;

use super::without_server::WithoutServer;
use crate::advice;
use crate::api::Alone;
use crate::api::client::{CallError, Client, ConnectError};
use crate::api::shape::FailureView;
use crate::bounded::bounded;
use crate::config::Config;
use crate::failure::Kind;

/// The exit code of a failure of ours, as `docker` has it: programs' own codes pass through.
pub(crate) const OURS: u8 = 125;
/// The exit codes of a program that cannot be run, as shells have them.
const NOT_EXECUTABLE: u8 = 126;
const NO_PROGRAM: u8 = 127;
/// What a shell says of a program that wrote where nobody reads.
const BROKEN_PIPE: u8 = 128 + 13;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The exit code.
    pub(crate) code: u8,
    /// What could not be done; empty where that is no news.
    pub(crate) text: String,
    /// What to do about it; may be empty.
    pub(crate) hint: String,
}

impl Failed {
    /// A failure with these words.
    pub(crate) fn new(text: impl Display) -> Self {
        Self { code: OURS, text: text.to_string(), hint: String::new() }
    }

    /// The same with advice.
    pub(crate) fn hint(self, hint: impl Display) -> Self {
        Self { hint: hint.to_string(), ..self }
    }

    /// A notice, not a failure of the command: nothing had to be done.
    pub(super) fn not_needed(text: impl Display) -> Self {
        Self { code: 0, ..Self::new(text) }
    }

    /// The same, with the name of the sandbox as it was typed: the server's facts call it "the sandbox".
    pub(super) fn of_sandbox(mut self, name: &str) -> Self {
        match self.text.strip_prefix("the sandbox ") {
            Some(rest) if !rest.starts_with('`') => {
                self.text = format!("the sandbox `{}` {rest}", name.escape_debug());
                self
            }
            _ => self,
        }
    }

    /// As it is shown.
    pub(crate) fn words(&self) -> String {
        match self.hint.as_str() {
            "" => bounded(&self.text),
            hint => format!("{}\n  try: {}", bounded(&self.text), bounded(hint)),
        }
    }
}

impl From<FailureView> for Failed {
    fn from(failure: FailureView) -> Self {
        let code = match failure.kind.as_str() {
            "no_program" => NO_PROGRAM,
            // Also one whose directory or user is missing.
            "not_executable" | "not_started" => NOT_EXECUTABLE,
            _ => OURS,
        };
        Self { code, text: failure.error, hint: failure.hint }
    }
}

/// A failure of what only a running sandbox has: starting a stopped one is no remedy.
pub(super) fn without_start(error: CallError) -> Failed {
    match error {
        CallError::Refused(failure) if failure.kind == Kind::Stopped.name() => {
            Failed { hint: String::new(), ..failure.into() }
        }
        error => error.into(),
    }
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(failure) => failure.into(),
            CallError::Connect(..) => Self::new(chain(&error))
                .hint("run this as root or as a member of the group `bouvet`, or set BOUVET_SOCKET"),
            CallError::Silent(_) => Self::new(&error).hint(
                "if a shell stopped the server (`jobs` lists it as Stopped), `fg` or `bg` continues it",
            ),
            error => Self::new(chain(&error)),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { code: BROKEN_PIPE, text: String::new(), hint: String::new() },
            _ => Self::new(error),
        }
    }
}

/// What a command speaks to: a server, or a host in its own process.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    alone: Option<Alone>,
}

impl Connection {
    /// Finds a server, or starts a host where `rule` allows it.
    pub(super) async fn open(config: Config, rule: WithoutServer) -> Result<Self, Failed> {
        let missing = match Client::connect(&config.socket).await {
            Ok(client) => return Ok(Self { client, alone: None }),
            Err(ConnectError::Call(error)) => return Err(error.into()),
            Err(ConnectError::NoServer(missing)) if rule == WithoutServer::Fails => {
                return Err(Failed::new(missing));
            }
            Err(ConnectError::NoServer(missing)) => missing,
        };
        let (alone, stream) = Alone::start(config.host).await.map_err(|error| match rule {
            WithoutServer::WorksForStopped => {
                let text =
                    format!("{missing}\n  stopped sandboxes cannot be used without it: {}", chain(&error));
                Failed::new(text).hint(advice::of_start(&error))
            }
            _ => Failed::new(chain(&error)).hint(advice::of_start(&error)),
        })?;
        match Client::over(stream).await {
            Ok(client) => Ok(Self { client: client.alone(missing), alone: Some(alone) }),
            Err(error) => {
                alone.end().await;
                Err(error.into())
            }
        }
    }

    /// Whether everything ends with this command.
    pub(super) fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// Refuses `what` where no server answers.
    pub(super) fn needs_server(&self, what: &str) -> Result<(), Failed> {
        match self.client.no_server() {
            Some(missing) => Err(Failed::new(format!("{what} needs a server: {missing}"))),
            None => Ok(()),
        }
    }

    pub(super) async fn close(self) {
        if let Some(alone) = self.alone {
            alone.end().await;
        }
    }

    /// Does the same to each of `names`, and prints those for which it worked. A failure of one does not stop the
    /// others. The exit code is the highest of all.
    pub(super) async fn each(
        &self,
        names: &[String],
        act: impl AsyncFn(&Client, &str) -> Result<(), Failed>,
    ) -> Result<u8, Failed> {
        let mut code = 0;
        for name in names {
            match act(&self.client, name).await {
                Ok(()) => super::table::line(name)?,
                Err(failed) => {
                    let failed = failed.of_sandbox(name);
                    super::table::complain(&failed);
                    code = code.max(failed.code);
                }
            }
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_cannot_run_have_the_codes_of_shells() {
        let code = |kind: &str| {
            let failure = FailureView { error: "e".into(), kind: kind.into(), hint: "h".into() };
            Failed::from(failure).code
        };
        assert_eq!((code("no_program"), code("not_executable"), code("paused")), (127, 126, 125));
        assert_eq!(code("not_started"), 126);
        assert_eq!(Failed::new("e").hint("h").words(), "e\n  try: h");
        let long = Failed::new("n".repeat(100_000)).words();
        assert!(long.len() < 1000 && long.contains("bytes left out"), "{long}");
        let pipe = Failed::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((pipe.code, pipe.text.as_str()), (141, ""));
    }

    #[test]
    fn state_errors_name_the_sandbox_as_typed() {
        let of = |text: &str| Failed::new(text).of_sandbox("q").text;
        assert_eq!(of("the sandbox is running"), "the sandbox `q` is running");
        assert_eq!(of("the sandbox `other` is new"), "the sandbox `other` is new");
        assert_eq!(of("there is no sandbox `q`"), "there is no sandbox `q`");
        assert_eq!(of("the sandbox's image has no `ps`"), "the sandbox's image has no `ps`");
    }

    #[test]
    fn stopped_sandboxes_need_no_start_to_end() {
        let of = |kind: Kind| {
            let failure = FailureView { error: "e".into(), kind: kind.name().into(), hint: "h".into() };
            without_start(CallError::Refused(failure)).hint
        };
        assert_eq!((of(Kind::Stopped), of(Kind::Paused)), (String::new(), "h".into()));
    }
}
