//! `create_context`.

use std::collections::BTreeMap;

use bouvet_host::{Context, ContextRequest, Program};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::execute_code::program;
use crate::calendar;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// python, python3 or py; node, nodejs, javascript or js. In any case.
    language: String,
    /// Its working directory; the sandbox's if left out.
    #[serde(default)]
    cwd: String,
    /// Environment variables for all that runs in it.
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Created {
    /// Names the context in execute_code.
    context_id: String,
    /// python or node.
    language: String,
    /// When it was created, in RFC 3339.
    created_at: String,
}

#[tool_router(router = create_context_tool, vis = "pub(super)")]
impl Server {
    /// Create a context in a sandbox: a Python or Node.js interpreter that keeps its variables, as a notebook does.
    /// Pass its context_id to execute_code. It lives until destroy_context, the end of its sandbox, or until code in
    /// it ends it. A sandbox may have eight.
    #[tool(annotations(
        title = "Create a context",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn create_context(&self, Parameters(args): Parameters<Args>) -> Result<Json<Created>, Failure> {
        let Args { sandbox_id, language, cwd, env } = args;
        let program = context_program(&language).ok_or_else(|| Failure::no_context_language(&language))?;
        let request = ContextRequest { cwd, env, ..ContextRequest::new(program) };
        let context = self.find(&sandbox_id)?.create_context(request).await?;
        Ok(Json(Created {
            context_id: context.id.to_string(),
            language: language_of(&context).to_owned(),
            created_at: calendar::seconds(context.created_at),
        }))
    }
}

/// The interpreter of a context in this language.
fn context_program(language: &str) -> Option<Program> {
    program(language).filter(|program| matches!(program, Program::Python | Program::Node))
}

/// The language of a context, by the first of its names.
pub(super) fn language_of(context: &Context) -> &'static str {
    if context.program == Program::Node { "node" } else { "python" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_of_python_and_node() {
        for (name, expected) in
            [("Python3", Some(Program::Python)), ("js", Some(Program::Node)), ("bash", None), ("ruby", None)]
        {
            assert_eq!(context_program(name), expected, "{name}");
        }
    }
}
