//! `write_file`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Success;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The file; relative paths start in the working directory. Missing directories are made.
    path: String,
    /// The content, at most 10 MiB.
    content: String,
    /// Whether content is base64, for bytes that are not text; false if left out.
    #[serde(default)]
    is_base64: bool,
    /// Whether to add to the end of the file instead of replacing it; false if left out.
    #[serde(default)]
    append: bool,
}

#[tool_router(router = write_file_tool, vis = "pub(super)")]
impl Server {
    /// Write a file of a sandbox, whole or not at all; or add to its end. At most 10 MiB a call.
    #[tool(annotations(
        title = "Write a file",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn write_file(&self, Parameters(args): Parameters<Args>) -> Result<Json<Success>, Failure> {
        let sandbox = self.find(&args.sandbox_id)?;
        let content = if args.is_base64 {
            let decoded = STANDARD.decode(args.content);
            decoded.map_err(|error| Failure::argument(format!("`content` is not base64: {error}")))?
        } else {
            args.content.into_bytes()
        };
        sandbox.write(&args.path, content.into(), args.append).await?;
        Ok(Json(Success { success: true }))
    }
}
