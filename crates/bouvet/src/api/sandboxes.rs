//! Sandboxes and their life.

use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use bouvet_host::{BoxConfig, Host, Refusal, Signal, State as Life};
use serde::Deserialize;
use serde_json::json;

use super::shape::{AttestationView, ExitView, SandboxView, StatsView};
use super::{Answered, asked, end, said, told};
use crate::failure::{Failure, Kind};

/// The longest grace period of a stop, in seconds: a day.
pub(crate) const MAX_GRACE_SECS: u64 = 24 * 3600;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Those too that hold no VM.
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StopQuery {
    /// The signal that asks its main program, instead of its image's.
    signal: Option<String>,
    /// Left out: by the sandbox's description.
    grace_secs: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KillQuery {
    #[serde(default = "kill_signal")]
    signal: String,
}

fn kill_signal() -> String {
    "KILL".into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateQuery {
    #[serde(default = "yes")]
    start: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenameQuery {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DestroyQuery {
    #[serde(default)]
    force: bool,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

pub(super) async fn list(State(host): State<Host>, query: Asked<ListQuery>) -> Answered {
    let ListQuery { all } = asked(query)?;
    let mut views: Vec<_> = host.list().iter().map(SandboxView::from).collect();
    views.retain(|view| all || view.is_live());
    Ok(said(&views))
}

pub(super) async fn create(
    State(host): State<Host>,
    query: Asked<CreateQuery>,
    config: Result<Json<BoxConfig>, JsonRejection>,
) -> Answered {
    let CreateQuery { start } = asked(query)?;
    let config = told(config)?;
    let sandbox = if start { host.create(config).await? } else { host.create_stopped(config).await? };
    Ok((StatusCode::CREATED, said(&SandboxView::from(&sandbox.info()))).into_response())
}

pub(super) async fn inspect(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    let info = host.find(&name)?.info();
    let view = serde_json::to_value(SandboxView::from(&info)).unwrap_or_default();
    let mut view = view.as_object().cloned().unwrap_or_default();
    view.insert("config".into(), serde_json::to_value(&info.config).unwrap_or_default());
    Ok(said(&view))
}

pub(super) async fn destroy(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<DestroyQuery>,
) -> Answered {
    let DestroyQuery { force } = asked(query)?;
    let sandbox = host.find(&name)?;
    let state = sandbox.state();
    if !force
        && !matches!(
            state,
            Life::Created | Life::Stopped(_) | Life::Failed(_) | Life::Destroying | Life::Destroyed
        )
    {
        let fact = format!("the sandbox is {}: stop it first, or use rm -f", state.name());
        return Err(Failure::api(StatusCode::CONFLICT, Kind::Running, fact).into());
    }
    sandbox.destroy().await;
    Ok(said(&json!({})))
}

pub(super) async fn start(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    host.find(&name)?.start().await?;
    Ok(said(&json!({})))
}

pub(super) async fn stop(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<StopQuery>,
) -> Answered {
    let StopQuery { grace_secs, signal } = asked(query)?;
    let signal: Option<Signal> = signal.map(|name| name.parse()).transpose().map_err(Failure::argument)?;
    let sandbox = host.find(&name)?;
    let grace = match grace_secs {
        Some(seconds) if seconds > MAX_GRACE_SECS => {
            let fact = format!("`grace_secs` is {seconds} s; 0 to {MAX_GRACE_SECS} s are allowed");
            return Err(Failure::argument(fact).into());
        }
        Some(seconds) => Duration::from_secs(seconds),
        None => sandbox.stop_grace(),
    };
    let stopped = match signal {
        Some(signal) => sandbox.stop_by(signal, grace).await,
        None => sandbox.stop(grace).await,
    };
    match stopped {
        // It is what was wanted.
        Ok(()) | Err(bouvet_host::ControlError::Refused(Refusal::Stopped(_))) => Ok(said(&json!({}))),
        Err(error) => Err(error.into()),
    }
}

/// `POST /v1/sandboxes/{sandbox}/rename?name=…`
pub(super) async fn rename(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<RenameQuery>,
) -> Answered {
    let RenameQuery { name: new } = asked(query)?;
    host.rename(&host.find(&name)?, &new).await?;
    Ok(said(&json!({})))
}

pub(super) async fn pause(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    host.find(&name)?.pause().await?;
    Ok(said(&json!({})))
}

pub(super) async fn resume(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    host.find(&name)?.resume().await?;
    Ok(said(&json!({})))
}

pub(super) async fn kill(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Asked<KillQuery>,
) -> Answered {
    let signal: Signal = asked(query)?.signal.parse().map_err(Failure::argument)?;
    let sandbox = host.find(&name)?;
    match sandbox.signal(signal).await {
        // Without a main program there is nothing else that could be meant.
        Err(bouvet_host::ExecError::Refused(Refusal::NoMain)) if signal == Signal::KILL => {
            sandbox.stop(Duration::ZERO).await?;
        }
        sent => sent?,
    }
    Ok(said(&json!({})))
}

pub(super) async fn wait(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    let events = host.events();
    let stop = end::ended(events, host.find(&name)?).await?;
    Ok(said(&ExitView::from(stop)))
}

pub(super) async fn stats(State(host): State<Host>, Path(name): Path<String>) -> Answered<Response> {
    let stats = host.find(&name)?.stats().await?;
    Ok(said(&StatsView {
        cpu_us: stats.cpu_us,
        memory_bytes: stats.memory_bytes,
        memory_limit_bytes: stats.memory_limit_bytes,
        pids: stats.pids,
        pids_limit: stats.pids_limit,
    }))
}

pub(super) async fn attest(
    State(host): State<Host>,
    Path(name): Path<String>,
    wanted: Result<Json<AttestationView>, JsonRejection>,
) -> Answered {
    let AttestationView { report_data } = told(wanted)?;
    let report_data = hex::decode(&report_data)
        .map_err(|_| Failure::argument("`report_data` must be pairs of hexadecimal digits"))?;
    Ok(said(&host.find(&name)?.attest(&report_data)?))
}
