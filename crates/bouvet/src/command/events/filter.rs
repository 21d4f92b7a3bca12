//! Which events are shown.

use std::collections::HashMap;

use super::action;
use crate::api::client::{CallError, Client, path};
use crate::api::shape::{EventView, SandboxView};
use crate::command::filter::{Label, is_like};
use crate::command::outcome::Failed;
use crate::command::{ps, usage};

/// What happens to a sandbox, by our words and docker's.
const ACTIONS: &[(&str, &[&str])] = &[
    ("create", &["create"]),
    ("start", &["start"]),
    ("pause", &["pause"]),
    ("resume", &["resume"]),
    ("unpause", &["resume"]),
    ("stop", &["stop"]),
    ("die", &["stop", "fail"]),
    ("fail", &["fail"]),
    ("destroy", &["destroy"]),
];

/// A condition of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EventFilter {
    Action(&'static [&'static str]),
    /// A name, an id or its first digits.
    Sandbox(String),
    Image(String),
    Label(Label),
    /// Every event is one of a sandbox.
    Type,
}

impl EventFilter {
    pub(super) fn all(texts: &[String]) -> Result<Vec<Self>, Failed> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<Self, Failed> {
        let wrong = |allowed: &str| usage::wrong("--filter", text, allowed);
        let names = "event, container (or sandbox), image, label and type, each as NAME=VALUE, are allowed";
        let (field, value) = text.split_once('=').ok_or_else(|| wrong(names))?;
        Ok(match field {
            "event" => {
                let all: Vec<_> = ACTIONS.iter().map(|(name, _)| *name).collect();
                let found = ACTIONS.iter().find(|(name, _)| *name == value);
                let allowed = || wrong(&format!("the events {} are known", all.join(", ")));
                Self::Action(found.map(|(_, actions)| *actions).ok_or_else(allowed)?)
            }
            "container" | "sandbox" => Self::Sandbox(value.to_owned()),
            "image" => Self::Image(value.to_owned()),
            "label" => Self::Label(Label::parse(value)),
            "type" if matches!(value, "container" | "sandbox") => Self::Type,
            "type" => return Err(wrong("there are events of the type `container` (or `sandbox`) only")),
            _ => return Err(wrong(names)),
        })
    }

    /// Whether the sandbox must be looked up.
    pub(super) fn needs_sandbox(&self) -> bool {
        matches!(self, Self::Sandbox(_) | Self::Image(_) | Self::Label(_))
    }

    fn takes(&self, event: &EventView, sandbox: Option<&SandboxView>) -> bool {
        match self {
            Self::Action(actions) => actions.contains(&action(event)),
            Self::Sandbox(name) => {
                let is_id = !name.is_empty() && event.sandbox.starts_with(name.as_str());
                is_id || sandbox.is_some_and(|view| view.name == *name)
            }
            Self::Image(pattern) => sandbox.is_some_and(|view| is_like(pattern, ps::image(view))),
            Self::Label(label) => sandbox.is_some_and(|view| label.is_in(&view.labels)),
            Self::Type => true,
        }
    }
}

/// Whether an event is shown: as docker has it, conditions of one kind are alternatives, but every label must be there.
/// A count of missed events is always shown.
pub(super) fn fits(filters: &[EventFilter], event: &EventView, sandbox: Option<&SandboxView>) -> bool {
    let is_alike =
        |one: &EventFilter, other: &EventFilter| std::mem::discriminant(one) == std::mem::discriminant(other);
    event.sandbox.is_empty()
        || filters.iter().all(|filter| match filter {
            EventFilter::Label(_) => filter.takes(event, sandbox),
            _ => filters.iter().any(|other| is_alike(filter, other) && other.takes(event, sandbox)),
        })
}

/// Sandboxes by their ids, as far as they were looked up: events have nothing but the id.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<String, SandboxView>);

impl Known {
    /// All that there are.
    pub(super) async fn new(client: &Client) -> Result<Self, CallError> {
        let views: Vec<SandboxView> = client.get(&path(&["sandboxes"], &[("all", "true")])).await?;
        Ok(Self(views.into_iter().map(|view| (view.id.clone(), view)).collect()))
    }

    /// The sandbox of an event; `None` if it has gone before anybody looked.
    pub(super) async fn of(&mut self, event: &EventView, client: &Client) -> Option<SandboxView> {
        if action(event) == "destroy" {
            return self.0.remove(&event.sandbox);
        }
        if let Some(view) = self.0.get(&event.sandbox) {
            return Some(view.clone());
        }
        let view: SandboxView = client.get(&path(&["sandboxes", &event.sandbox], &[])).await.ok()?;
        self.0.insert(event.sandbox.clone(), view.clone());
        Some(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_filters_take_what_dockers_do() {
        let event: EventView =
            serde_json::from_str(r#"{"time":"T","sandbox":"0123","event":"stop"}"#).unwrap();
        let view = SandboxView {
            name: "web".into(),
            image: "alpine".into(),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..SandboxView::default()
        };
        let takes = |texts: &[&str], sandbox| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            fits(&EventFilter::all(&texts).unwrap(), &event, sandbox)
        };
        for (texts, expected) in [
            (&["event=stop"][..], true),
            (&["event=die"], true),
            (&["event=start", "event=stop"], true),
            (&["event=start"], false),
            (&["container=web"], true),
            (&["container=we"], false),
            (&["sandbox=01"], true),
            (&["container=db", "event=stop"], false),
            (&["image=alpine"], true),
            (&["image=debian"], false),
            (&["label=a=1"], true),
            (&["label=a", "label=b"], false),
            (&["type=container"], true),
        ] {
            assert_eq!(takes(texts, Some(&view)), expected, "{texts:?}");
        }
        assert!(takes(&["container=0123"], None) && !takes(&["container=web"], None));
        let missed = EventView { sandbox: String::new(), ..event.clone() };
        assert!(fits(&EventFilter::all(&["event=start".into()]).unwrap(), &missed, None));
        for wrong in ["event=explode", "type=image", "color=red", "event"] {
            assert!(EventFilter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
