//! Plain JSON for clients in a session that asked for no progress. There rmcp answers every request with a
//! stream of events, and the official Python client takes at most 1 MiB in one: too little for a file.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde::Deserialize;
use sse_stream::SseStream;

/// Whether `request`, a JSON-RPC message, asks to be told of progress: then only a stream will do.
pub(super) fn wants_progress(request: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Request {
        params: Params,
    }
    #[derive(Deserialize)]
    struct Params {
        #[serde(rename = "_meta")]
        meta: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "progressToken")]
        _progress_token: serde::de::IgnoredAny,
    }
    // What lacks any of these has no token.
    serde_json::from_slice::<Request>(request)
        .is_ok_and(|Request { params: Params { meta: Meta { .. } } }| true)
}

/// `response` with the answer alone, if it is a stream of events that ends with one.
pub(super) async fn only_answer(response: Response) -> Response {
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
        None => (StatusCode::GONE, "the session ended before its answer").into_response(),
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
    fn progress_is_wanted_by_those_who_sent_a_token() {
        let with = |meta: &str| format!(r#"{{"method":"tools/call","params":{{"name":"x"{meta}}}}}"#);
        assert!(wants_progress(with(r#","_meta":{"progressToken":"a"}"#).as_bytes()));
        assert!(wants_progress(with(r#","_meta":{"progressToken":0,"other":1}"#).as_bytes()));
        assert!(!wants_progress(with(r#","_meta":{}"#).as_bytes()));
        assert!(!wants_progress(with("").as_bytes()));
        assert!(!wants_progress(br#"{"method":"ping"}"#));
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
}
