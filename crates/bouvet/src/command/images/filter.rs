//! Which images are listed.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::api::client::{CallError, path};
use crate::api::shape::ImageView;
use crate::command::filter::{Label, PruneFilter, is_like};
use crate::command::outcome::{Connection, Failed};
use crate::command::{image, run, usage};
use crate::failure::Kind;

/// A condition of `images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImageFilter {
    /// Whether it has no name.
    Dangling(bool),
    /// One of its names is like this.
    Reference(String),
    Label(Label),
    /// It is older than this image.
    Before(String),
    /// It is newer than this image.
    Since(String),
    /// It is at least this old.
    Until(PruneFilter),
}

impl ImageFilter {
    /// Reads what was typed after `--filter`.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        let allowed = "dangling, reference, label, before, since and until, each as NAME=VALUE, are allowed";
        let wrong = || usage::wrong("--filter", text, allowed);
        let (field, value) = text.split_once('=').ok_or_else(wrong)?;
        Ok(match (field, value) {
            ("dangling", "true" | "1") => Self::Dangling(true),
            ("dangling", "false" | "0") => Self::Dangling(false),
            ("reference", pattern) => Self::Reference(pattern.to_owned()),
            ("label", label) => Self::Label(Label::parse(label)),
            ("before", image) => Self::Before(image.to_owned()),
            ("since", image) => Self::Since(image.to_owned()),
            ("until", _) => Self::Until(PruneFilter::parse(text)?),
            _ => return Err(wrong()),
        })
    }

    /// Whether an image with these labels fits. `Before` and `Since` hold the time by then.
    fn takes(&self, view: &ImageView, labels: &BTreeMap<String, String>, now: SystemTime) -> bool {
        let made = |view: &ImageView| humantime::parse_rfc3339(view.created.as_deref()?).ok();
        let than = |time: &String| humantime::parse_rfc3339(time).ok();
        match self {
            Self::Dangling(wanted) => view.references.is_empty() == *wanted,
            Self::Reference(pattern) => view.references.iter().any(|name| is_named(pattern, name)),
            Self::Label(label) => label.is_in(labels),
            Self::Before(time) => made(view).zip(than(time)).is_some_and(|(made, than)| made < than),
            Self::Since(time) => made(view).zip(than(time)).is_some_and(|(made, than)| made > than),
            Self::Until(filter) => filter.takes(view.created.as_deref().unwrap_or_default(), labels, now),
        }
    }

    /// The same with the time of the image that it names.
    async fn resolved(self, connection: &Connection) -> Result<Self, Failed> {
        Ok(match self {
            Self::Before(image) => Self::Before(created(&image, connection).await?),
            Self::Since(image) => Self::Since(created(&image, connection).await?),
            other => other,
        })
    }
}

/// When an image was made (RFC 3339).
async fn created(typed: &str, connection: &Connection) -> Result<String, Failed> {
    let missing = || Failed::new(format!("there is no image `{}`", typed.escape_debug()));
    let path = path(&["image"], &[("name", &run::image(typed)?)]);
    let image: serde_json::Value = match connection.client.get(&path).await {
        Err(CallError::Refused(failure)) if failure.kind == Kind::NoImage.name() => return Err(missing()),
        image => image?,
    };
    let unknown = || Failed::new(format!("the image `{}` has no time of creation", typed.escape_debug()));
    image["config"]["created"].as_str().map(str::to_owned).ok_or_else(unknown)
}

/// Whether an image of this full name is meant by `pattern`, which may have no registry, no `library/` and no tag.
fn is_named(pattern: &str, name: &str) -> bool {
    let plain = name.strip_prefix("docker.io/").unwrap_or(name);
    let plain = plain.strip_prefix("library/").unwrap_or(plain);
    [name, plain].into_iter().any(|name| {
        let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
        let repository =
            name.split_once('@').map_or_else(|| &name[..tag.unwrap_or(name.len())], |(name, _)| name);
        is_like(pattern, name) || is_like(pattern, repository)
    })
}

/// Those of `images` that fit: patterns of names are alternatives, as docker has it.
pub(super) async fn matching(
    images: Vec<ImageView>,
    filters: &[ImageFilter],
    connection: &Connection,
) -> Result<Vec<ImageView>, Failed> {
    let mut resolved = Vec::new();
    for filter in filters {
        resolved.push(filter.clone().resolved(connection).await?);
    }
    let (named, others): (Vec<_>, Vec<_>) =
        resolved.into_iter().partition(|filter| matches!(filter, ImageFilter::Reference(_)));
    let needs_labels = others.iter().any(|filter| matches!(filter, ImageFilter::Label(_)));
    let (mut found, now) = (Vec::new(), SystemTime::now());
    for view in images {
        let labels = match needs_labels {
            true => image::labels(&view, connection).await?,
            false => BTreeMap::new(),
        };
        let is_named = named.is_empty() || named.iter().any(|filter| filter.takes(&view, &labels, now));
        if is_named && others.iter().all(|filter| filter.takes(&view, &labels, now)) {
            found.push(view);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_filters_take_what_dockers_do() {
        let view = ImageView {
            id: "sha256:1".into(),
            references: vec!["docker.io/library/nginx:alpine".into()],
            size_bytes: 1,
            created: Some("2026-01-01T00:00:00Z".into()),
            last_used: None,
            in_use: false,
            damaged: None,
        };
        let labels = [("a".to_owned(), "1".to_owned())].into();
        let takes =
            |text: &str| ImageFilter::parse(text).unwrap().takes(&view, &labels, SystemTime::UNIX_EPOCH);
        for (text, expected) in [
            ("dangling=true", false),
            ("dangling=false", true),
            ("reference=nginx", true),
            ("reference=nginx:alpine", true),
            ("reference=docker.io/library/nginx", true),
            ("reference=ngin?:*", true),
            ("reference=nginx:1", false),
            ("reference=alpine", false),
            ("label=a=1", true),
            ("label=b", false),
            ("before=2026-01-02T00:00:00Z", true),
            ("before=2026-01-01T00:00:00Z", false),
            ("since=2025-01-01T00:00:00Z", true),
            ("since=2026-01-01T00:00:00Z", false),
            ("until=1h", false),
        ] {
            assert_eq!(takes(text), expected, "{text}");
        }
        for wrong in ["dangling=maybe", "color=red", "reference", "until=soon"] {
            assert!(ImageFilter::parse(wrong).is_err(), "{wrong}");
        }
        assert!(is_named("host:5000/app", "host:5000/app:1") && is_named("app", "app@sha256:1"));
    }
}
