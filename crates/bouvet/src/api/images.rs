//! Images in the cache.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bouvet_archive::ChunkReader;
use bouvet_host::{
    BASE_IMAGE, Host, ImageConfig, ImageError, LoadedImage, PrunedImages, Reference, is_base_image,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::shape::{ImageView, LogoutView, PrunedView, PullLine};
use super::{Answered, asked, said, told};
use crate::calendar;
use crate::failure::{Answer, Failure, Kind};

/// Units of the size that the system reports.
const BLOCK_BYTES: u64 = 512;
/// Pieces of an archive that wait for their reader, and the bytes of one that is sent.
const WAITING_PIECES: usize = 16;
const MAX_PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageQuery {
    /// A reference, or at least twelve digits of an id.
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    name: String,
    /// Whether an image that is in use loses its names.
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PruneQuery {
    /// Whether images with names go too.
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadQuery {
    /// The archive, in messages.
    #[serde(default = "unnamed")]
    name: String,
}

fn unnamed() -> String {
    "archive".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    source: String,
    target: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    registry: String,
    username: String,
    password: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    registry: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    reference: String,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// `GET /v1/images`: the base images first, which have neither ids nor a place in the cache.
pub(super) async fn list(State(host): State<Host>) -> Answered {
    let images = match host.list_images().await {
        Err(ImageError::NoCache) => Vec::new(),
        images => images?,
    };
    let mut views = bases(&host);
    views.extend(images.into_iter().map(ImageView::from));
    Ok(said(&views))
}

/// The server's own images. An engine without VMs has no file of the first one.
fn bases(host: &Host) -> Vec<ImageView> {
    let used: Vec<String> = host.list().into_iter().map(|sandbox| sandbox.config.image).collect();
    let view = |(name, file): (&str, PathBuf)| {
        let metadata = std::fs::metadata(file).ok();
        let created = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        ImageView {
            id: String::new(),
            references: vec![name.to_owned()],
            size_bytes: metadata.map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES),
            created: created.map(calendar::seconds),
            last_used: None,
            in_use: used.iter().any(|image| base_name(image) == Some(name)),
            damaged: None,
        }
    };
    host.base_images().into_iter().map(view).collect()
}

/// The name of the base image that `image` means; `None` if it is not one. The empty name means the first one.
fn base_name(image: &str) -> Option<&str> {
    is_base_image(image).then_some(if image.is_empty() { BASE_IMAGE } else { image })
}

/// Refuses what only an image of the cache can be.
fn refuse_base(name: &str, what: &str) -> Answered<()> {
    match base_name(name) {
        Some(name) => {
            let fact = format!("`{name}` is the server's own image and cannot be {what}");
            Err(Failure::api(StatusCode::FORBIDDEN, Kind::Invalid, fact).into())
        }
        None => Ok(()),
    }
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
    if let Some(base) = bases(&host).into_iter().find(|base| base_name(&name) == Some(&*base.references[0])) {
        let config = ImageConfig::default();
        return Ok(said(&json!({
            "id": base.id, "reference": base.references[0], "size_bytes": base.size_bytes, "config": config,
        })));
    }
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

/// `DELETE /v1/image?name=…&force=…`
pub(super) async fn remove(State(host): State<Host>, query: Asked<RemoveQuery>) -> Answered {
    let RemoveQuery { name, force } = asked(query)?;
    refuse_base(&name, "removed")?;
    host.remove_image(&known_as(&name), force).await?;
    Ok(said(&json!({})))
}

/// `POST /v1/images/tag`: one more name of an image.
pub(super) async fn tag(State(host): State<Host>, names: Result<Json<Names>, JsonRejection>) -> Answered {
    let Names { source, target } = told(names)?;
    refuse_base(&source, "tagged")?;
    refuse_base(&target, "the new name of another one")?;
    let id = host.tag_image(&known_as(&source), &target).await?;
    Ok(said(&json!({ "id": id.to_string() })))
}

/// `POST /v1/images/prune?all=…`: removes unused images, and says which.
pub(super) async fn prune(State(host): State<Host>, query: Asked<PruneQuery>) -> Answered {
    let PrunedImages { images, bytes } = host.prune_images(asked(query)?.all).await?;
    let removed = images.into_iter().map(ImageView::from).collect();
    Ok(said(&PrunedView { removed, freed_bytes: bytes }))
}

/// `POST /v1/images/load?name=…`: the body is an archive. Answers as a pull does; a line `loaded` for each image.
pub(super) async fn load(State(host): State<Host>, query: Asked<LoadQuery>, body: Body) -> Answered {
    let LoadQuery { name } = asked(query)?;
    let archive = incoming(body);
    let work = async move |steps: Steps| {
        let told = steps.clone();
        let progress = move |event| {
            // Nobody may listen any more.
            told.send(PullLine::from(event)).ok();
        };
        let loaded = host.load_images(&name, archive, progress).await?;
        for LoadedImage { id, references } in loaded {
            steps.send(PullLine::Loaded { id: id.to_string(), references }).ok();
        }
        Ok::<_, ImageError>(PullLine::Finished)
    };
    Ok(steps(work))
}

/// `POST /v1/images/save`: an archive of images. It begins when all that can fail has been done but for its transport.
pub(super) async fn save(State(host): State<Host>, wanted: Result<Json<Saved>, JsonRejection>) -> Answered {
    let Saved { names } = told(wanted)?;
    if names.is_empty() {
        return Err(Failure::argument("no image is named").into());
    }
    names.iter().try_for_each(|name| refuse_base(name, "saved"))?;
    let names: Vec<String> = names.iter().map(|name| known_as(name)).collect();
    let (sender, mut pieces) = mpsc::channel(WAITING_PIECES);
    let saving = tokio::spawn(async move { host.save_images(&names, Pieces(sender)).await });
    let Some(first) = pieces.recv().await else {
        let broken = |error: &dyn std::fmt::Display| {
            Failure::api(StatusCode::INTERNAL_SERVER_ERROR, Kind::Failed, error)
        };
        return Err(match saving.await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => broken(&"the archive is empty").into(),
            Err(error) => broken(&error).into(),
        });
    };
    let rest = futures_util::stream::unfold((pieces, Some(saving)), async |(mut pieces, saving)| {
        if let Some(piece) = pieces.recv().await {
            return Some((Ok(piece), (pieces, saving)));
        }
        // A body that ends well is a whole archive.
        match saving?.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((Err(io::Error::other(error)), (pieces, None))),
            Err(error) => Some((Err(io::Error::other(error)), (pieces, None))),
        }
    });
    let content = futures_util::stream::once(async { Ok(first) }).chain(rest);
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(content)).into_response())
}

/// Reads a body, from a thread that may wait.
fn incoming(body: Body) -> impl io::Read + Send + 'static {
    let (sender, mut pieces) = mpsc::channel(WAITING_PIECES);
    tokio::spawn(async move {
        let mut content = body.into_data_stream();
        while let Some(piece) = content.next().await {
            // The archive was refused before its end.
            if sender.send(piece.map_err(io::Error::other)).await.is_err() {
                return;
            }
        }
    });
    ChunkReader::new(move || pieces.blocking_recv())
}

/// Sends what is written, in pieces.
struct Pieces(mpsc::Sender<Bytes>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(MAX_PIECE_BYTES)]);
        let length = piece.len();
        // The caller has gone.
        self.0.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `POST /v1/registries/login`: keeps a password for a registry that accepts it.
pub(super) async fn login(State(host): State<Host>, login: Result<Json<Login>, JsonRejection>) -> Answered {
    let Login { registry, username, password } = told(login)?;
    let registry = host.login(&registry, &username, password).await?;
    Ok(said(&json!({ "registry": registry })))
}

/// `POST /v1/registries/logout`: forgets it.
pub(super) async fn logout(
    State(host): State<Host>,
    registry: Result<Json<Registry>, JsonRejection>,
) -> Answered {
    let (registry, was_known) = host.logout(&told(registry)?.registry).await?;
    Ok(said(&LogoutView { registry, was_known }))
}

/// `POST /v1/images/pull`: how far it is, a JSON object in each line; the last says whether it is there. A caller who
/// goes away ends it.
pub(super) async fn pull(State(host): State<Host>, wanted: Result<Json<Wanted>, JsonRejection>) -> Answered {
    let Wanted { reference } = told(wanted)?;
    refuse_base(&reference, "pulled")?;
    reference.parse::<Reference>().map_err(|error| Failure::argument(error.to_string()))?;
    let work = async move |steps: Steps| {
        let progress = move |event| {
            // Nobody may listen any more.
            steps.send(PullLine::from(event)).ok();
        };
        let image = host.pull(&reference, progress).await?;
        Ok::<_, ImageError>(PullLine::Done { id: image.id.to_string(), size_bytes: image.size_bytes })
    };
    Ok(steps(work))
}

type Steps = mpsc::UnboundedSender<PullLine>;

/// Answers with the steps of `work`, a JSON object in each line; the last is what it returns, or why it failed. A caller
/// who goes away ends it.
fn steps<F>(work: impl FnOnce(Steps) -> F) -> Response
where
    F: Future<Output = Result<PullLine, ImageError>> + Send + 'static,
{
    // As many as there are steps of a pull, which its layers bound.
    let (steps, lines) = mpsc::unbounded_channel();
    let working = work(steps.clone());
    tokio::spawn(async move {
        let last = tokio::select! {
            done = working => done.unwrap_or_else(|error| PullLine::Failed(Answer::from(error).view())),
            () = steps.closed() => return,
        };
        steps.send(last).ok();
    });
    let lines = UnboundedReceiverStream::new(lines).map(|line| {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        Ok::<_, std::convert::Infallible>(text)
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
