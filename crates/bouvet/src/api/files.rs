//! Files of sandboxes: what `bouvet cp` is made of.

use std::io;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use bouvet_host::{ExecRequest, FileError, Host};
use futures_util::{TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;

use super::shape::{EntryView, ListingView};
use super::{Answered, asked, said};
use crate::failure::{Failure, Kind};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathQuery {
    path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteQuery {
    path: String,
    /// Permission bits, as a decimal number. 0: those of the file that it replaces, or 0644.
    #[serde(default)]
    mode: u32,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// `GET /v1/sandboxes/{sandbox}/files?path=…`: a directory.
pub(super) async fn list(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<PathQuery>,
) -> Answered {
    let PathQuery { path } = asked(query)?;
    let listing = host.find(&name)?.list(&path).await?;
    let entries = listing.entries.into_iter().map(|entry| EntryView {
        name: entry.name,
        kind: entry.kind.to_owned(),
        is_dir: entry.is_dir,
        size: entry.size,
        mode: entry.mode,
        link_target: entry.link_target,
    });
    Ok(said(&ListingView { entries: entries.collect(), truncated: listing.truncated }))
}

/// `GET /v1/sandboxes/{sandbox}/file?path=…`: a file's bytes. A body that breaks off was cut short by a failure.
pub(super) async fn read(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<PathQuery>,
) -> Answered {
    let PathQuery { path } = asked(query)?;
    let reader = host.find(&name)?.read_stream(&path, 0).await?;
    let content = stream::try_unfold(reader, async |mut reader| {
        let bytes = reader.next().await.map_err(|error: FileError| io::Error::other(error.to_string()))?;
        Ok::<_, io::Error>(bytes.map(|bytes| (bytes, reader)))
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(content)).into_response())
}

/// `PUT /v1/sandboxes/{sandbox}/file?path=…&mode=…`: the body becomes the file, whole or not at all.
pub(super) async fn write(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<WriteQuery>,
    body: Body,
) -> Answered {
    let WriteQuery { path, mode } = asked(query)?;
    let content = body.into_data_stream().map_err(io::Error::other);
    let written_bytes = host.find(&name)?.write_file(&path, content, mode & 0o7777).await?;
    Ok(said(&json!({ "written_bytes": written_bytes })))
}

/// `POST /v1/sandboxes/{sandbox}/files?path=…`: an empty directory, with those above it. By the image's own `mkdir`:
/// the guest makes directories only for files.
pub(super) async fn make_directory(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<PathQuery>,
) -> Answered {
    let PathQuery { path } = asked(query)?;
    let request = ExecRequest::arguments(["mkdir", "-p", "--", &path])?;
    let result = host.find(&name)?.exec(request).await?.finish().await?;
    if result.exit.exit_code != 0 {
        let fact = format!("could not make the directory `{path}`: {}", result.stderr.text().trim());
        return Err(Failure::api(StatusCode::FORBIDDEN, Kind::Failed, fact).into());
    }
    Ok(said(&json!({})))
}
