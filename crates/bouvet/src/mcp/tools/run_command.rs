//! `run_command`.

use bouvet_host::{ExecRequest, Program};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, tool, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;

use super::exec::{Options, Outcome};
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The command line, at most 1 MiB, for Bash.
    command: String,
    #[serde(flatten)]
    options: Options,
}

#[tool_router(router = run_command_tool, vis = "pub(super)")]
impl Server {
    /// Run a shell command in a sandbox, as root, in its home directory. Returns its exit code and what it
    /// printed. Processes that it leaves in the background live on.
    #[tool(annotations(
        title = "Run a command",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn run_command(
        &self,
        Parameters(args): Parameters<Args>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<Outcome>, Failure> {
        let request = ExecRequest::new(Program::Command, args.command);
        self.run(&args.sandbox_id, request, args.options, &context).await.map(Json)
    }
}
