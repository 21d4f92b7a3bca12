//! `bouvet exec`.

use clap::Args;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::session::{self, Terms};
use super::signals::Signals;
use super::terminal;
use crate::api::client::path;
use crate::api::frame::Frame;
use crate::api::shape::ExecView;

#[derive(Debug, Args)]
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
    #[arg(short, long, default_value = "", value_name = "USER[:GROUP]")]
    user: String,
    /// Working directory of the program
    #[arg(short, long, default_value = "", value_name = "DIR")]
    workdir: String,
    /// Kill the program after this many seconds; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECS")]
    timeout: u64,
    /// Sandbox: its name, its id, or the first characters of its id
    sandbox: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) async fn run(line: Line, connection: &Connection, signals: &mut Signals) -> Result<u8, Failed> {
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
        command: line.command,
        user: line.user,
        working_dir: line.workdir,
        terminal: line.tty.then(|| terminal::size().unwrap_or((24, 80))),
        timeout_secs: line.timeout,
        detach: line.detach,
    };
    let start = serde_json::to_vec(&wanted).map_err(Failed::new)?;
    let path = path(&["sandboxes", &line.sandbox, "exec"], &[]);
    if line.detach {
        let frame = Frame::Start(start.into());
        connection.client.frames(Method::POST, &path, futures_util::stream::iter([frame])).await?;
        return Ok(0);
    }
    let call = session::Call { path, start: Some(start.into()), notice: None };
    let ended = session::run(&connection.client, call, terms, signals).await?;
    Ok(ended.code())
}
