//! `list_contexts`.

use bouvet_host::{Context, ContextState};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::Serialize;

use super::SandboxArgs;
use super::create_context::language_of;
use crate::calendar;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Serialize, JsonSchema)]
struct Contexts {
    /// Oldest first.
    contexts: Vec<Entry>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Entry {
    /// Names the context in execute_code.
    context_id: String,
    /// python or node.
    language: String,
    /// idle, busy or dead.
    state: String,
    /// Why it died, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    reason: Option<String>,
    /// When it was created, in RFC 3339.
    created_at: String,
}

#[tool_router(router = list_contexts_tool, vis = "pub(super)")]
impl Server {
    /// List the contexts of a sandbox, with their language and state.
    #[tool(annotations(
        title = "List contexts",
        read_only_hint = true,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn list_contexts(
        &self,
        Parameters(args): Parameters<SandboxArgs>,
    ) -> Result<Json<Contexts>, Failure> {
        let contexts = self.find(&args.sandbox_id)?.contexts().await?;
        Ok(Json(Contexts { contexts: contexts.iter().map(Entry::from).collect() }))
    }
}

impl From<&Context> for Entry {
    fn from(context: &Context) -> Self {
        let (state, reason) = match context.state {
            ContextState::Idle => ("idle", None),
            ContextState::Busy => ("busy", None),
            ContextState::Dead(death) => ("dead", Some(death.to_string())),
        };
        Self {
            context_id: context.id.to_string(),
            language: language_of(context).to_owned(),
            state: state.to_owned(),
            reason,
            created_at: calendar::seconds(context.created_at),
        }
    }
}
