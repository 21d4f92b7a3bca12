//! `destroy_context`.

use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Success;
use super::execute_code::context_named;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The context, as create_context named it.
    context_id: String,
}

#[tool_router(router = destroy_context_tool, vis = "pub(super)")]
impl Server {
    /// Destroy a context, with its variables and all that it started. The sandbox and its files stay.
    #[tool(annotations(
        title = "Destroy a context",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn destroy_context(&self, Parameters(args): Parameters<Args>) -> Result<Json<Success>, Failure> {
        let sandbox = self.find(&args.sandbox_id)?;
        sandbox.destroy_context(context_named(&args.context_id)?).await?;
        Ok(Json(Success { success: true }))
    }
}
