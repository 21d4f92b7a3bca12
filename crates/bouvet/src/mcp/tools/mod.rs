//! The tools, one file each.

mod create_context;
mod create_sandbox;
mod destroy_context;
mod destroy_sandbox;
mod exec;
mod execute_code;
mod expose_port;
mod list_contexts;
mod list_directory;
mod list_sandboxes;
mod network_policy;
mod read_file;
mod results;
mod run_command;
mod write_file;

use std::sync::Arc;

use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::model::Tool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Server;
use super::arguments::without_own_formats;

/// All of them.
pub(super) fn table() -> ToolRouter<Server> {
    let mut table = routes();
    for route in table.map.values_mut() {
        let Tool { input_schema, output_schema, .. } = &mut route.attr;
        for schema in [Some(input_schema), output_schema.as_mut()].into_iter().flatten() {
            let mut plain = Value::Object((**schema).clone());
            without_own_formats(&mut plain);
            if let Value::Object(plain) = plain {
                *schema = Arc::new(plain);
            }
        }
    }
    table
}

fn routes() -> ToolRouter<Server> {
    Server::create_sandbox_tool()
        + Server::destroy_sandbox_tool()
        + Server::list_sandboxes_tool()
        + Server::execute_code_tool()
        + Server::run_command_tool()
        + Server::read_file_tool()
        + Server::write_file_tool()
        + Server::list_directory_tool()
        + Server::create_context_tool()
        + Server::list_contexts_tool()
        + Server::destroy_context_tool()
        + Server::network_policy_tool()
        + Server::expose_port_tool()
}

/// The argument of tools that need nothing else.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SandboxArgs {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
}

/// The result of tools that have nothing to tell but that they succeeded.
#[derive(Debug, Serialize, JsonSchema)]
struct Success {
    /// Always true: failures are errors.
    success: bool,
}
