//! `bouvet top`.

use clap::Args;
use futures_util::stream;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::session::print;
use crate::api::client::path;
use crate::api::frame::Frame;
use crate::api::shape::{ExecView, ExitView, FailureView};

/// Time limit of `ps` in the sandbox.
const TIMEOUT_SECS: u64 = 60;

#[derive(Debug, Args)]
#[command(
    override_usage = "bouvet top <SANDBOX> [OPTION]...",
    after_help = "The sandbox's own `ps` is run: other options than its own are not known, and an image without \
    `ps` has no `top`."
)]
pub(crate) struct Line {
    // One argument: what follows the sandbox belongs to `ps`.
    /// Sandbox (its name, its id, or the first characters of its id), then options of `ps` [default: -ef]
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["SANDBOX", "OPTION"])]
    words: Vec<String>,
}

/// Options of `ps` where none are given.
const ALL_PROCESSES: &str = "-ef";

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
}

pub(super) async fn run(line: Line, connection: &Connection) -> Result<u8, Failed> {
    let (sandbox, options) =
        line.words.split_first().ok_or_else(|| Failed::new("a sandbox must be named"))?;
    let options = if options.is_empty() { vec![ALL_PROCESSES.to_owned()] } else { options.to_vec() };
    let command = std::iter::once("ps".to_owned()).chain(options).collect();
    // It sees all processes, whoever the sandbox's programs run as.
    let wanted = ExecView { command, timeout_secs: TIMEOUT_SECS, user: "0".into(), ..ExecView::default() };
    let start = Frame::Start(serde_json::to_vec(&wanted).map_err(Failed::new)?.into());
    let path = path(&["sandboxes", sandbox, "exec"], &[]);
    let frames = stream::iter([start, Frame::CloseStdin]);
    let started = connection.client.frames(Method::POST, &path, frames).await.map_err(Failed::from);
    let mut frames = started.map_err(without_ps)?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(frame) = frames.next().await? {
        match frame {
            Frame::Stdout(data) => print(&mut stdout, &data).await?,
            Frame::Stderr(data) => print(&mut stderr, &data).await?,
            Frame::Exit(json) => {
                let exit: ExitView = serde_json::from_slice(&json).map_err(Failed::new)?;
                return Ok(u8::try_from(exit.exit_code).unwrap_or(1));
            }
            Frame::Error(json) => {
                let failure: FailureView = serde_json::from_slice(&json).map_err(Failed::new)?;
                return Err(without_ps(failure.into()));
            }
            _ => {}
        }
    }
    Err(Failed::new("the server closed the connection before `ps` ended"))
}

fn without_ps(failed: Failed) -> Failed {
    match failed.code {
        127 => Failed::new("the sandbox's image has no `ps`")
            .hint("`bouvet stats` shows how many processes there are"),
        _ => failed,
    }
}
