//! `list_sandboxes`.

use bouvet_host::{SandboxInfo, State};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
// Clients exist that insist on a list, even of nothing.
#[schemars(extend("properties" = {}))]
struct NoArgs {}

#[derive(Debug, Serialize, JsonSchema)]
struct Sandboxes {
    /// Oldest first.
    sandboxes: Vec<Entry>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Entry {
    /// Names the sandbox in every call.
    sandbox_id: String,
    /// starting, running, paused, stopping, stopped, failed or destroying.
    state: String,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    reason: Option<String>,
    /// When it was created, in RFC 3339.
    created_at: String,
    /// When it will be destroyed at the latest; left out if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    expires_at: Option<String>,
    /// Its name for people, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    name: Option<String>,
    /// Its OCI image, if it was made of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    image: Option<String>,
    /// Its memory in MiB.
    memory_mib: u32,
    /// Its virtual CPUs.
    vcpu_count: u32,
    /// What made its VM.
    engine: String,
    /// What executes its instructions: kvm (hardware), tcg (software emulation) or kvm-software (KVM without hardware).
    acceleration: String,
}

#[tool_router(router = list_sandboxes_tool, vis = "pub(super)")]
impl Server {
    /// List all sandboxes that exist, with their state and resources.
    #[tool(annotations(
        title = "List sandboxes",
        read_only_hint = true,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn list_sandboxes(&self, _: Parameters<NoArgs>) -> Result<Json<Sandboxes>, Failure> {
        let sandboxes = self.host.list().into_iter().map(|info| self.entry(info)).collect();
        Ok(Json(Sandboxes { sandboxes }))
    }
}

impl Server {
    fn entry(&self, info: SandboxInfo) -> Entry {
        Entry {
            sandbox_id: info.id.to_string(),
            state: info.state.name().to_owned(),
            reason: match info.state {
                State::Failed(reason) => Some(reason),
                _ => None,
            },
            created_at: calendar::seconds(info.created_at),
            expires_at: info.expires_at.map(calendar::seconds),
            name: Some(info.config.name).filter(|name| !name.is_empty()),
            image: Some(info.config.image).filter(|image| !image.is_empty()),
            memory_mib: info.config.resources.memory_mb,
            vcpu_count: info.config.resources.vcpus,
            engine: self.host.engine().to_owned(),
            acceleration: self.host.acceleration().name().to_owned(),
        }
    }
}
