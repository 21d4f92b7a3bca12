//! The MCP server: what it says of itself, and the table of its tools.

mod arguments;
pub(crate) mod intake;
pub(crate) mod message;
mod params;
mod progress;
pub(crate) mod stdio;
mod tools;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bouvet_host::{BoxConfig, Host, Sandbox};
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::ToolCallContext;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CustomRequest, CustomResult, ErrorCode,
    Implementation, IntoContents as _, JsonObject, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, tool_handler};
use tracing::debug;

use crate::config::Registries;
use crate::failure::Failure;
use crate::http::budget::Charge;
use crate::{log, panics};

const INSTRUCTIONS: &str = "Bouvet gives you real, isolated Linux computers: each sandbox is a virtual machine with its \
own kernel, Python 3, Node.js, Bash and Rust, root rights, a disk and, unless you ask for one, no network. Call create_sandbox first and keep \
its sandbox_id; files and background processes stay between calls until destroy_sandbox. execute_code runs a \
program, run_command a shell command line; both return the exit code and what was printed. For work in steps, \
create_context makes a Python or Node.js context in which execute_code keeps variables from call to call, as a \
notebook does, and shows values, tables and figures. A sandbox of another image has what is in that image. One that \
is refused a connection tells why in network_policy.";

/// What clients may have of the server's operator beside a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Grants {
    /// Where their images come from.
    pub(crate) registries: Registries,
    /// What their sandboxes may reach at most, as rules. `None`: they get no network.
    pub(crate) egress: Option<Vec<String>>,
    /// Where ports are listened on that they expose. `None`: they expose none.
    pub(crate) expose: Option<IpAddr>,
}

const EXPOSING: &str =
    "expose_port gives the address at which a server in a sandbox is reached from outside.";

/// The server of one client. Cheap to make; all share the host.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    host: Host,
    /// A sandbox whose creator asked for nothing special.
    sandbox: Arc<BoxConfig>,
    grants: Arc<Grants>,
    tools: Arc<ToolRouter<Self>>,
}

impl Server {
    pub(crate) fn new(host: Host, sandbox: BoxConfig, grants: Grants) -> Self {
        let mut tools = tools::table();
        if grants.expose.is_none() {
            tools.remove_route("expose_port");
        }
        Self { host, sandbox: Arc::new(sandbox), grants: Arc::new(grants), tools: Arc::new(tools) }
    }

    /// The sandbox that a client names.
    pub(crate) fn find(&self, id: &str) -> Result<Sandbox, Failure> {
        let found = id.parse().ok().and_then(|id| self.host.get(id));
        found.ok_or_else(|| Failure::unknown_sandbox(id))
    }
}

/// The tools that this server may have.
#[cfg(test)]
pub(crate) fn tools() -> Vec<rmcp::model::Tool> {
    tools::table().list_all()
}

/// The arguments of a call on their way around the MCP library, in the extensions of an HTTP request.
#[derive(Debug, Clone)]
pub(crate) struct Arguments(Arc<Carried>);

#[derive(Debug)]
struct Carried {
    arguments: Mutex<Option<JsonObject>>,
    /// What the memory for the arguments was taken from, until the call has ended.
    _charge: Charge,
}

impl Arguments {
    pub(crate) fn new(arguments: Option<JsonObject>, charge: Charge) -> Self {
        Self(Arc::new(Carried { arguments: Mutex::new(arguments), _charge: charge }))
    }

    /// The arguments of the call in `context`, if they came with an HTTP request.
    fn take(context: &RequestContext<RoleServer>) -> Option<JsonObject> {
        let request = context.extensions.get::<http::request::Parts>()?;
        let Self(carried) = request.extensions.get::<Self>()?;
        carried.arguments.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The methods of this server that every revision has. A request of one that cannot be read as such has wrong
/// parameters.
const METHODS: [&str; 3] = ["server/discover", "tools/call", "tools/list"];

/// The methods of this server that revision 2026-07-28 removed.
const REMOVED_METHODS: [&str; 2] = ["initialize", "ping"];

/// Whether `tool` tells callers who ask for it how it is getting on.
pub(crate) fn reports_progress(tool: &str) -> bool {
    matches!(tool, "execute_code" | "run_command")
}

/// Characters of an unknown method that its error repeats.
const MAX_METHOD_CHARS: usize = 64;

fn unknown_method(method: &str, is_modern: bool) -> String {
    let removed = if is_modern { &[][..] } else { &REMOVED_METHODS[..] };
    let known = METHODS.iter().chain(removed).copied().collect::<Vec<_>>().join(", ");
    let method: String = method.chars().take(MAX_METHOD_CHARS).flat_map(char::escape_debug).collect();
    format!("method not found: `{method}`; this server has {known}")
}

/// What this server does not have is answered as such, rather than with empty lists.
fn not_offered<T>(method: &str) -> Result<T, ErrorData> {
    Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, format!("this server does not offer {method}"), None))
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("bouvet", env!("CARGO_PKG_VERSION")))
            .with_instructions(match self.grants.expose {
                Some(_) => format!("{INSTRUCTIONS} {EXPOSING}"),
                None => INSTRUCTIONS.to_owned(),
            })
    }

    async fn call_tool(
        &self,
        mut request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = self.tools.get(&request.name) else {
            let names = self.tools.list_all().into_iter().map(|tool| tool.name).collect::<Vec<_>>();
            let text = format!("tool not found: this server has {}", names.join(", "));
            return Err(ErrorData::invalid_params(text, None));
        };
        let given = Arguments::take(&context).or(request.arguments.take()).unwrap_or_default();
        if let Some(arguments) = log::digest_of(&given) {
            debug!(tool = %tool.name, arguments, "call");
        }
        match arguments::fitted(&request.name, &tool.input_schema, given) {
            Ok(arguments) => request.arguments = Some(arguments),
            Err(failure) => return Ok(CallToolResult::error(failure.into_contents()).into()),
        }
        let cancelled = context.ct.clone();
        // Nothing above this would answer the request: rmcp gives each a task of its own.
        let called = panics::caught(self.tools.call(ToolCallContext::new(self, request, context)));
        // What a cancelled call runs or makes ends with it.
        match cancelled.run_until_cancelled(called).await.unwrap_or(Err(Failure::cancelled())) {
            Ok(result) => result,
            Err(failure) => Ok(CallToolResult::error(failure.into_contents()).into()),
        }
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let method = request.method;
        let is_modern = context.protocol_version() >= Some(ProtocolVersion::V_2026_07_28);
        if METHODS.contains(&&*method) || (!is_modern && REMOVED_METHODS.contains(&&*method)) {
            let fault = params::fault(&method, request.params.as_ref());
            let text = fault.unwrap_or_else(|| format!("the `params` are not those of {method}"));
            return Err(ErrorData::invalid_params(text, None));
        }
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, unknown_method(&method, is_modern), None))
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        not_offered("prompts/list")
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        not_offered("resources/list")
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        not_offered("resources/templates/list")
    }
}
