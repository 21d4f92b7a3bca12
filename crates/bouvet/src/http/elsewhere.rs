//! Answers to requests that are not for anything here, or lack something. Each names the next step.

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Json, Response};
use rmcp::model::{ErrorCode, RequestId};
use serde_json::json;

use crate::mcp::message::Malformed;

/// The code of a session that is not known, as the official SDKs have it.
const NO_SESSION: ErrorCode = ErrorCode(-32001);
/// Characters of a path that its error repeats.
const MAX_PATH_CHARS: usize = 100;

fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

/// The answer where no route has the path.
pub(super) async fn no_such_page(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(MAX_PATH_CHARS).flat_map(char::escape_debug).collect();
    let text = format!(
        "there is nothing at `{path}`. This server has /mcp, /sandboxes/{{sandbox_id}}/file?path=…, /health and /"
    );
    error(StatusCode::NOT_FOUND, &text)
}

/// The answer where the path has other methods. Its `Allow` is added by the router.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(MAX_PATH_CHARS).flat_map(char::escape_debug).collect();
    let method: String = method.as_str().chars().take(MAX_PATH_CHARS).collect();
    let text = format!("`{path}` does not take {method}. The header `Allow` lists the methods that it takes");
    error(StatusCode::METHOD_NOT_ALLOWED, &text)
}

/// Whether a client names streams of events among what it takes, as the transport demands of a GET.
pub(super) fn takes_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.to_ascii_lowercase().contains("text/event-stream"))
}

/// The answer to a GET of somebody who would wait for the end of a stream that has none.
pub(super) fn no_events() -> Response {
    let text = "GET opens a stream of events: send `Accept: text/event-stream` for it. POST JSON-RPC messages to call \
                this server";
    error(StatusCode::NOT_ACCEPTABLE, text)
}

/// The answer to a request in a session that ended, or never was.
pub(super) fn no_such_session(id: Option<RequestId>) -> Response {
    let text = "there is no such session: it ended, or the server was restarted. Send `initialize` again, without \
                the header `Mcp-Session-Id`";
    let answer = Malformed { id, ..Malformed::new(NO_SESSION, text) }.answer();
    (StatusCode::NOT_FOUND, Json(answer)).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn events_are_for_clients_that_name_them() {
        for (accept, expected) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/html"), false),
            (Some("text/event-stream"), true),
            (Some("application/json, Text/Event-Stream;q=0.5"), true),
        ] {
            let mut headers = HeaderMap::new();
            accept.map(|accept| headers.insert(header::ACCEPT, HeaderValue::from_static(accept)));
            assert_eq!(takes_events(&headers), expected, "{accept:?}");
        }
    }
}
