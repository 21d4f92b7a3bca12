//! What main programs have printed, and what happens to sandboxes.

use std::time::SystemTime;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bouvet_host::{EventWatch, Host, HostEvent, LogOptions, LogReader, LogRecord, LogStream, Watched};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::frame::{Frame, MAX_DATA_BYTES};
use super::shape::EventView;
use super::{Answered, asked};
use crate::calendar;
use crate::failure::Failure;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    #[serde(default)]
    follow: bool,
    /// Only so many lines of what is there.
    tail: Option<usize>,
    /// Only what was printed after this (RFC 3339).
    since: Option<String>,
    /// Only what was printed until this (RFC 3339).
    until: Option<String>,
    /// Writes the time before each line.
    #[serde(default)]
    timestamps: bool,
    /// What the sidecar has printed.
    #[serde(default)]
    sidecar: bool,
}

/// `GET /v1/sandboxes/{sandbox}/logs`: frames of output.
pub(super) async fn logs(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Answered {
    let LogQuery { follow, tail, since, until, timestamps, sidecar } = asked(query)?;
    let (since, until) = (time("since", since)?, time("until", until)?);
    let options = LogOptions { follow, tail_lines: tail, since };
    let sandbox = host.find(&name)?;
    let reader = if sidecar { sandbox.sidecar_logs(options) } else { sandbox.logs(options) };
    let stamps = timestamps.then(Stamps::default);
    let frames = stream::unfold(
        (reader, stamps, Vec::new(), until),
        async |(mut reader, mut stamps, mut waiting, until)| {
            let bytes = next(&mut reader, until, &mut stamps, &mut waiting).await?;
            Some((Ok::<_, std::convert::Infallible>(bytes), (reader, stamps, waiting, until)))
        },
    );
    Ok(framed(Body::from_stream(frames)))
}

/// A time of a query.
fn time(field: &str, text: Option<String>) -> Result<Option<SystemTime>, Failure> {
    let wrong = |text: &str| {
        let text = text.escape_debug();
        Failure::argument(format!("`{field}` is `{text}`; a time as 2026-01-31T12:00:00Z is allowed"))
    };
    text.map(|text| humantime::parse_rfc3339_weak(&text).map_err(|_| wrong(&text))).transpose()
}

async fn next(
    reader: &mut LogReader,
    until: Option<SystemTime>,
    stamps: &mut Option<Stamps>,
    waiting: &mut Vec<Frame>,
) -> Option<Bytes> {
    while waiting.is_empty() {
        let mut record = reader.next().await?;
        if until.is_some_and(|until| record.time > until) {
            return None;
        }
        if let Some(stamps) = stamps {
            record.data = stamps.stamp(&record);
        }
        waiting.extend(frames(&record));
        waiting.reverse();
    }
    waiting.pop().map(|frame| frame.encode())
}

/// An answer that is a sequence of frames.
pub(super) fn framed(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/vnd.bouvet.frames")], body).into_response()
}

/// `record` in pieces that fit.
pub(super) fn frames(record: &LogRecord) -> Vec<Frame> {
    let (stream, mut data) = (record.stream, record.data.clone());
    let mut frames = Vec::new();
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(MAX_DATA_BYTES));
        frames.push(match stream {
            LogStream::Stdout => Frame::Stdout(piece),
            LogStream::Stderr => Frame::Stderr(piece),
        });
    }
    frames
}

/// Writes times before lines, which records do not respect.
#[derive(Debug, Default)]
struct Stamps {
    /// Whether standard output and errors are within a line.
    within: [bool; 2],
}

impl Stamps {
    fn stamp(&mut self, record: &LogRecord) -> Bytes {
        let within = &mut self.within[usize::from(record.stream == LogStream::Stderr)];
        let stamp = calendar::nanos(record.time);
        let mut stamped = BytesMut::with_capacity(record.data.len() + stamp.len() + 1);
        for line in record.data.split_inclusive(|byte| *byte == b'\n') {
            if !*within {
                stamped.extend_from_slice(stamp.as_bytes());
                stamped.extend_from_slice(b" ");
            }
            stamped.extend_from_slice(line);
            *within = line.last() != Some(&b'\n');
        }
        stamped.freeze()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Past events since this time first (RFC 3339).
    since: Option<String>,
    /// Ends at this time (RFC 3339).
    until: Option<String>,
}

/// `GET /v1/events?since=…&until=…`: what happens, a JSON object in each line.
pub(super) async fn events(
    State(host): State<Host>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Answered {
    let EventQuery { since, until } = asked(query)?;
    let (since, until) = (time("since", since)?, time("until", until)?);
    let watch = since.map_or_else(|| host.events(), |since| host.events_since(since));
    let lines = stream::unfold((watch, until), async |(mut events, until): (EventWatch, _)| {
        let view = event(next_event(&mut events, until).await?);
        let mut line = serde_json::to_string(&view).unwrap_or_default();
        line.push('\n');
        Some((Ok::<_, std::convert::Infallible>(line), (events, until)))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// The next event; `None` at the end of the host, and after the time `until`.
async fn next_event(events: &mut EventWatch, until: Option<SystemTime>) -> Option<Watched> {
    let Some(until) = until else { return events.next().await };
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    let watched = tokio::select! {
        // Past events are there at once.
        biased;
        watched = events.next() => watched?,
        () = tokio::time::sleep(left) => return None,
    };
    match &watched {
        Watched::Event(event) if event.time > until => None,
        _ => Some(watched),
    }
}

fn event(watched: Watched) -> EventView {
    let object = |value| match value {
        Value::Object(what) => what,
        _ => serde_json::Map::new(),
    };
    match watched {
        Watched::Event(HostEvent { time, sandbox, happening }) => EventView {
            time: calendar::millis(time),
            sandbox: sandbox.to_string(),
            what: object(serde_json::to_value(happening).unwrap_or_default()),
        },
        Watched::Missed(count) => EventView {
            time: calendar::millis(SystemTime::now()),
            sandbox: String::new(),
            what: object(json!({ "event": "missed", "count": count })),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use bouvet_host::Happening;

    use super::*;

    fn record(stream: LogStream, text: &'static str) -> LogRecord {
        LogRecord { time: UNIX_EPOCH + Duration::from_secs(1), stream, data: Bytes::from(text) }
    }

    #[test]
    fn every_line_has_its_time_however_it_was_printed() {
        let mut stamps = Stamps::default();
        let mut text = String::new();
        for (stream, data) in [
            (LogStream::Stdout, "a\nb"),
            (LogStream::Stderr, "E"),
            (LogStream::Stdout, "b\n"),
            (LogStream::Stderr, "E\n"),
        ] {
            text.push_str(std::str::from_utf8(&stamps.stamp(&record(stream, data))).unwrap());
        }
        let time = "1970-01-01T00:00:01.000000000Z";
        assert_eq!(text, format!("{time} a\n{time} b{time} Eb\nE\n"));
    }

    #[test]
    fn long_records_are_sent_in_pieces() {
        let long = LogRecord { data: vec![b'x'; MAX_DATA_BYTES + 1].into(), ..record(LogStream::Stderr, "") };
        let frames = frames(&long);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[1], Frame::Stderr(Bytes::from("x")));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let stop = bouvet_host::Stop { exit_code: 3, out_of_memory: false };
        let happening = serde_json::to_value(Happening::Stop(stop)).unwrap();
        assert_eq!(happening["event"], "stop");
        assert_eq!(happening["exit_code"], 3);
        let missed = serde_json::to_value(event(Watched::Missed(2))).unwrap();
        assert_eq!((&missed["event"], &missed["count"]), (&json!("missed"), &json!(2)));
    }
}
