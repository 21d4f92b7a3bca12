//! Connections to the control port of a sidecar: bytes both ways, as they are.

use std::io;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bouvet_host::Host;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::{ReaderStream, StreamReader};
use tokio_util::sync::CancellationToken;

use super::Answered;

/// `POST /v1/sandboxes/{sandbox}/sidecar`
pub(super) async fn connect(State(host): State<Host>, Path(name): Path<String>, body: Body) -> Answered {
    let (reader, mut writer) = tokio::io::split(host.find(&name)?.connect_sidecar().await?);
    let gone = CancellationToken::new();
    let answers = (ReaderStream::new(reader), gone.clone().drop_guard());
    tokio::spawn(async move {
        let mut input = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
        let send = async {
            // A sidecar that reads no more is not an error.
            if tokio::io::copy(&mut input, &mut writer).await.is_ok() {
                writer.shutdown().await.ok();
            }
        };
        tokio::select! {
            () = send => {}
            () = gone.cancelled() => {}
        }
    });
    let answers = stream::unfold(Some(answers), async |answers| {
        let (mut reader, here) = answers?;
        match reader.next().await {
            Some(part) => Some((part, Some((reader, here)))),
            None => {
                // The sidecar has ended its direction, and not the client the other.
                here.disarm();
                None
            }
        }
    });
    Ok(bytes(Body::from_stream(answers)))
}

fn bytes(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}
