//! Connections to the control port of a sidecar: bytes both ways, as they are.

use std::io;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bouvet_host::Host;
use futures_util::TryStreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::{ReaderStream, StreamReader};

use super::Answered;

/// `POST /v1/sandboxes/{sandbox}/sidecar`
pub(super) async fn connect(State(host): State<Host>, Path(name): Path<String>, body: Body) -> Answered {
    let (reader, mut writer) = tokio::io::split(host.find(&name)?.connect_sidecar().await?);
    tokio::spawn(async move {
        let mut input = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
        // A sidecar that reads no more is not an error, and a client that has gone needs no end.
        if tokio::io::copy(&mut input, &mut writer).await.is_ok() {
            writer.shutdown().await.ok();
        }
    });
    Ok(bytes(Body::from_stream(ReaderStream::new(reader))))
}

fn bytes(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}
