//! `bouvet inspect`.

use std::time::SystemTime;

use bouvet_host::VolumeSpec;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::outcome::{Connection, Failed};
use super::run::image;
use super::template::Template;
use super::{ps, table, usage};
use crate::api::client::{CallError, NOT_FOUND, path};
use crate::api::shape::{ImageView, SandboxView};
use crate::failure;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    shown: Shown,
    /// Only sandboxes, or only images
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    object: Option<ObjectType>,
    #[arg(skip)]
    platform: usage::Platform,
}

// Without documentation: it would become the help of the commands that have it.
#[derive(Debug, Args)]
#[command(
    after_help = "A template has our own fields, as `bouvet inspect` prints them, and docker's where the thing \
    exists. Of a sandbox: `{{.Id}}`, `{{.Name}}` (without docker's slash), `{{.State.Status}}`, `{{.State.Running}}`, \
    `{{.State.ExitCode}}`, `{{.State.OOMKilled}}`, `{{.Config.Image}}`, `{{.Config.Env}}`, `{{.Config.Labels}}`, \
    `{{.HostConfig.RestartPolicy.Name}}`, `{{.Mounts}}`, `{{.NetworkSettings.Ports}}`, `{{.NetworkSettings.IPAddress}}`. Of an image: \
    `{{.Id}}`, `{{.RepoTags}}`, `{{.RepoDigests}}`, `{{.Created}}`, `{{.Size}}`, `{{.Architecture}}`, `{{.Os}}`, \
    `{{.Config.Env}}`, `{{.Config.Cmd}}`, `{{.Config.Entrypoint}}`, `{{.Config.User}}`, `{{.Config.WorkingDir}}`, \
    `{{.Config.Labels}}`, `{{.Config.ExposedPorts}}`."
)]
pub(crate) struct Shown {
    /// Go template, as in `{{.State.Status}}` or `{{json .Config}}`
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Names or ids of sandboxes or images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// `image inspect`.
#[derive(Debug, Args)]
pub(crate) struct ImageLine {
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    platform: usage::Platform,
}

/// Where `--workspace` is in the sandbox.
const WORKSPACE: &str = "/workspace";

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ObjectType {
    /// Docker's word for a sandbox.
    Container,
    Sandbox,
    Image,
}

impl Line {
    /// Shows only objects of one type.
    pub(super) fn of(shown: Shown, object: ObjectType) -> Self {
        Self { shown, object: Some(object), platform: usage::Platform::default() }
    }

    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.platform.check()?;
        self.template().map(drop)
    }

    fn template(&self) -> Result<Option<Template>, Failed> {
        let format = self.shown.format.as_deref();
        // As docker has it.
        let format = if format == Some("json") { Some("{{json .}}") } else { format };
        format.map(Template::parse).transpose()
    }
}

impl From<ImageLine> for Line {
    fn from(line: ImageLine) -> Self {
        Self { platform: line.platform, ..Self::of(line.shown, ObjectType::Image) }
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let template = line.template()?;
    let mut found: Vec<Value> = Vec::new();
    for name in &line.shown.names {
        let value = find(name, line.object, connection).await?;
        match &template {
            Some(template) => {
                let value = match serde_json::from_value::<SandboxView>(value.clone()) {
                    Ok(view) => by_dockers_names(&view, value, connection).await,
                    Err(_) => image_by_dockers_names(value, connection).await?,
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

async fn find(name: &str, object: Option<ObjectType>, connection: &Connection) -> Result<Value, Failed> {
    let is_image = object == Some(ObjectType::Image);
    if !is_image {
        match connection.client.get(&path(&["sandboxes", name], &[])).await {
            Err(CallError::Refused(failure)) if failure.kind == NOT_FOUND && object.is_none() => {}
            Err(CallError::NoServer(missing)) if object.is_none() => {
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
        "Mounts": mounts(config),
        "State": state(view),
        "Config": {
            "Hostname": hostname(view, config),
            "User": config["user"],
            "Env": variables(&config["extra_env"]),
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

/// Directories and files of this machine, and file systems in memory.
fn mounts(config: &Value) -> Vec<Value> {
    let texts =
        |field: &str| -> Vec<String> { serde_json::from_value(config[field].clone()).unwrap_or_default() };
    let bind = |source: &str, destination: &str, writable: bool| {
        json!({ "Type": "bind", "Source": source, "Destination": destination,
            "Mode": if writable { "" } else { "ro" }, "RW": writable, "Propagation": "" })
    };
    let mut mounts = Vec::new();
    for text in texts("volumes") {
        let Ok(volume) = VolumeSpec::parse(&text) else { continue };
        mounts.push(bind(&volume.host.to_string_lossy(), &volume.guest, !volume.read_only));
    }
    if let Some(workspace) = config["workspace"].as_str().filter(|path| !path.is_empty()) {
        mounts.push(bind(workspace, WORKSPACE, true));
    }
    for text in texts("tmpfs") {
        let (path, options) = text.split_once(':').unwrap_or((&text, ""));
        let writable = !options.split(',').any(|option| option == "ro");
        mounts.push(json!({ "Type": "tmpfs", "Source": "", "Destination": path, "Mode": options,
            "RW": writable, "Propagation": "" }));
    }
    mounts
}

/// The host name that was asked for; else the sandbox's name, or one made of its id.
fn hostname(view: &SandboxView, config: &Value) -> String {
    match (config["hostname"].as_str().unwrap_or_default(), view.name.as_str()) {
        ("", "") => format!("sandbox-{}", view.short_id()),
        ("", name) | (name, _) => name.to_owned(),
    }
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
async fn image_by_dockers_names(ours: Value, connection: &Connection) -> Result<Value, Failed> {
    let images: Vec<ImageView> = connection.client.get(&path(&["images"], &[])).await?;
    let is_it = |view: &ImageView| match view.id.as_str() {
        // The base images have no ids.
        "" => view.references.iter().any(|name| ours["reference"] == name.as_str()),
        id => ours["id"] == id,
    };
    let references = images.into_iter().find(is_it).map(|view| view.references);
    Ok(image_fields(ours, &references.unwrap_or_default()))
}

/// The same of an image with these names.
fn image_fields(ours: Value, references: &[String]) -> Value {
    let config = &ours["config"];
    let strings = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap_or_default() };
    let set = |list: &Value| -> Map<String, Value> {
        strings(list).into_iter().map(|name| (name, json!({}))).collect()
    };
    let (digests, tags): (Vec<_>, Vec<_>) = references.iter().partition(|name| name.contains('@'));
    let docker = json!({
        "Id": ours["id"],
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config["created"].as_str().unwrap_or_default(),
        "Size": ours["size_bytes"],
        "Architecture": config["architecture"],
        "Os": "linux",
        "Config": {
            "Env": variables(&config["env"]),
            "Cmd": config["cmd"],
            "Entrypoint": config["entrypoint"],
            "User": config["user"],
            "WorkingDir": config["working_dir"],
            "Labels": config["labels"],
            "StopSignal": config["stop_signal"].as_str().unwrap_or_default(),
            "ExposedPorts": set(&config["exposed_ports"]),
            "Volumes": set(&config["volumes"]),
        },
    });
    merged(ours, docker)
}

/// Pairs of names and values, as `NAME=VALUE`.
fn variables(pairs: &Value) -> Vec<String> {
    let pairs = pairs.as_array().map(Vec::as_slice).unwrap_or_default();
    pairs.iter().filter_map(|pair| Some(format!("{}={}", pair[0].as_str()?, pair[1].as_str()?))).collect()
}

/// Fields of both; docker's where both have one.
pub(super) fn merged(ours: Value, docker: Value) -> Value {
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

    #[test]
    fn mounts_have_dockers_fields() {
        let config =
            json!({ "volumes": ["/a:/b:ro", "/c:/d"], "workspace": "/w", "tmpfs": ["/t:size=1m,ro"] });
        let fields = json!({ "Mounts": mounts(&config) });
        let template = "{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}} {{.RW}};{{end}}";
        let text = Template::parse(template).unwrap().render(&fields).unwrap();
        assert_eq!(text, "bind /a /b false;bind /c /d true;bind /w /workspace true;tmpfs  /t false;");
        assert_eq!(mounts(&json!({})), Vec::<Value>::new());
    }

    #[test]
    fn hostname_is_the_one_asked_for() {
        let view = SandboxView { id: "0123456789".into(), name: "web".into(), ..SandboxView::default() };
        assert_eq!(hostname(&view, &json!({ "hostname": "db" })), "db");
        assert_eq!(hostname(&view, &json!({ "hostname": "" })), "web");
        let unnamed = SandboxView { name: String::new(), ..view };
        assert_eq!(hostname(&unnamed, &json!({})), "sandbox-01234567");
    }

    #[test]
    fn images_have_dockers_fields() {
        let config = json!({ "entrypoint": ["/e"], "cmd": ["c"], "env": [["A", "1=2"]], "working_dir": "/w",
            "user": "1:2", "stop_signal": null, "exposed_ports": ["80/tcp"], "volumes": [], "labels": { "l": "v" },
            "architecture": "amd64", "created": "2026-01-01T00:00:00Z" });
        let ours = json!({ "id": "sha256:1", "reference": "a:1", "size_bytes": 5, "config": config });
        let fields = image_fields(ours, &["a:1".into(), "a@sha256:1".into()]);
        for (template, text) in [
            ("{{.Config.Env}} {{.Config.Cmd}} {{.Config.Entrypoint}}", "[A=1=2] [c] [/e]"),
            ("{{.Config.User}} {{.Config.WorkingDir}} {{.Config.Labels.l}}", "1:2 /w v"),
            ("{{.Architecture}}/{{.Os}} {{.Created}} {{.Size}}", "amd64/linux 2026-01-01T00:00:00Z 5"),
            ("{{index .RepoTags 0}} {{.RepoDigests}} {{.config.user}}", "a:1 [a@sha256:1] 1:2"),
            ("{{json .Config.ExposedPorts}}", r#"{"80/tcp":{}}"#),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&fields).unwrap(), text, "{template}");
        }
    }
}
