//! `execute_code`.

use std::collections::BTreeMap;

use bouvet_host::{ContextId, ExecRequest, Program};
use rmcp::handler::server::tool::schema_for_output;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::service::RequestContext;
use rmcp::{RoleServer, tool, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;

use super::exec::{Options, Outcome};
use super::results::{CodeOutcome, RESULT_LIMITS};
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// python, python3 or py; node, nodejs, javascript or js; bash, shell or sh; rust or rs. In any case.
    language: String,
    /// The source code, at most 10 MiB. A Rust program needs a main function.
    code: String,
    /// The context to run in, as create_context named it: code in it sees the variables of the runs before.
    // The second attribute keeps `null`, which is no string, from being published as the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    context_id: Option<String>,
    /// When the program and all that it started is killed, in milliseconds; in a context, interrupted.
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = 86_400_000), extend("default" = 60_000))]
    timeout_ms: Option<u64>,
    /// Environment variables for the program; not in a context, which has its own.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Its working directory; the sandbox's if left out. Not in a context, which has its own.
    #[serde(default)]
    cwd: String,
    /// What it reads from its standard input; not in a context of Node.js.
    #[serde(default)]
    stdin: String,
}

#[tool_router(router = execute_code_tool, vis = "pub(super)")]
impl Server {
    /// Run a program in a sandbox, as from a file in its working directory: Python 3.11, Node.js 20 (scripts and
    /// ES modules), Bash, or Rust (compiled, then run). Returns its exit code and what it printed. A program
    /// that fails is a normal result with a non-zero exit_code. With context_id it is a cell of a notebook: it sees
    /// the variables of the runs before, and its results are the value of its last expression and what it displays
    /// and draws, figures as images. In Python, `!command`, magics and `await` work where IPython is installed.
    #[tool(
        output_schema = schema_for_output::<CodeOutcome>(),
        annotations(
            title = "Run code",
            read_only_hint = false,
            destructive_hint = false,
            idempotent_hint = false,
            open_world_hint = true
        )
    )]
    async fn execute_code(
        &self,
        Parameters(args): Parameters<Args>,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResult, Failure> {
        let Args { sandbox_id, language, code, context_id, timeout_ms, env, cwd, stdin } = args;
        let program = program(&language).ok_or_else(|| Failure::unknown_language(&language))?;
        let is_unseen = context_id.is_none() && program == Program::Python && shows_figures(&code);
        let mut request = ExecRequest::new(program, code);
        request.context = context_id.as_deref().map(context_named).transpose()?;
        request.result_limits = RESULT_LIMITS;
        let options = Options { timeout_ms, env, cwd, stdin };
        let (result, sandbox) = self.run(&sandbox_id, request, options, &context).await?;
        let advise = |outcome: &mut Outcome| {
            outcome.hint = is_unseen.then(|| UNSEEN_FIGURES.to_owned());
            self.advise(outcome, &sandbox);
        };
        Ok(CodeOutcome::result(result, &sandbox, advise).await)
    }
}

const UNSEEN_FIGURES: &str = "figures are shown only in a context: pass the `context_id` of create_context, or save them to \
                              a file with savefig";

/// Whether Python code asks matplotlib to show figures, as far as its text tells.
fn shows_figures(code: &str) -> bool {
    code.contains("matplotlib") && code.contains(".show(")
}

/// The name of a context, as a client gives it.
pub(super) fn context_named(id: &str) -> Result<ContextId, Failure> {
    id.parse().map_err(|_| Failure::unknown_context(id))
}

/// The language of this name, as a client gives it.
pub(super) fn program(language: &str) -> Option<Program> {
    match language.trim().to_ascii_lowercase().as_str() {
        "python" | "python3" | "py" => Some(Program::Python),
        "node" | "nodejs" | "javascript" | "js" => Some(Program::Node),
        "bash" | "shell" | "sh" => Some(Program::Bash),
        "rust" | "rs" => Some(Program::Rust),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_figures_are_found_in_code() {
        assert!(shows_figures("import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()"));
        assert!(!shows_figures("import matplotlib.pyplot as plt\nplt.savefig('x.png')"));
        assert!(!shows_figures("window.show()"));
    }

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
            ("Python3", Program::Python),
            ("py", Program::Python),
            ("NodeJS", Program::Node),
            ("JS", Program::Node),
            ("rs", Program::Rust),
        ] {
            assert_eq!(program(name), Some(expected), "{name}");
        }
        assert_eq!(program("cobol"), None);
    }
}
