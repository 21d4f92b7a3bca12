//! `bouvet inspect`.

use std::time::SystemTime;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::outcome::{Connection, Failed};
use super::run::image;
use super::template::Template;
use super::{ps, table};
use crate::api::client::{CallError, NOT_FOUND, path};
use crate::api::shape::SandboxView;
use crate::failure;

#[derive(Debug, Args)]
#[command(
    after_help = "A template has our own fields, as `bouvet inspect` prints them, and docker's where the thing \
    exists: `{{.Id}}`, `{{.Name}}` (without docker's slash), `{{.State.Status}}`, `{{.State.Running}}`, \
    `{{.State.ExitCode}}`, `{{.State.OOMKilled}}`, `{{.Config.Image}}`, `{{.Config.Env}}`, `{{.Config.Labels}}`, \
    `{{.HostConfig.RestartPolicy.Name}}`, `{{.NetworkSettings.Ports}}`, `{{.NetworkSettings.IPAddress}}`."
)]
pub(crate) struct Line {
    /// Go template, as in `{{.State.Status}}` or `{{json .Config}}`
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Only sandboxes, or only images
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Kind>,
    /// Names or ids of sandboxes or images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Kind of thing to inspect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Docker's word for a sandbox.
    Container,
    Sandbox,
    Image,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.template().map(drop)
    }

    fn template(&self) -> Result<Option<Template>, Failed> {
        let format = self.format.as_deref();
        // As docker has it.
        let format = if format == Some("json") { Some("{{json .}}") } else { format };
        format.map(Template::parse).transpose()
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let template = line.template()?;
    let mut found: Vec<Value> = Vec::new();
    for name in &line.names {
        let value = find(name, line.kind, connection).await?;
        match &template {
            Some(template) => {
                let value = match serde_json::from_value::<SandboxView>(value.clone()) {
                    Ok(view) => by_dockers_names(&view, value, connection).await,
                    Err(_) => image_by_dockers_names(value),
                };
                table::line(&template.render(&value)?)?;
            }
            None => found.push(value),
        }
    }
    if template.is_none() {
        table::json(&found)?;
    }
    Ok(0)
}

async fn find(name: &str, kind: Option<Kind>, connection: &Connection) -> Result<Value, Failed> {
    let is_image = kind == Some(Kind::Image);
    if !is_image {
        match connection.client.get(&path(&["sandboxes", name], &[])).await {
            Err(CallError::Refused(failure)) if failure.kind == NOT_FOUND && kind.is_none() => {}
            Err(CallError::NoServer(missing)) if kind.is_none() => {
                return find_image(name, connection, CallError::from(missing).into()).await;
            }
            sandbox => return Ok(sandbox?),
        }
    }
    let what = if is_image { "there is no image" } else { "there is no sandbox and no image" };
    find_image(name, connection, Failed::new(format!("{what} `{}`", name.escape_debug()))).await
}

/// The image of this name; `missing` if there is none.
async fn find_image(name: &str, connection: &Connection, missing: Failed) -> Result<Value, Failed> {
    match connection.client.get(&path(&["image"], &[("name", &image(name)?)])).await {
        Err(CallError::Refused(failure)) if failure.kind == failure::Kind::NoImage.name() => Err(missing),
        found => Ok(found?),
    }
}

/// Our own fields, and docker's.
async fn by_dockers_names(view: &SandboxView, ours: Value, connection: &Connection) -> Value {
    let network = connection.client.get::<Value>(&path(&["sandboxes", &view.id, "network"], &[])).await;
    // Without a network there is no address.
    let addresses =
        network.ok().and_then(|network| network["addresses"].as_array().cloned()).unwrap_or_default();
    let address = addresses.first().cloned().unwrap_or_else(|| "".into());
    let config = &ours["config"];
    let env = config["extra_env"].as_array().cloned().unwrap_or_default();
    let env: Vec<_> =
        env.iter().filter_map(|pair| Some(format!("{}={}", pair[0].as_str()?, pair[1].as_str()?))).collect();
    let (policy, retries) = view_restart(config);
    let megabytes = config["resources"]["memory_mb"].as_u64().unwrap_or(0);
    let docker = json!({
        "Id": view.id,
        "Name": view.name,
        "Created": view.created_at,
        "Path": view.command.first().cloned().unwrap_or_default(),
        "Args": view.command.get(1..).unwrap_or_default(),
        "Image": ps::image(view),
        "RestartCount": view.restarts,
        "State": state(view),
        "Config": {
            "Hostname": if view.name.is_empty() { format!("sandbox-{}", view.short_id()) } else { view.name.clone() },
            "User": config["user"],
            "Env": env,
            "Cmd": config["cmd"],
            "Entrypoint": config["entrypoint_override"],
            "Image": ps::image(view),
            "WorkingDir": config["working_dir"],
            "Labels": view.labels,
            "Tty": view.tty,
            "OpenStdin": view.stdin_open,
        },
        "HostConfig": {
            "Binds": config["volumes"],
            "NetworkMode": view.network,
            "RestartPolicy": { "Name": policy, "MaximumRetryCount": retries },
            "AutoRemove": config["auto_remove"],
            "Privileged": config["privileged"],
            "ReadonlyRootfs": config["read_only"],
            "CapAdd": config["cap_add"],
            "CapDrop": config["cap_drop"],
            "Memory": megabytes << 20,
            "NanoCpus": config["resources"]["vcpus"].as_u64().unwrap_or(0) * 1_000_000_000,
        },
        "NetworkSettings": {
            "IPAddress": address,
            "Ports": ports(view),
            "Networks": { view.network.as_str(): { "IPAddress": address } },
        },
    });
    merged(ours, docker)
}

fn view_restart(config: &Value) -> (String, u64) {
    let text = config["restart"].as_str().unwrap_or_default();
    let (name, retries) = text.split_once(':').unwrap_or((text, "0"));
    let name = if name.is_empty() { "no" } else { name };
    (name.to_owned(), retries.parse().unwrap_or(0))
}

fn state(view: &SandboxView) -> Value {
    let state = view.state.as_str();
    let never = "0001-01-01T00:00:00Z";
    json!({
        "Status": if state == "failed" { "dead" } else { ps::state(view) },
        "Running": matches!(state, "running" | "paused"),
        "Paused": state == "paused",
        "Restarting": view.restarting,
        "OOMKilled": view.out_of_memory,
        "Dead": state == "failed",
        "ExitCode": view.exit_code.unwrap_or(if state == "failed" { 128 + 9 } else { 0 }),
        "Error": view.reason.as_deref().unwrap_or_default(),
        "StartedAt": view.started_at.as_deref().unwrap_or(never),
        "FinishedAt": view.finished_at.as_deref().unwrap_or(never),
        "StatusText": ps::status(view, SystemTime::now()),
    })
}

fn ports(view: &SandboxView) -> Map<String, Value> {
    let mut ports = Map::new();
    for port in &view.ports {
        let list = ports.entry(port.guest()).or_insert_with(|| Value::Array(Vec::new()));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({ "HostIp": port.host, "HostPort": port.host_port.to_string() }));
        }
    }
    ports
}

/// Our own fields of an image, and docker's.
fn image_by_dockers_names(ours: Value) -> Value {
    let docker = json!({
        "Id": ours["id"],
        "RepoTags": [ours["reference"]],
        "Size": ours["size_bytes"],
    });
    merged(ours, docker)
}

fn merged(ours: Value, docker: Value) -> Value {
    match (ours, docker) {
        (Value::Object(mut ours), Value::Object(docker)) => {
            ours.extend(docker);
            Value::Object(ours)
        }
        (_, docker) => docker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_dockers_fields() {
        let view = |name: &str| SandboxView { state: name.into(), ..SandboxView::default() };
        let of = |view: &SandboxView| {
            let state = state(view);
            (state["Status"].clone(), state["Running"].clone(), state["ExitCode"].clone())
        };
        assert_eq!(of(&view("running")), (json!("running"), json!(true), json!(0)));
        let stopped = SandboxView { exit_code: Some(3), ..view("stopped") };
        assert_eq!(of(&stopped), (json!("exited"), json!(false), json!(3)));
        let again = SandboxView { restarting: true, ..stopped };
        assert_eq!(of(&again).0, json!("restarting"));
        assert_eq!(of(&view("failed")), (json!("dead"), json!(false), json!(137)));
        assert_eq!(view_restart(&json!({ "restart": "on-failure:3" })), ("on-failure".into(), 3));
        assert_eq!(view_restart(&json!({ "restart": "" })), ("no".into(), 0));
    }
}
