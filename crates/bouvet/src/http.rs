//! The HTTP server: `/mcp`, files of sandboxes, `/health` and `/`.
//!
//! rmcp speaks MCP over HTTP; what stands here makes it forgiving where the published commands need it, and
//! strict where browsers could be turned against the machine that it runs on.

mod authority;
pub(crate) mod budget;
pub(crate) mod connections;
mod elsewhere;
mod files;
mod gate;
mod intake;
mod page;
mod plain;
mod sessions;
#[cfg(all(test, feature = "fake"))]
pub(crate) mod tests;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use axum::serve::{Listener, ListenerExt as _};
use bouvet_host::Host;
use rmcp::transport::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::budget::Budget;
use self::connections::{Connections, Peer};
use self::gate::Gate;
use self::sessions::{Beginning, Caller, Sessions};
use crate::config::HttpConfig;
use crate::mcp::Server;
use crate::{client, panics};

/// What the MCP library reads of a request, which is without the arguments of a call.
const MAX_REST_BYTES: usize = 8 * 1024 * 1024;
/// How often an idle event stream shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const SESSION_ID: &str = "mcp-session-id";

/// Why the HTTP server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another Bouvet server has the port.
    #[error("a Bouvet server is already running on {0}")]
    Bouvet(SocketAddr),
    /// The system refused it.
    #[error("could not listen on {address}")]
    Failed {
        /// Address and port.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Binds the server's port.
pub(crate) async fn listen(config: &HttpConfig) -> Result<TcpListener, ListenError> {
    let address = config.address;
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse && client::is_bouvet(address).await => {
            Err(ListenError::Bouvet(address))
        }
        Err(source) => Err(ListenError::Failed { address, source }),
    }
}

/// Serves until `end`, then lets requests under way finish.
pub(crate) async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    host: Host,
    server: Server,
    end: CancellationToken,
    max_connections: usize,
) -> std::io::Result<()> {
    let app = Arc::new(App::new(config, host, server, &end));
    let open = Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .method_not_allowed_fallback(elsewhere::no_such_method);
    let router = Router::new()
        .route("/mcp", any(mcp))
        .route("/sandboxes/{sandbox_id}/file", get(files::read).put(files::write))
        // Before the gate, which holds for the routes and answers that are set until then.
        .method_not_allowed_fallback(elsewhere::no_such_method)
        .route_layer(middleware::from_fn_with_state(app.clone(), gated))
        .merge(open)
        .fallback(elsewhere::no_such_page)
        .layer(middleware::from_fn(panics::answered))
        .layer(middleware::from_fn(connections::counted))
        .with_state(app);
    let listener = Connections::new(without_delay(listener), max_connections, |address| Some(address.ip()));
    let router = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await
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
    /// The memory for bodies.
    budget: Arc<Budget>,
    /// For clients that keep a session, as revisions before 2026-07-28 have it.
    stateful: StreamableHttpService<Server, LocalSessionManager>,
    sessions: Sessions,
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
        settings.max_request_body_bytes = MAX_REST_BYTES;
        let one_shot = settings.clone().with_legacy_session_mode(false).with_json_response(true);
        let (first, second) = (server.clone(), server.clone());
        let sessions = Sessions::default();
        Self {
            host,
            server,
            budget: Budget::new(config.bodies_bytes),
            gate: Gate::new(config),
            stateful: StreamableHttpService::new(
                move || Ok(first.clone()),
                sessions.library.clone(),
                settings,
            ),
            sessions,
            stateless: StreamableHttpService::new(move || Ok(second.clone()), Arc::default(), one_shot),
        }
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

async fn mcp(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
) -> Response {
    let takes_events = elsewhere::takes_events(request.headers());
    accept_all_that_we_send(request.headers_mut());
    let session = request.headers().get(SESSION_ID).cloned();
    // Until the answer has been sent: a session in use does not end for others.
    let in_use = app.sessions.request(session.as_ref());
    let response = match *request.method() {
        Method::POST => post(&app, &peer, request, session.as_ref()).await,
        Method::GET if session.is_none() && !is_modern(request.headers()) => match takes_events {
            true => events(),
            false => elsewhere::no_events(),
        },
        Method::GET if is_lost(&app, session.as_ref(), request.headers()).await => {
            elsewhere::no_such_session(None)
        }
        Method::DELETE => deleted(app.stateful.handle(request).await.map(Body::new)),
        _ => app.stateful.handle(request).await.map(Body::new),
    };
    connections::held(response, in_use)
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

async fn post(app: &App, peer: &Peer, request: Request, session: Option<&HeaderValue>) -> Response {
    let (mut parts, body) = request.into_parts();
    let (incoming, arguments) = match intake::read(body, &app.budget).await {
        Ok(read) => read,
        Err(refused) => return refused.response(),
    };
    if is_lost(app, session, &parts.headers).await {
        return elsewhere::no_such_session(incoming.envelope.id);
    }
    let starts_session =
        incoming.envelope.method.as_deref() == Some("initialize") && !is_modern(&parts.headers);
    if starts_session && let Some(fault) = incoming.initialize_fault() {
        return Json(fault.answer()).into_response();
    }
    let streamed = plain::needs_stream(&incoming.message);
    parts.extensions.insert(arguments);
    // It is that of the whole message.
    parts.headers.insert(header::CONTENT_LENGTH, incoming.message.len().into());
    let request = Request::from_parts(parts, Body::from(incoming.message));
    let beginning = match session.is_none() && starts_session {
        true => match begin(app, peer).await {
            Ok(beginning) => Some(beginning),
            Err(refused) => return refused,
        },
        false => None,
    };
    let response = match session.is_some() || starts_session {
        true if streamed => app.stateful.handle(request).await.map(Body::new),
        true => {
            let response = app.stateful.handle(request).await.map(Body::new);
            plain::only_answer(response, app.sessions.has(session)).await
        }
        false => app.stateless.handle(request).await.map(Body::new),
    };
    if let Some(beginning) = beginning {
        beginning.begun(response.headers().get(SESSION_ID));
    }
    response
}

/// Whether a request names a session that there is not. Revisions without sessions do not read the header.
async fn is_lost(app: &App, session: Option<&HeaderValue>, headers: &HeaderMap) -> bool {
    session.is_some() && !is_modern(headers) && !app.sessions.has(session).await
}

/// Takes a place for a session of `peer`.
async fn begin(app: &App, peer: &Peer) -> Result<Beginning, Response> {
    let caller = peer.address().map_or(Caller::Loopback, Caller::from);
    app.sessions.begin(caller).await.ok_or_else(|| {
        let text = "all sessions that a client may have are in use; end one, or try again";
        (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], text).into_response()
    })
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
