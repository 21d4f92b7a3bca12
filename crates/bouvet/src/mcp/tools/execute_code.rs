//! `execute_code`.

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
    /// python; node or javascript; bash, shell or sh; rust.
    language: String,
    /// The source code, at most 10 MiB. A Rust program needs a main function.
    code: String,
    /// When the program and all that it started is killed, in milliseconds.
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = 86_400_000), extend("default" = 60_000))]
    timeout_ms: Option<u64>,
    /// Environment variables for the program.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Its working directory; the home directory if left out.
    #[serde(default)]
    cwd: String,
    /// What it reads from its standard input.
    #[serde(default)]
    stdin: String,
}

#[tool_router(router = execute_code_tool, vis = "pub(super)")]
impl Server {
    /// Run a program in a sandbox, as from a file in its home directory: Python 3.11, Node.js 20 (scripts and
    /// ES modules), Bash, or Rust (compiled, then run). Returns its exit code and what it printed. A program
    /// that fails is a normal result with a non-zero exit_code.
    #[tool(annotations(
        title = "Run code",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn execute_code(
        &self,
        Parameters(args): Parameters<Args>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<Outcome>, Failure> {
        let Args { sandbox_id, language, code, timeout_ms, env, cwd, stdin } = args;
        let request = ExecRequest::new(program(&language)?, code);
        self.run(&sandbox_id, request, Options { timeout_ms, env, cwd, stdin }, &context).await.map(Json)
    }
}

fn program(language: &str) -> Result<Program, Failure> {
    match language.trim().to_ascii_lowercase().as_str() {
        "python" => Ok(Program::Python),
        "node" | "javascript" => Ok(Program::Node),
        "bash" | "shell" | "sh" => Ok(Program::Bash),
        "rust" => Ok(Program::Rust),
        _ => Err(Failure::unknown_language(language)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_go_by_all_their_names_in_any_case() {
        for (name, expected) in [
            ("python", Program::Python),
            ("Python", Program::Python),
            ("node", Program::Node),
            ("JavaScript", Program::Node),
            ("BASH", Program::Bash),
            ("shell", Program::Bash),
            ("sh", Program::Bash),
            ("Rust", Program::Rust),
        ] {
            assert_eq!(program(name), Ok(expected), "{name}");
        }
        assert!(program("cobol").is_err());
    }
}
