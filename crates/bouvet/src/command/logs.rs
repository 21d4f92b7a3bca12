//! `bouvet logs`.

use clap::Args;
use futures_util::stream;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::session::print;
use super::usage;
use crate::api::client::path;
use crate::api::frame::Frame;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Follow the output until the program ends
    #[arg(short, long)]
    follow: bool,
    /// Show only this many lines of the end; `all` or a negative number for all
    #[arg(short = 'n', long, value_name = "LINES", value_parser = tail, allow_negative_numbers = true)]
    tail: Option<Tail>,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Show only output since this time: 10m, 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show only output until this time, written as for --since
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show details: accepted for compatibility, there are none
    #[arg(long)]
    details: bool,
    /// Show the output of the sidecar
    #[arg(long)]
    sidecar: bool,
    /// Sandbox: its name, its id, or the first characters of its id
    sandbox: String,
}

/// Lines of the end; `None` for all of them.
type Tail = Option<usize>;

fn tail(text: &str) -> Result<Tail, String> {
    match (text, text.parse::<i64>()) {
        ("all", _) | (_, Ok(..0)) => Ok(None),
        _ => usage::number(text).map(Some).map_err(|allowed| format!("`all`, or {allowed}")),
    }
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Whether the times make sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        usage::time_for_server("--since", self.since.as_deref())?;
        usage::time_for_server("--until", self.until.as_deref()).map(drop)
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let (follow, timestamps) = (line.follow.to_string(), line.timestamps.to_string());
    let tail = line.tail.flatten().map(|lines| lines.to_string());
    let since = usage::time_for_server("--since", line.since.as_deref())?;
    let until = usage::time_for_server("--until", line.until.as_deref())?;
    let sidecar = line.sidecar.to_string();
    let mut query = vec![("follow", follow.as_str()), ("timestamps", &timestamps), ("sidecar", &sidecar)];
    query.extend(tail.as_deref().map(|tail| ("tail", tail)));
    query.extend(since.as_deref().map(|since| ("since", since)));
    query.extend(until.as_deref().map(|until| ("until", until)));
    let path = path(&["sandboxes", &line.sandbox, "logs"], &query);
    let mut frames = connection.client.frames(Method::GET, &path, stream::empty()).await?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(frame) = frames.next().await? {
        match frame {
            Frame::Stdout(data) => print(&mut stdout, &data).await?,
            Frame::Stderr(data) => print(&mut stderr, &data).await?,
            _ => return Err(Failed::new("unexpected frame from the server")),
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_a_number_or_all() {
        assert_eq!((tail("0"), tail("7")), (Ok(Some(0)), Ok(Some(7))));
        assert_eq!((tail("all"), tail("-1"), tail("-9")), (Ok(None), Ok(None), Ok(None)));
        assert_eq!(tail("some"), Err("`all`, or a whole number is allowed".into()));
    }
}
