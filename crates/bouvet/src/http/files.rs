//! Files of sandboxes as plain bodies, of any size: the streaming form of `read_file` and `write_file`.

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Json, Response};
use bouvet_host::{FileError, FileReader, chain};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use crate::failure::Failure;

/// How long a client may take nothing of a file.
const PATIENCE: Duration = Duration::from_secs(60);

/// The query of an address, after its `?`. Any query can be read in this form.
type Asked = Query<Vec<(String, String)>>;

/// The path in `query`, and the value of its other parameter, which is called `other` and is `wanted`.
fn asked<T: FromStr + Default>(query: Asked, other: &str, wanted: &str) -> Result<(String, T), Failure> {
    let (mut path, mut value) = (None, None);
    for (name, given) in query.0 {
        let place = match name.as_str() {
            "path" => &mut path,
            name if name == other => &mut value,
            name => {
                let fact = format!("the address takes `path` and `{other}`, not `{}`", name.escape_debug());
                return Err(Failure::argument(fact));
            }
        };
        if place.replace(given).is_some() {
            return Err(Failure::argument(format!("the address has `{}` twice", name.escape_debug())));
        }
    }
    let path = path.ok_or_else(|| Failure::argument("add `?path=…` to the address"))?;
    let value = value.map(|given| {
        let fact = || format!("`{other}` must be {wanted}, got \"{}\"", given.escape_debug());
        given.parse().map_err(|_| Failure::argument(fact()))
    });
    Ok((path, value.transpose()?.unwrap_or_default()))
}

/// `GET /sandboxes/{sandbox_id}/file?path=…&offset=…`: the file's bytes from `offset` on. A body that is shorter
/// than its Content-Length was cut off by a failure.
pub(super) async fn read(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Asked,
) -> Result<Response, Failure> {
    let (path, offset) = asked::<u64>(query, "offset", "a whole number of bytes")?;
    let reader = app.server.find(&id)?.read_stream(&path, offset).await?;
    let length = reader.file_bytes().saturating_sub(offset);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        // What a sandbox wrote is not to be taken for a page of this server.
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let (parts, body) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = pump(exactly(length, reader), parts).await {
            tracing::warn!(%error, "could not send a file to its end");
        }
    });
    Ok((headers, Body::from_stream(ReceiverStream::new(body))).into_response())
}

/// `length` bytes of what `reader` yields: a file that grows or shrinks meanwhile must not break the answer's rules.
fn exactly(length: u64, reader: FileReader) -> impl Stream<Item = Result<Bytes, FileError>> {
    stream::try_unfold((length, reader), async |(left, mut reader)| {
        if left == 0 {
            return Ok(None);
        }
        let shrunk = || FileError::Failed("the file became shorter while it was read".into());
        let mut bytes = reader.next().await?.ok_or_else(shrunk)?;
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - bytes.len() as u64;
        Ok(Some((bytes, (left, reader))))
    })
}

/// Hands `content` on, unless nobody takes it: a client that stalls must not hold what the sandbox has few of. An
/// answer that is cut off so is shorter than it said, by which its client knows.
async fn pump(
    content: impl Stream<Item = Result<Bytes, FileError>>,
    to: mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), String> {
    tokio::pin!(content);
    while let Some(part) = content.next().await {
        let part = part.map_err(|error| chain(&error));
        let failed = part.as_ref().err().cloned();
        match tokio::time::timeout(PATIENCE, to.send(part.map_err(io::Error::other))).await {
            Err(_) => return Err(format!("the client took nothing for {PATIENCE:?}")),
            // The client has gone.
            Ok(Err(_)) => return Ok(()),
            Ok(Ok(())) => failed.map_or(Ok(()), Err)?,
        }
    }
    Ok(())
}

/// `PUT /sandboxes/{sandbox_id}/file?path=…&append=…`: the body becomes the file, whole or not at all.
pub(super) async fn write(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Asked,
    request: Request,
) -> Result<Response, Failure> {
    let (path, append) = asked::<bool>(query, "append", "true or false")?;
    let content = request.into_body().into_data_stream().map_err(io::Error::other);
    let written_bytes = app.server.find(&id)?.write_stream(&path, content, append).await?;
    Ok(Json(json!({ "written_bytes": written_bytes })).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_queries_are_answered_in_words() {
        let asked = |query: &str| {
            let uri = format!("http://x/file?{query}").parse::<axum::http::Uri>().unwrap();
            asked::<u64>(Query::try_from_uri(&uri).unwrap(), "offset", "a whole number of bytes")
        };
        assert_eq!(asked("path=a%20b&offset=7"), Ok(("a b".into(), 7)));
        assert_eq!(asked("path="), Ok((String::new(), 0)));
        for (query, words) in [
            ("", "add `?path=…` to the address"),
            ("offset=1", "add `?path=…` to the address"),
            ("path=a&foo=1", "the address takes `path` and `offset`, not `foo`"),
            ("path=a&path=b", "the address has `path` twice"),
            ("path=a&offset=-1", "`offset` must be a whole number of bytes, got \"-1\""),
        ] {
            assert_eq!(asked(query), Err(Failure::argument(words)), "{query}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_is_given_up() {
        let (parts, mut body) = mpsc::channel(1);
        let endless = stream::repeat(()).map(|()| Ok(Bytes::from_static(b"x")));
        let error = pump(endless, parts).await.unwrap_err();
        assert!(error.contains("took nothing"), "{error}");
        assert!(body.recv().await.is_some() && body.recv().await.is_none(), "its content ends");
    }
}
