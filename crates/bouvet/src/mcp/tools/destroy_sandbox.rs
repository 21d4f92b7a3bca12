//! `destroy_sandbox`.

use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};

use super::{SandboxArgs, Success};
use crate::failure::Failure;
use crate::mcp::Server;

#[tool_router(router = destroy_sandbox_tool, vis = "pub(super)")]
impl Server {
    /// Destroy a sandbox, with all its files and processes. Returns when nothing of it is left. A second call is an error.
    #[tool(annotations(
        title = "Destroy a sandbox",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn destroy_sandbox(
        &self,
        Parameters(args): Parameters<SandboxArgs>,
    ) -> Result<Json<Success>, Failure> {
        self.find(&args.sandbox_id)?.destroy().await;
        Ok(Json(Success { success: true }))
    }
}
