//! `bouvet exec`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::session::{self, Terms};
use super::signals::Signals;
use super::{terminal, usage};
use crate::api::client::path;
use crate::api::frame::Frame;
use crate::api::shape::ExecView;

#[derive(Debug, Args)]
#[command(after_help = "Options end at SANDBOX: what follows belongs to the program.")]
pub(crate) struct Line {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal for the program
    #[arg(short, long)]
    tty: bool,
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Set an environment variable; without a value, pass on the one of this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one per line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// User (and group) that the program runs as
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "USER[:GROUP]")]
    user: String,
    /// Working directory of the program
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "DIR")]
    workdir: String,
    /// Kill the program after this many seconds; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECS", value_parser = usage::number::<u64>)]
    timeout: u64,
    // One argument, as options end at the sandbox: what follows belongs to the program.
    /// Sandbox (its name, its id, or the first characters of its id), then program and arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["SANDBOX", "CMD"])]
    words: Vec<String>,
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
    // Both are there: `num_args` has it.
    let [sandbox, command @ ..] = &line.words[..] else {
        return Err(Failed::new("a sandbox must be named"));
    };
    let terms = Terms {
        input: line.interactive && !line.detach,
        closed: !line.interactive,
        terminal: line.tty && !line.detach,
        detachable: false,
        kills: true,
    };
    terms.check()?;
    let environment = |name: &str| std::env::var_os(name)?.into_string().ok();
    let mut variables = Vec::new();
    for file in &line.env_file {
        variables.extend(super::run::env_file(file, &environment)?);
    }
    variables.extend(line.env.iter().filter_map(|text| super::run::variable(text, &environment)));
    let wanted = ExecView {
        env: variables.into_iter().collect(),
        command: command.to_vec(),
        user: line.user,
        working_dir: line.workdir,
        terminal: line.tty.then(|| terminal::size().unwrap_or((24, 80))),
        timeout_secs: line.timeout,
        detach: line.detach,
    };
    let start = serde_json::to_vec(&wanted).map_err(Failed::new)?;
    let path = path(&["sandboxes", sandbox, "exec"], &[]);
    if line.detach {
        let frame = Frame::Start(start.into());
        connection.client.frames(Method::POST, &path, futures_util::stream::iter([frame])).await?;
        return Ok(0);
    }
    let call = session::Call { path, start: Some(start.into()), notice: None };
    let ended = session::run(&connection.client, call, terms, signals).await?;
    Ok(ended.code())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Debug, Parser)]
    struct Test {
        #[command(flatten)]
        line: Line,
    }

    #[test]
    fn words_after_sandbox_belong_to_program() {
        let of = |words: &str| {
            let line = Test::try_parse_from(["exec"].into_iter().chain(words.split(' ')));
            line.map(|test| test.line.words.join(" ")).map_err(|error| error.kind())
        };
        for (words, kept) in [
            ("q -e A=1 env", "q -e A=1 env"),
            ("q --help", "q --help"),
            ("q -it sh", "q -it sh"),
            ("q -- ls", "q -- ls"),
            ("q ls -- -l", "q ls -- -l"),
            ("-it -e A=1 -- q ls -l", "q ls -l"),
        ] {
            assert_eq!(of(words), Ok(kept.to_owned()), "{words}");
        }
        assert_eq!(of("--help"), Err(ErrorKind::DisplayHelp));
        assert_eq!(of("--no-such q ls"), Err(ErrorKind::UnknownArgument));
        assert_eq!(of("q"), Err(ErrorKind::TooFewValues));
        assert_eq!(of("-i"), Err(ErrorKind::MissingRequiredArgument));
    }
}
