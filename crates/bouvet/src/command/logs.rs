//! `bouvet logs`.

use std::time::SystemTime;

use clap::Args;
use futures_util::stream;
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::session::print;
use super::usage;
use crate::api::client::path;
use crate::api::frame::Frame;

/// What is typed after `bouvet logs`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Go on until its program has ended
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines of what is there
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// The time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Only what was printed since then: 10m, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// What its sidecar has printed
    #[arg(long)]
    sidecar: bool,
    /// The sandbox: its name, its id, or the beginning of its id
    sandbox: String,
}

impl Line {
    /// The time that is meant, for the server.
    pub(super) fn since(&self) -> Result<Option<String>, Failed> {
        let Some(text) = &self.since else { return Ok(None) };
        let allowed = "how long ago (10m), or a time (2026-01-31T12:00:00Z), is allowed";
        let wrong = || usage::wrong("--since", text, allowed);
        let time = match humantime::parse_duration(text) {
            Ok(ago) => SystemTime::now().checked_sub(ago).ok_or_else(wrong)?,
            Err(_) => humantime::parse_rfc3339_weak(text).map_err(|_| wrong())?,
        };
        Ok(Some(humantime::format_rfc3339_nanos(time).to_string()))
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let (follow, timestamps) = (line.follow.to_string(), line.timestamps.to_string());
    let (tail, since) = (line.tail.map(|lines| lines.to_string()), line.since()?);
    let sidecar = line.sidecar.to_string();
    let mut query = vec![("follow", follow.as_str()), ("timestamps", &timestamps), ("sidecar", &sidecar)];
    query.extend(tail.as_deref().map(|tail| ("tail", tail)));
    query.extend(since.as_deref().map(|since| ("since", since)));
    let path = path(&["sandboxes", &line.sandbox, "logs"], &query);
    let mut frames = connection.client.frames(Method::GET, &path, stream::empty()).await?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(frame) = frames.next().await? {
        match frame {
            Frame::Stdout(data) => print(&mut stdout, &data).await?,
            Frame::Stderr(data) => print(&mut stderr, &data).await?,
            _ => return Err(Failed::new("the server sent what is none of its frames")),
        }
    }
    Ok(0)
}
