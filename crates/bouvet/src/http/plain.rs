//! Plain JSON in a session, for requests that will be told of no progress. There rmcp answers everything with a
//! stream of events, and the official Python client takes at most 1 MiB in one: too little for a file.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde::Deserialize;
use sse_stream::SseStream;

use crate::mcp;

/// Whether the caller of `request`, a JSON-RPC message, will be told of progress: then only a stream will do.
pub(super) fn needs_stream(request: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Request {
        params: Params,
    }
    #[derive(Deserialize)]
    struct Params {
        name: String,
        #[serde(rename = "_meta")]
        meta: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "progressToken")]
        _progress_token: serde::de::IgnoredAny,
    }
    // What lacks any of these calls no tool, or has no token.
    let request = serde_json::from_slice::<Request>(request);
    request.is_ok_and(|Request { params: Params { name, meta: Meta { .. } } }| mcp::reports_progress(&name))
}

/// `response` with the answer alone, if it is a stream of events that ends with one. A stream without an answer is that
/// of a call that was cancelled, if `session_goes_on`.
pub(super) async fn only_answer(response: Response, session_goes_on: impl Future<Output = bool>) -> Response {
    let (mut parts, body) = response.into_parts();
    let streams = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
    if !streams {
        return Response::from_parts(parts, body);
    }
    match answer(body).await {
        Some(answer) => {
            parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Response::from_parts(parts, Body::from(answer))
        }
        None if session_goes_on.await => (StatusCode::GONE, "this call was cancelled").into_response(),
        None => (StatusCode::GONE, "the session ended before this call did").into_response(),
    }
}

/// The first event that answers a request. The server asks nothing of its clients, and what it might notify
/// them of meanwhile they have not asked for.
async fn answer(body: Body) -> Option<String> {
    #[derive(Deserialize)]
    struct Message {
        id: Option<serde::de::IgnoredAny>,
        method: Option<serde::de::IgnoredAny>,
    }
    let mut events = SseStream::new(body);
    while let Some(Ok(event)) = events.next().await {
        let Some(data) = event.data else { continue };
        let message = serde_json::from_str::<Message>(&data);
        if message.is_ok_and(|message| message.id.is_some() && message.method.is_none()) {
            return Some(data);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_for_those_who_sent_a_token_to_a_tool_that_uses_it() {
        let needs = |tool: &str, meta: &str| {
            let request = format!(r#"{{"method":"tools/call","params":{{"name":"{tool}"{meta}}}}}"#);
            needs_stream(request.as_bytes())
        };
        assert!(needs("run_command", r#","_meta":{"progressToken":"a"}"#));
        assert!(needs("execute_code", r#","_meta":{"progressToken":0,"other":1}"#));
        assert!(!needs("read_file", r#","_meta":{"progressToken":0}"#));
        assert!(!needs("run_command", r#","_meta":{}"#));
        assert!(!needs("run_command", ""));
        assert!(!needs_stream(br#"{"method":"ping"}"#));
    }

    #[tokio::test]
    async fn the_answer_is_taken_out_of_its_stream() {
        let stream = "id: 0\nretry: 3000\ndata:\n\n\
            data: {\"method\":\"notifications/message\"}\n\n\
            data: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n\n";
        let found = answer(Body::from(stream)).await;
        assert_eq!(found.as_deref(), Some(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#));
        assert_eq!(answer(Body::from("data: {}\n\n")).await, None);
    }

    #[tokio::test]
    async fn cancelled_calls_differ_from_ended_sessions() {
        for (goes_on, words) in [(true, "this call was cancelled"), (false, "the session ended")] {
            let stream = [(header::CONTENT_TYPE, "text/event-stream")];
            let response = only_answer((stream, "data:\n\n").into_response(), async { goes_on }).await;
            assert_eq!(response.status(), StatusCode::GONE);
            let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
            assert!(body.starts_with(words.as_bytes()), "{body:?}");
        }
    }
}
