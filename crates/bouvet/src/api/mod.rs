//! The API that the `bouvet` commands speak, over a Unix socket or within their own process. `docs/API.md` has every
//! endpoint; [`shape`] is what is said in JSON, [`frame`] what flows in the streams that go both ways.

mod alone;
mod archive;
pub(crate) mod client;
mod end;
mod files;
pub(crate) mod frame;
#[cfg(all(test, feature = "fake"))]
mod image_tests;
mod images;
mod logs;
mod network;
mod networks;
pub(crate) mod ports;
mod sandboxes;
mod session;
pub(crate) mod shape;
mod sidecar;
pub(crate) mod socket;
#[cfg(all(test, feature = "fake"))]
pub(crate) mod tests;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Query};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::serve::Listener;
use bouvet_host::{BoxConfig, Host, ResourceConfig};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub(crate) use self::alone::Alone;
pub(crate) use self::sandboxes::MAX_GRACE_SECS;
pub(crate) use self::session::{WINDOW_BYTES, cost_bytes};
use self::shape::InfoView;
use crate::failure::{Answer, Failure};
use crate::http::connections::{self, Connections, Peer};
use crate::panics;

/// The body of a request that is one JSON value: a description with a megabyte of arguments, escaped.
const MAX_JSON_BYTES: usize = 8 * 1024 * 1024;

/// The number in the paths of the API.
pub(crate) const API_VERSION: u32 = 1;

/// Answers of the API: a failure has the fact, a word for programs, and advice.
type Answered<T = Response> = Result<T, Answer>;

/// The API of `host`.
pub(crate) fn router(host: Host) -> Router {
    Router::new()
        .route("/v1/version", get(version))
        .route("/v1/info", get(info))
        .route("/v1/health", get(health))
        .route("/v1/template", get(template))
        .route("/v1/events", get(logs::events))
        .route("/v1/run", post(session::run))
        .route("/v1/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/v1/sandboxes/{sandbox}", get(sandboxes::inspect).delete(sandboxes::destroy))
        .route("/v1/sandboxes/{sandbox}/start", post(sandboxes::start))
        .route("/v1/sandboxes/{sandbox}/rename", post(sandboxes::rename))
        .route("/v1/sandboxes/{sandbox}/stop", post(sandboxes::stop))
        .route("/v1/sandboxes/{sandbox}/pause", post(sandboxes::pause))
        .route("/v1/sandboxes/{sandbox}/resume", post(sandboxes::resume))
        .route("/v1/sandboxes/{sandbox}/kill", post(sandboxes::kill))
        .route("/v1/sandboxes/{sandbox}/wait", post(sandboxes::wait))
        .route("/v1/sandboxes/{sandbox}/stats", get(sandboxes::stats))
        .route("/v1/sandboxes/{sandbox}/logs", get(logs::logs))
        .route("/v1/sandboxes/{sandbox}/attach", post(session::attach))
        .route("/v1/sandboxes/{sandbox}/exec", post(session::exec))
        .route("/v1/sandboxes/{sandbox}/attestation", post(sandboxes::attest))
        .route("/v1/sandboxes/{sandbox}/network", get(network::show))
        .route("/v1/sandboxes/{sandbox}/network/policy", put(network::set_policy))
        .route("/v1/sandboxes/{sandbox}/sidecar", post(sidecar::connect))
        .route("/v1/sandboxes/{sandbox}/ports", get(ports::list).post(ports::expose))
        .route("/v1/sandboxes/{sandbox}/ports/{port}", delete(ports::unexpose))
        .route("/v1/sandboxes/{sandbox}/files", get(files::list).post(files::make_directory))
        .route("/v1/sandboxes/{sandbox}/file", get(files::read).put(files::write))
        .route("/v1/sandboxes/{sandbox}/stat", get(archive::stat))
        .route("/v1/sandboxes/{sandbox}/archive", get(archive::pack).put(archive::unpack))
        .route("/v1/networks", get(networks::list).post(networks::create))
        .route("/v1/networks/{network}", delete(networks::remove))
        .route("/v1/images", get(images::list))
        .route("/v1/images/load", post(images::load))
        .route("/v1/images/prune", post(images::prune))
        .route("/v1/images/pull", post(images::pull))
        .route("/v1/images/save", post(images::save))
        .route("/v1/images/tag", post(images::tag))
        .route("/v1/registries/login", post(images::login))
        .route("/v1/registries/logout", post(images::logout))
        .route("/v1/image", get(images::inspect))
        .route("/v1/image", delete(images::remove))
        // Files are streams of any length; their handlers take the body as such.
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .fallback(unknown)
        .layer(middleware::from_fn(panics::answered))
        .with_state(host)
}

/// Serves the API until `end`.
pub(crate) async fn serve<L>(
    listener: L,
    host: Host,
    end: CancellationToken,
    max_connections: usize,
) -> std::io::Result<()>
where
    L: Listener,
    L::Io: Unpin,
    L::Addr: std::fmt::Debug,
{
    let router = router(host).layer(middleware::from_fn(connections::counted));
    let listener = Connections::new(listener, max_connections, |_| None);
    let router = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await
}

async fn version() -> Response {
    said(&json!({ "version": env!("CARGO_PKG_VERSION"), "api": API_VERSION }))
}

/// Reports the server's version, engine and counts.
async fn info(axum::extract::State(host): axum::extract::State<Host>) -> Response {
    let sandboxes = host.list();
    let count = |wanted: &[&str]| sandboxes.iter().filter(|info| wanted.contains(&info.state.name())).count();
    let facts = host.facts();
    let (ready, size) = host.pool();
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    said(&InfoView {
        version: env!("CARGO_PKG_VERSION").into(),
        engine: facts.engine.into(),
        engine_version: facts.engine_version,
        acceleration: host.acceleration().name().into(),
        kernel_version: text(system.release()),
        operating_system: text(system.sysname()),
        architecture: text(system.machine()),
        name: text(system.nodename()),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        memory_bytes: {
            let memory = rustix::system::sysinfo();
            memory.totalram.saturating_mul(u64::from(memory.mem_unit))
        },
        sandboxes: sandboxes.len(),
        sandboxes_running: count(&["starting", "running", "stopping"]),
        sandboxes_paused: count(&["paused"]),
        sandboxes_stopped: count(&["created", "stopped", "failed"]),
        max_sandboxes: facts.max_sandboxes,
        images: host.list_images().await.map_or(0, |images| images.len()),
        pool_ready: ready,
        pool_size: size,
        directory: facts.dir.display().to_string(),
        persistent_directory: facts.boxes.map(|dir| dir.display().to_string()).unwrap_or_default(),
    })
}

async fn health(axum::extract::State(host): axum::extract::State<Host>) -> Response {
    let (ready, size) = host.pool();
    said(&json!({
        "status": "healthy",
        "version": env!("CARGO_PKG_VERSION"),
        "engine": host.engine(),
        "acceleration": host.acceleration().name(),
        "sandboxes": host.list().len(),
        "panics": panics::count(),
        "pool": { "ready": ready, "size": size },
    }))
}

/// Size of a template's VM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateQuery {
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) disk_mb: u32,
}

/// `GET /v1/template`
async fn template(
    axum::extract::State(host): axum::extract::State<Host>,
    query: Result<Query<TemplateQuery>, QueryRejection>,
) -> Answered {
    let TemplateQuery { vcpus, memory_mb, disk_mb } = asked(query)?;
    let resources = ResourceConfig { vcpus, memory_mb, disk_mb, ..ResourceConfig::default() };
    BoxConfig { resources: resources.clone(), ..BoxConfig::default() }.validate()?;
    Ok(said(&json!({ "making": host.is_making_template(&resources) })))
}

async fn unknown() -> Answer {
    Failure::api(
        axum::http::StatusCode::NOT_FOUND,
        crate::failure::Kind::Invalid,
        "the API has no such endpoint",
    )
    .into()
}

fn said(value: &impl Serialize) -> Response {
    axum::response::Json(value).into_response()
}

/// The query of a request.
fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Answered<T> {
    query.map(|Query(query)| query).map_err(|error| Failure::argument(error.body_text()).into())
}

/// The JSON of a request.
fn told<T>(json: Result<Json<T>, JsonRejection>) -> Answered<T> {
    json.map(|Json(value)| value).map_err(|error| Failure::argument(error.body_text()).into())
}
