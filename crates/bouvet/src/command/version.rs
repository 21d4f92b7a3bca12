//! `bouvet version`.

use clap::Args;
use serde_json::{Value, json};

use super::outcome::Failed;
use super::table;
use super::template::Template;
use crate::api::API_VERSION;
use crate::api::client::{Client, ConnectError, path};
use crate::config::Config;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// Go template, or `json`: `{{.Client.Version}}`, `{{.Server.Version}}`
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

pub(super) async fn run(line: &Line, config: &Config) -> Result<u8, Failed> {
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let client = json!({ "Version": env!("CARGO_PKG_VERSION"), "ApiVersion": API_VERSION.to_string(), "Platform": platform,
        "Os": std::env::consts::OS, "Arch": std::env::consts::ARCH });
    let (server, missing) = match Client::connect(&config.socket).await {
        Err(ConnectError::NoServer(missing)) => (Value::Null, Some(missing)),
        Err(ConnectError::Call(error)) => return Err(error.into()),
        Ok(server) => (of_server(&server).await?, None),
    };
    let all = json!({ "Client": client, "Server": server });
    match line.format.as_deref() {
        Some("json") => table::line(&all.to_string())?,
        Some(format) => table::line(&Template::parse(format)?.render(&all)?)?,
        None => {
            for part in ["Client", "Server"] {
                let Some(fields) = all[part].as_object() else { continue };
                table::line(&format!("{part}:"))?;
                for (name, value) in fields {
                    table::line(&format!(" {name}: {}", table::plain(value.as_str().unwrap_or_default())))?;
                }
            }
        }
    }
    // The rule of commands that need a server; this one's own version is known without.
    missing.map_or(Ok(0), |missing| Err(Failed::new(missing)))
}

async fn of_server(server: &Client) -> Result<Value, Failed> {
    let version: Value = server.get(&path(&["version"], &[])).await?;
    let info: Value = server.get(&path(&["info"], &[])).await?;
    Ok(json!({
        "Version": version["version"],
        "ApiVersion": version["api"].to_string(),
        "Os": info["operating_system"].as_str().unwrap_or_default().to_lowercase(),
        "Arch": info["architecture"],
        "Engine": info["engine"],
        "EngineVersion": info["engine_version"],
        "Acceleration": info["acceleration"],
    }))
}
