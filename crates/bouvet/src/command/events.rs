//! `bouvet events`.

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::{NOTHING, path};
use crate::api::shape::EventView;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let path = path(&["events"], &[]);
    let mut events = connection.client.lines::<EventView>(Method::GET, &path, NOTHING).await?;
    while let Some(event) = events.next().await? {
        match line.json {
            true => table::line(&serde_json::to_string(&event).map_err(Failed::new)?)?,
            false => table::line(&words(&event))?,
        }
    }
    Ok(0)
}

fn words(event: &EventView) -> String {
    let what = event.what.get("event").and_then(Value::as_str).unwrap_or("event");
    let rest = event.what.iter().filter(|(name, _)| *name != "event");
    let rest: Vec<_> = rest.map(|(name, value)| format!("{name}={value}")).collect();
    let text = format!("{} {} {what} {}", event.time, event.sandbox, rest.join(" "));
    table::plain(text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let json = r#"{"time":"T","sandbox":"s","event":"stop","exit_code":3,"out_of_memory":false}"#;
        let event: EventView = serde_json::from_str(json).unwrap();
        assert_eq!(words(&event), "T s stop exit_code=3 out_of_memory=false");
        assert_eq!(words(&EventView { what: Default::default(), ..event }), "T s event");
    }
}
