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
use crate::calendar;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Follow the output until the program ends
    #[arg(short, long)]
    follow: bool,
    /// Show only this many lines of the end
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Show only output since this time: 10m, 2026-01-31T12:00:00Z, or seconds since 1970
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

impl Line {
    /// Whether the times make sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        time("--since", self.since.as_deref())?;
        time("--until", self.until.as_deref()).map(drop)
    }
}

/// The time that is meant, for the server.
fn time(flag: &str, text: Option<&str>) -> Result<Option<String>, Failed> {
    let Some(text) = text else { return Ok(None) };
    let allowed = "how long ago (10m), a time (2026-01-31T12:00:00Z) and seconds since 1970 are allowed";
    let wrong = || usage::wrong(flag, text, allowed);
    let epoch = |text: &str| {
        let seconds: f64 = text.parse().ok()?;
        let since = std::time::Duration::try_from_secs_f64(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(since)
    };
    let time = match humantime::parse_duration(text) {
        Ok(ago) if epoch(text).is_none() => SystemTime::now().checked_sub(ago).ok_or_else(wrong)?,
        _ => match epoch(text) {
            Some(time) => time,
            None => humantime::parse_rfc3339_weak(text).map_err(|_| wrong())?,
        },
    };
    // RFC 3339 writes no later times.
    let last = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(calendar::LAST_UNIX_SECS);
    if time > last {
        return Err(wrong());
    }
    Ok(Some(calendar::nanos(time)))
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let (follow, timestamps) = (line.follow.to_string(), line.timestamps.to_string());
    let tail = line.tail.map(|lines| lines.to_string());
    let since = time("--since", line.since.as_deref())?;
    let until = time("--until", line.until.as_deref())?;
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
            _ => return Err(Failed::new("the server sent an unknown frame")),
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ages_dates_or_seconds() {
        let of = |text: &str| time("--since", Some(text)).map_err(|failed| failed.text);
        assert_eq!(of("1700000000"), Ok(Some("2023-11-14T22:13:20.000000000Z".into())));
        assert_eq!(of("1700000000.5"), Ok(Some("2023-11-14T22:13:20.500000000Z".into())));
        assert_eq!(of("2026-01-31T12:00:00Z"), Ok(Some("2026-01-31T12:00:00.000000000Z".into())));
        assert!(of("10m").is_ok());
        for wrong in ["soon", "-5", "1e30", ""] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
