//! The HTTP server: `/mcp`, files of sandboxes, `/health` and `/`.
//!
//! rmcp speaks MCP over HTTP; what stands here makes it forgiving where the published commands need it, and
//! strict where browsers could be turned against the machine that it runs on.

mod authority;
mod files;
mod gate;
mod page;
mod plain;
#[cfg(all(test, feature = "fake"))]
pub(crate) mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use axum::serve::{Listener, ListenerExt as _};
use bouvet_host::Host;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use rmcp::model::ErrorCode;
use rmcp::transport::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::SessionManager as _;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::gate::Gate;
use crate::config::HttpConfig;
use crate::mcp::Server;
use crate::mcp::message::{self, Malformed};
use crate::panics;

/// A request's body. Ten MiB of content take up to six times that as JSON, each byte escaped.
pub(crate) const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// How often an idle event stream shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const SESSION_ID: &str = "mcp-session-id";

/// Why the HTTP server could not start.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}")]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

/// Binds the server's port.
pub(crate) async fn listen(config: &HttpConfig) -> Result<TcpListener, ListenError> {
    let address = config.address;
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves until `end`, then lets requests under way finish.
pub(crate) async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    host: Host,
    server: Server,
    end: CancellationToken,
) -> std::io::Result<()> {
    let app = Arc::new(App::new(config, host, server, &end));
    let router = Router::new()
        .route("/mcp", any(mcp))
        .route("/sandboxes/{sandbox_id}/file", get(files::read).put(files::write))
        .route_layer(middleware::from_fn_with_state(app.clone(), gated))
        .route("/", get(index))
        .route("/health", get(health))
        .layer(middleware::from_fn(panics::answered))
        .with_state(app);
    axum::serve(without_delay(listener), router).with_graceful_shutdown(end.cancelled_owned()).await
}

/// Without this a small answer waits for the client's delayed acknowledgement: 44 ms instead of 1.
fn without_delay(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set TCP_NODELAY");
        }
    })
}

struct App {
    host: Host,
    /// For what is served without MCP.
    server: Server,
    gate: Gate,
    /// For clients that keep a session, as revisions before 2026-07-28 have it.
    stateful: StreamableHttpService<Server, LocalSessionManager>,
    sessions: Arc<LocalSessionManager>,
    /// For all others: each request stands alone, and is answered with plain JSON where it can be.
    stateless: StreamableHttpService<Server, NeverSessionManager>,
}

impl App {
    fn new(config: HttpConfig, host: Host, server: Server, end: &CancellationToken) -> Self {
        let mut settings = StreamableHttpServerConfig::default()
            // The gate has checked both already.
            .disable_allowed_hosts()
            .disable_allowed_origins()
            .with_cancellation_token(end.child_token());
        settings.max_request_body_bytes = MAX_BODY_BYTES;
        let one_shot = settings.clone().with_legacy_session_mode(false).with_json_response(true);
        let (first, second) = (server.clone(), server.clone());
        let sessions = Arc::<LocalSessionManager>::default();
        Self {
            host,
            server,
            gate: Gate::new(&config),
            stateful: StreamableHttpService::new(move || Ok(first.clone()), sessions.clone(), settings),
            sessions,
            stateless: StreamableHttpService::new(move || Ok(second.clone()), Arc::default(), one_shot),
        }
    }
}

impl App {
    /// Whether the session that a request names goes on.
    async fn has_session(&self, id: Option<HeaderValue>) -> bool {
        let Some(id) = id.as_ref().and_then(|id| id.to_str().ok()) else { return false };
        self.sessions.has_session(&id.into()).await.is_ok_and(|has| has)
    }
}

async fn index(State(app): State<Arc<App>>) -> Response {
    page::index(app.host.engine(), app.host.acceleration().name()).into_response()
}

#[derive(Deserialize)]
struct HealthQuery {
    details: Option<String>,
}

async fn health(State(app): State<Arc<App>>, Query(query): Query<HealthQuery>) -> Json<serde_json::Value> {
    let mut health = json!({ "status": "healthy", "version": env!("CARGO_PKG_VERSION") });
    if query.details.is_some() {
        health["engine"] = app.host.engine().into();
        health["acceleration"] = app.host.acceleration().name().into();
        health["sandboxes"] = app.host.list().len().into();
        health["panics"] = panics::count().into();
        let (ready, size) = app.host.pool();
        health["pool"] = json!({ "ready": ready, "size": size });
    }
    Json(health)
}

/// Refuses what browsers could be made to send.
async fn gated(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let line = (request.version(), request.uri());
    match app.gate.check(line, request.headers(), |port| app.host.has_led(port)) {
        Ok(()) => next.run(request).await,
        Err(refused) => (refused.status(), refused.to_string()).into_response(),
    }
}

async fn mcp(State(app): State<Arc<App>>, mut request: Request) -> Response {
    accept_all_that_we_send(request.headers_mut());
    let in_session = request.headers().contains_key(SESSION_ID);
    match *request.method() {
        Method::POST => post(&app, request, in_session).await,
        Method::GET if !in_session && !is_modern(request.headers()) => events(),
        Method::DELETE => deleted(app.stateful.handle(request).await.map(Body::new)),
        _ => app.stateful.handle(request).await.map(Body::new),
    }
}

/// The official Python client takes 202, which rmcp says, for a failure to end the session.
fn deleted(response: Response) -> Response {
    match response.status() {
        StatusCode::ACCEPTED => StatusCode::NO_CONTENT.into_response(),
        _ => response,
    }
}

/// The transport demands that a client accepts both JSON and event streams. One that accepts anything, or
/// does not say, accepts both.
fn accept_all_that_we_send(headers: &mut HeaderMap) {
    let all = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let all = all.collect::<Vec<_>>().join(",").to_ascii_lowercase();
    let ours = ["*/*", "application/*", "application/json", "text/event-stream"];
    if all.is_empty() || ours.iter().any(|kind| all.contains(kind)) {
        let both = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, both);
    }
}

/// Whether the client speaks a revision that has no sessions and no stream of its own.
fn is_modern(headers: &HeaderMap) -> bool {
    let version = headers.get("mcp-protocol-version").and_then(|value| value.to_str().ok());
    version.is_some_and(|version| version >= "2026-07-28")
}

/// A stream of server events for a client without a session. There are none; it shows that we live.
fn events() -> Response {
    let none = futures_util::stream::pending::<Result<axum::response::sse::Event, Infallible>>();
    Sse::new(none).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

async fn post(app: &App, request: Request, in_session: bool) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let text = format!("a request may have {MAX_BODY_BYTES} bytes");
            let malformed = Malformed::new(ErrorCode::INVALID_REQUEST, text);
            return rpc_error(StatusCode::PAYLOAD_TOO_LARGE, &malformed);
        }
        // The client went away, or lied about the length.
        Err(error) => {
            let malformed = Malformed::new(ErrorCode::PARSE_ERROR, error.to_string());
            return rpc_error(StatusCode::BAD_REQUEST, &malformed);
        }
    };
    let bytes = bytes.slice_ref(message::without_mark(&bytes));
    let method = match message::check(&bytes) {
        Ok(envelope) => envelope.method,
        Err(malformed) => return rpc_error(StatusCode::BAD_REQUEST, &malformed),
    };
    let starts_session = method.as_deref() == Some("initialize") && !is_modern(&parts.headers);
    let streamed = plain::needs_stream(&bytes);
    let session = parts.headers.get(SESSION_ID).cloned();
    let request = Request::from_parts(parts, Body::from(bytes));
    match in_session || starts_session {
        true if streamed => app.stateful.handle(request).await.map(Body::new),
        true => {
            let response = app.stateful.handle(request).await.map(Body::new);
            plain::only_answer(response, app.has_session(session)).await
        }
        false => app.stateless.handle(request).await.map(Body::new),
    }
}

fn rpc_error(status: StatusCode, malformed: &Malformed) -> Response {
    (status, Json(malformed.answer())).into_response()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[tokio::test]
    async fn small_answers_are_not_held_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = without_delay(listener);
        let (_client, (accepted, _)) = tokio::join!(TcpStream::connect(address), listener.accept());
        assert!(accepted.nodelay().unwrap());
    }

    #[test]
    fn clients_that_take_anything_take_both_kinds() {
        let accepted = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            value.map(|value| headers.insert(header::ACCEPT, HeaderValue::from_static(value)));
            accept_all_that_we_send(&mut headers);
            headers[header::ACCEPT].to_str().unwrap().to_owned()
        };
        let both = "application/json, text/event-stream";
        for value in [None, Some("*/*"), Some("application/json"), Some("text/event-stream")] {
            assert_eq!(accepted(value), both);
        }
        assert_eq!(accepted(Some("text/html")), "text/html");
    }
}
