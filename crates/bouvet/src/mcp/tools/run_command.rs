//! `run_command`.

use std::collections::BTreeMap;

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
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The command line, at most 1 MiB, for Bash.
    command: String,
    /// When the program and all that it started is killed, in milliseconds.
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = 86_400_000), extend("default" = 60_000))]
    timeout_ms: Option<u64>,
    /// Environment variables for the program.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Its working directory; the sandbox's if left out.
    #[serde(default)]
    cwd: String,
    /// What it reads from its standard input.
    #[serde(default)]
    stdin: String,
}

#[tool_router(router = run_command_tool, vis = "pub(super)")]
impl Server {
    /// Run a shell command in a sandbox, as its user (root by default), in its working directory. Returns its exit code and what it
    /// printed. Processes that it leaves in the background live on.
    #[tool(annotations(
        title = "Run a command",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = true
    ))]
    async fn run_command(
        &self,
        Parameters(args): Parameters<Args>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<Outcome>, Failure> {
        let Args { sandbox_id, command, timeout_ms, env, cwd, stdin } = args;
        let request = ExecRequest::new(Program::Command, command);
        let options = Options { timeout_ms, env, cwd, stdin };
        let (result, sandbox) = self.run(&sandbox_id, request, options, &context).await?;
        let mut outcome = Outcome::from(result);
        self.advise(&mut outcome, &sandbox);
        Ok(Json(outcome))
    }
}
