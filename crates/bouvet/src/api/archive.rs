//! Trees of files of sandboxes as tar streams: what `bouvet cp` is made of.

use std::io;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use bouvet_host::{Host, PackPart, PackReader};
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use serde::Deserialize;

use super::frame::{Frame, MAX_DATA_BYTES};
use super::shape::{SkippedView, StatView, UnpackedView};
use super::{Answered, asked, logs, said};
use crate::failure::Answer;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatQuery {
    path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PackQuery {
    path: String,
    /// Name of the top entry in the archive; `.`: only a directory's content has names.
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnpackQuery {
    path: String,
    /// The only one that entries may have or be below; empty: any.
    #[serde(default)]
    name: String,
    /// Whether new files belong to whom the archive names.
    #[serde(default)]
    keep_owners: bool,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// `GET /v1/sandboxes/{sandbox}/stat?path=…`: what is at a path.
pub(super) async fn stat(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<StatQuery>,
) -> Answered {
    let StatQuery { path } = asked(query)?;
    let stat = host.find(&name)?.stat(&path).await?;
    Ok(said(&StatView {
        kind: stat.kind.to_owned(),
        target_kind: stat.target_kind.map(Into::into),
        target: stat.target,
        size: stat.size,
        mode: stat.mode,
        modified_unix_s: stat.modified_unix_s,
        link_target: stat.link_target,
    }))
}

/// `GET /v1/sandboxes/{sandbox}/archive?path=…&name=…`: frames of a tar stream, and of what was left out.
pub(super) async fn pack(
    State(host): State<Host>,
    Path(sandbox): Path<String>,
    query: Asked<PackQuery>,
) -> Answered {
    let PackQuery { path, name } = asked(query)?;
    let reader = host.find(&sandbox)?.pack(&path, &name).await?;
    let frames = stream::unfold((Some(reader), Vec::new()), async |(mut reader, mut waiting)| {
        if waiting.is_empty() {
            waiting = next(&mut reader).await;
            waiting.reverse();
        }
        let frame: Frame = waiting.pop()?;
        Some((Ok::<_, std::convert::Infallible>(frame.encode()), (reader, waiting)))
    });
    Ok(logs::framed(Body::from_stream(frames)))
}

/// The next frames; none after the last.
async fn next(reader: &mut Option<PackReader>) -> Vec<Frame> {
    let Some(open) = reader else { return Vec::new() };
    let json = |value: Result<Vec<u8>, serde_json::Error>| Bytes::from(value.unwrap_or_default());
    match open.next().await {
        Ok(Some(PackPart::Data(mut data))) => {
            let mut frames = Vec::new();
            while !data.is_empty() {
                frames.push(Frame::Stdout(data.split_to(data.len().min(MAX_DATA_BYTES))));
            }
            frames
        }
        Ok(Some(PackPart::Skipped(file))) => {
            vec![Frame::Stderr(json(serde_json::to_vec(&SkippedView::from(file))))]
        }
        Ok(None) => {
            *reader = None;
            vec![Frame::Exit(Bytes::from_static(b"{}"))]
        }
        Err(error) => {
            *reader = None;
            vec![Frame::Error(json(serde_json::to_vec(&Answer::from(error).view())))]
        }
    }
}

/// `PUT /v1/sandboxes/{sandbox}/archive?path=…&name=…&keep_owners=…`: the body is a tar stream, which is unpacked.
pub(super) async fn unpack(
    State(host): State<Host>,
    Path(sandbox): Path<String>,
    query: Asked<UnpackQuery>,
    body: Body,
) -> Answered {
    let UnpackQuery { path, name, keep_owners } = asked(query)?;
    let content = body.into_data_stream().map_err(io::Error::other);
    let unpacked = host.find(&sandbox)?.unpack(&path, &name, keep_owners, content).await?;
    Ok(said(&UnpackedView {
        entries: unpacked.entries,
        skipped: unpacked.skipped.into_iter().map(SkippedView::from).collect(),
        skipped_count: unpacked.skipped_count,
    }))
}
