//! `bouvet events`.

mod filter;

use std::time::SystemTime;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use self::filter::{EventFilter, Known};
use super::outcome::{Connection, Failed};
use super::template::Template;
use super::{ps, table, usage};
use crate::api::client::{NOTHING, path};
use crate::api::shape::{EventView, SandboxView};

#[derive(Debug, Args)]
#[command(
    after_help = "The server keeps its last 1024 events, for --since. A filter by name, image or label fits events of \
    sandboxes that exist.\n\nA template has the fields of the JSON, and docker's: `{{.Type}}`, `{{.Action}}`, \
    `{{.Actor.ID}}`, `{{.Actor.Attributes.name}}`, `{{.Actor.Attributes.image}}`, `{{.Actor.Attributes.exitCode}}`, \
    `{{.Time}}`."
)]
pub(crate) struct Line {
    /// Also show past events since this time: 10m, 2026-01-31T12:00:00Z, or seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End at this time, written as for --since
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show only matching events, by event, container (or sandbox), image, label or type (may be repeated)
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Go template for each event, or `json`
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print JSON, one object per line
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        EventFilter::all(&self.filter)?;
        self.template()?;
        usage::time_for_server("--since", self.since.as_deref())?;
        usage::time_for_server("--until", self.until.as_deref()).map(drop)
    }

    fn template(&self) -> Result<Option<Template>, Failed> {
        // As docker has it.
        let format =
            self.format.as_deref().map(|format| if format == "json" { "{{json .}}" } else { format });
        format.map(Template::parse).transpose()
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let (filters, template) = (EventFilter::all(&line.filter)?, line.template()?);
    let since = usage::time_for_server("--since", line.since.as_deref())?;
    let until = usage::time_for_server("--until", line.until.as_deref())?;
    let mut query = Vec::new();
    query.extend(since.as_deref().map(|since| ("since", since)));
    query.extend(until.as_deref().map(|until| ("until", until)));
    let path = path(&["events"], &query);
    let mut events = connection.client.lines::<EventView>(Method::GET, &path, NOTHING).await?;
    let looks = template.is_some() || filters.iter().any(EventFilter::needs_sandbox);
    let mut known = match looks {
        true => Known::new(&connection.client).await?,
        false => Known::default(),
    };
    while let Some(event) = events.next().await? {
        let sandbox = if looks { known.of(&event, &connection.client).await } else { None };
        if !filter::fits(&filters, &event, sandbox.as_ref()) {
            continue;
        }
        match &template {
            Some(template) => table::line(&template.render(&fields(&event, sandbox.as_ref())?)?)?,
            None if line.json => table::line(&serde_json::to_string(&event).map_err(Failed::new)?)?,
            None => table::line(&words(&event))?,
        }
    }
    Ok(0)
}

/// Our own fields of an event, and docker's.
fn fields(event: &EventView, sandbox: Option<&SandboxView>) -> Result<Value, Failed> {
    let time = humantime::parse_rfc3339(&event.time).unwrap_or(SystemTime::UNIX_EPOCH);
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let code = event.what.get("exit_code").map(ToString::to_string).unwrap_or_default();
    let image = sandbox.map(ps::image).unwrap_or_default();
    let docker = json!({
        "Type": "container",
        "Action": action(event),
        "ID": event.sandbox,
        "From": image,
        "Actor": {
            "ID": event.sandbox,
            "Attributes": {
                "name": sandbox.map(|view| view.name.as_str()).unwrap_or_default(),
                "image": image,
                "exitCode": code,
            },
        },
        "Time": seconds,
    });
    Ok(super::inspect::merged(serde_json::to_value(event).map_err(Failed::new)?, docker))
}

/// What happened.
fn action(event: &EventView) -> &str {
    event.what.get("event").and_then(Value::as_str).unwrap_or("event")
}

fn words(event: &EventView) -> String {
    let rest = event.what.iter().filter(|(name, _)| *name != "event");
    let rest: Vec<_> = rest.map(|(name, value)| format!("{name}={value}")).collect();
    let text = format!("{} {} {} {}", event.time, event.sandbox, action(event), rest.join(" "));
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

    #[test]
    fn events_have_dockers_fields() {
        let json = r#"{"time":"1970-01-01T00:00:07Z","sandbox":"s","event":"stop","exit_code":3}"#;
        let event: EventView = serde_json::from_str(json).unwrap();
        let view = SandboxView { name: "web".into(), ..SandboxView::default() };
        let template = "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}} {{.Time}} {{.From}} {{.sandbox}}";
        let filled =
            Template::parse(template).unwrap().render(&fields(&event, Some(&view)).unwrap()).unwrap();
        assert_eq!(filled, "container stop web 3 7 base s");
    }
}
