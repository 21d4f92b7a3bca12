//! Images in the cache.

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use bouvet_host::{Host, Reference};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::shape::{ImageView, PullLine};
use super::{Answered, asked, said, told};
use crate::failure::{Answer, Failure, Kind};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageQuery {
    /// A reference, or at least twelve digits of an id.
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    reference: String,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

pub(super) async fn list(State(host): State<Host>) -> Answered {
    let images: Vec<_> = host.list_images().await?.into_iter().map(ImageView::from).collect();
    Ok(said(&images))
}

/// The name by which the cache knows what was typed: `alpine` is `docker.io/library/alpine:latest` there.
fn known_as(name: &str) -> String {
    let is_id = name.trim_start_matches("sha256:").bytes().all(|byte| byte.is_ascii_hexdigit());
    match name.parse::<Reference>() {
        Ok(reference) if !is_id => reference.to_string(),
        _ => name.to_owned(),
    }
}

/// `GET /v1/image?name=…`: what an image says of itself.
pub(super) async fn inspect(State(host): State<Host>, query: Asked<ImageQuery>) -> Answered {
    let ImageQuery { name } = asked(query)?;
    let found = match host.image(&known_as(&name)).await? {
        None => host.image(&name).await?,
        found => found,
    };
    let none = || {
        let fact = format!("there is no image `{}` in the cache", name.escape_debug());
        Failure::api(StatusCode::NOT_FOUND, Kind::NoImage, fact)
    };
    let image = found.ok_or_else(none)?;
    Ok(said(&json!({
        "id": image.id.to_string(),
        "reference": image.reference,
        "size_bytes": image.size_bytes,
        "config": image.config,
    })))
}

/// `DELETE /v1/image?name=…`
pub(super) async fn remove(State(host): State<Host>, query: Asked<ImageQuery>) -> Answered {
    let ImageQuery { name } = asked(query)?;
    host.remove_image(&known_as(&name)).await?;
    Ok(said(&json!({})))
}

/// `POST /v1/images/pull`: how far it is, a JSON object in each line; the last says whether it is there. A caller who
/// goes away ends it.
pub(super) async fn pull(State(host): State<Host>, wanted: Result<Json<Wanted>, JsonRejection>) -> Answered {
    let Wanted { reference } = told(wanted)?;
    reference.parse::<Reference>().map_err(|error| Failure::argument(error.to_string()))?;
    // As many as there are steps of a pull, which its layers bound.
    let (steps, lines) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (told, gone) = (steps.clone(), steps.clone());
        let pulled = host.pull(&reference, move |event| {
            // Nobody may listen any more.
            told.send(PullLine::from(event)).ok();
        });
        let last = tokio::select! {
            pulled = pulled => match pulled {
                Ok(image) => PullLine::Done { id: image.id.to_string(), size_bytes: image.size_bytes },
                Err(error) => PullLine::Failed(Answer::from(error).view()),
            },
            () = gone.closed() => return,
        };
        steps.send(last).ok();
    });
    let lines = UnboundedReceiverStream::new(lines).map(|line| {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        Ok::<_, std::convert::Infallible>(text)
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
