//! `bouvet version`.

use clap::Args;
use serde_json::{Value, json};

use super::outcome::Failed;
use super::table;
use super::template::Template;
use crate::api::client::{Client, ConnectError, path};
use crate::config::Config;

#[derive(Debug, Args)]
pub(crate) struct Line {
    /// A template of Go's, or `json`: `{{.Client.Version}}`, `{{.Server.Version}}`
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

pub(super) async fn run(line: &Line, config: &Config) -> Result<u8, Failed> {
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let client = json!({ "Version": env!("CARGO_PKG_VERSION"), "ApiVersion": "1", "Platform": platform });
    let server = match Client::connect(&config.socket).await {
        Err(ConnectError::NoServer(_)) => Value::Null,
        Err(ConnectError::Call(error)) => return Err(error.into()),
        Ok(server) => {
            let info: Value = server.get(&path(&["info"], &[])).await?;
            json!({
                "Version": info["version"],
                "ApiVersion": "1",
                "Engine": info["engine"],
                "EngineVersion": info["engine_version"],
                "Acceleration": info["acceleration"],
            })
        }
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
    if all["Server"].is_null() {
        return Err(Failed::new("no server answers").hint("start one with `bouvet serve`"));
    }
    Ok(0)
}
