//! `bouvet info`.

use clap::Args;
use serde_json::{Value, json};

use super::outcome::{Connection, Failed};
use super::table;
use super::template::Template;
use crate::api::client::path;
use crate::api::shape::InfoView;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Go template, or `json`: `{{.ServerVersion}}`
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let info: InfoView = connection.client.get(&path(&["info"], &[])).await?;
    match line.format.as_deref() {
        Some("json") => table::line(&fields(&info).to_string())?,
        Some(format) => table::line(&Template::parse(format)?.render(&fields(&info))?)?,
        None => {
            for (name, value) in rows(&info) {
                table::line(&format!("{name}: {}", table::plain(&value)))?;
            }
        }
    }
    Ok(0)
}

/// By docker's names, where the thing exists.
fn fields(info: &InfoView) -> Value {
    json!({
        "ServerVersion": info.version,
        "Containers": info.sandboxes,
        "ContainersRunning": info.sandboxes_running,
        "ContainersPaused": info.sandboxes_paused,
        "ContainersStopped": info.sandboxes_stopped,
        "MaxSandboxes": info.max_sandboxes,
        "Images": info.images,
        "Driver": info.engine,
        "EngineVersion": info.engine_version,
        "Acceleration": info.acceleration,
        "PoolReady": info.pool_ready,
        "PoolSize": info.pool_size,
        "KernelVersion": info.kernel_version,
        "OperatingSystem": info.operating_system,
        "OSType": info.operating_system.to_lowercase(),
        "Architecture": info.architecture,
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "Name": info.name,
        "RootDir": info.directory,
        "PersistentDir": info.persistent_directory,
    })
}

fn rows(info: &InfoView) -> Vec<(&'static str, String)> {
    vec![
        ("Server version", info.version.clone()),
        ("Sandboxes", format!("{} of at most {}", info.sandboxes, info.max_sandboxes)),
        (" Running", info.sandboxes_running.to_string()),
        (" Paused", info.sandboxes_paused.to_string()),
        (" Stopped", info.sandboxes_stopped.to_string()),
        ("Waiting clones", format!("{} of {}", info.pool_ready, info.pool_size)),
        ("Images", info.images.to_string()),
        ("Engine", format!("{} {}", info.engine, info.engine_version)),
        ("Acceleration", info.acceleration.clone()),
        ("Kernel version", info.kernel_version.clone()),
        ("Architecture", info.architecture.clone()),
        ("CPUs", info.cpus.to_string()),
        ("Total memory", table::size(info.memory_bytes)),
        ("Name", info.name.clone()),
        ("Directory", info.directory.clone()),
        ("Persistent sandboxes", info.persistent_directory.clone()),
    ]
}
