//! Which sandboxes are listed. Pure.

use super::image;
use crate::api::shape::SandboxView;
use crate::command::filter::Label;
use crate::command::outcome::Failed;
use crate::command::usage;

/// Where a sandbox can be in its life, by docker's words and ours.
const STATES: &[(&str, &[&str])] = &[
    ("created", &["created"]),
    ("starting", &["starting"]),
    ("running", &["running"]),
    ("paused", &["paused"]),
    ("restarting", &["restarting"]),
    ("stopping", &["stopping"]),
    ("removing", &["destroying"]),
    ("exited", &["stopped"]),
    ("stopped", &["stopped"]),
    ("dead", &["failed"]),
    ("failed", &["failed"]),
];

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SandboxFilter {
    Name(String),
    Id(String),
    State(&'static [&'static str]),
    Exited(i32),
    Label(Label),
    Ancestor(String),
    Network(String),
    Publish(u16, Option<String>),
}

impl SandboxFilter {
    /// Understands what was typed after `--filter`.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        let wrong = |allowed: &str| usage::wrong("--filter", text, allowed);
        let names = "name, id, status (or state), exited, label, ancestor (or image), network and publish, each as NAME=VALUE, are \
             allowed";
        let (field, value) = text.split_once('=').ok_or_else(|| wrong(names))?;
        Ok(match field {
            "name" => Self::Name(value.trim_start_matches('/').to_owned()),
            "id" => Self::Id(value.to_owned()),
            "state" | "status" => {
                let known = STATES.iter().find(|(name, _)| *name == value);
                let allowed: Vec<_> = STATES.iter().map(|(name, _)| *name).collect();
                let allowed = format!("the states {} are known", allowed.join(", "));
                Self::State(known.map(|(_, states)| *states).ok_or_else(|| wrong(&allowed))?)
            }
            "exited" => Self::Exited(value.parse().map_err(|_| wrong("an exit code is a number"))?),
            "label" => Self::Label(Label::parse(value)),
            "image" | "ancestor" => Self::Ancestor(value.to_owned()),
            "network" => Self::Network(value.to_owned()),
            "publish" => {
                let (port, protocol) = value.split_once('/').map_or((value, None), |(a, b)| (a, Some(b)));
                let port = port.parse().map_err(|_| wrong("a port is a number, or `8080/udp`"))?;
                Self::Publish(port, protocol.map(str::to_owned))
            }
            _ => return Err(wrong(names)),
        })
    }

    /// Whether sandboxes are meant that hold no VM.
    pub(super) fn is_for_stopped(&self) -> bool {
        matches!(self, Self::State(_) | Self::Exited(_))
    }

    fn takes(&self, view: &SandboxView) -> bool {
        match self {
            // A part of it, as `docker` has it.
            Self::Name(part) => view.name.contains(part),
            Self::Id(part) => view.id.starts_with(part),
            Self::State(states) => {
                let state = if view.restarting { "restarting" } else { &view.state };
                states.contains(&state)
            }
            Self::Exited(code) => view.exit_code == Some(*code),
            Self::Label(label) => label.is_in(&view.labels),
            Self::Ancestor(name) => {
                let known = image(view);
                // Without its tag any is meant, as it was typed or at full length.
                let plain = known.strip_prefix("docker.io/").unwrap_or(known);
                let plain = plain.strip_prefix("library/").unwrap_or(plain);
                [known, plain]
                    .iter()
                    .any(|image| *image == name || image.split([':', '@']).next() == Some(name))
            }
            Self::Network(name) => view.network == *name,
            Self::Publish(port, protocol) => view.ports.iter().any(|known| {
                known.host_port == *port
                    && protocol.as_ref().is_none_or(|protocol| known.protocol == *protocol)
            }),
        }
    }
}

/// Whether a sandbox is listed: as docker has it, conditions of one kind are alternatives, but every label must be there.
pub(super) fn fits(filters: &[SandboxFilter], view: &SandboxView) -> bool {
    filters.iter().all(|filter| {
        let is_alike =
            |other: &&SandboxFilter| std::mem::discriminant(*other) == std::mem::discriminant(filter);
        match filter {
            SandboxFilter::Label(..) => filter.takes(view),
            _ => filters.iter().filter(is_alike).any(|other| other.takes(view)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shape::PortView;

    #[test]
    fn filters_take_what_dockers_do() {
        let view = SandboxView {
            id: "0123".into(),
            name: "web-1".into(),
            image: "docker.io/library/nginx:alpine".into(),
            state: "stopped".into(),
            exit_code: Some(3),
            network: "tsi".into(),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ports: vec![PortView { host_port: 80, protocol: "tcp".into(), ..PortView::default() }],
            ..SandboxView::default()
        };
        let takes = |texts: &[&str]| {
            let filters: Vec<_> = texts.iter().map(|text| SandboxFilter::parse(text).unwrap()).collect();
            fits(&filters, &view)
        };
        for (texts, wanted) in [
            (&["name=web"][..], true),
            (&["name=db", "name=web"], true),
            (&["name=db", "id=01"], false),
            (&["id=01"], true),
            (&["id=1"], false),
            (&["status=exited"], true),
            (&["state=stopped", "status=running"], true),
            (&["status=running"], false),
            (&["exited=3"], true),
            (&["exited=0"], false),
            (&["label=a"], true),
            (&["label=a=1", "label=b"], false),
            (&["ancestor=nginx"], true),
            (&["ancestor=nginx:alpine"], true),
            (&["ancestor=alpine"], false),
            (&["network=tsi"], true),
            (&["publish=80"], true),
            (&["publish=80/udp"], false),
        ] {
            assert_eq!(takes(texts), wanted, "{texts:?}");
        }
        for wrong in ["status=nonsense", "exited=x", "publish=http", "color=red", "name"] {
            assert!(SandboxFilter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
