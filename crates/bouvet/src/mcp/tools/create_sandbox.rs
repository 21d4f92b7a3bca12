//! `create_sandbox`.

use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timestamp;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Args {
    /// Memory in MiB.
    #[schemars(with = "u32", range(min = 128), extend("default" = 256))]
    memory_mib: Option<u32>,
    /// Virtual CPUs.
    #[schemars(with = "u32", range(min = 1, max = 32), extend("default" = 1))]
    vcpu_count: Option<u32>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Created {
    /// Names the sandbox in every later call.
    sandbox_id: String,
    /// Its memory in MiB.
    memory_mib: u32,
    /// Its virtual CPUs.
    vcpu_count: u32,
    /// When it will be destroyed at the latest, in RFC 3339; left out if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    expires_at: Option<String>,
}

#[tool_router(router = create_sandbox_tool, vis = "pub(super)")]
impl Server {
    /// Create a new isolated sandbox: a Linux virtual machine of its own, with Python 3.11, Node.js 20, Bash
    /// and Rust, root rights, a disk and no network. Returns its sandbox_id. It lives, with its files and
    /// background processes, until destroy_sandbox or its expires_at.
    #[tool(annotations(
        title = "Create a sandbox",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn create_sandbox(&self, Parameters(args): Parameters<Args>) -> Result<Json<Created>, Failure> {
        let mut config = self.sandbox.clone();
        let resources = &mut config.resources;
        resources.memory_mb = args.memory_mib.unwrap_or(resources.memory_mb);
        resources.vcpus = args.vcpu_count.unwrap_or(resources.vcpus);
        let info = self.host.create(config).await?.info();
        Ok(Json(Created {
            sandbox_id: info.id.to_string(),
            memory_mib: info.config.resources.memory_mb,
            vcpu_count: info.config.resources.vcpus,
            expires_at: info.expires_at.map(timestamp),
        }))
    }
}
