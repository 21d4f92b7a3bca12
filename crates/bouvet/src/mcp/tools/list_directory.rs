//! `list_directory`.

use std::time::{Duration, UNIX_EPOCH};

use bouvet_host::ListEntry;
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar;
use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The directory; relative paths start in the working directory, which `.` is.
    path: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Listing {
    /// Sorted by name.
    entries: Vec<Entry>,
    /// Whether there are more than these.
    truncated: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Entry {
    /// Its name, without the directory.
    name: String,
    /// Whether it is a directory, or a link to one.
    is_dir: bool,
    /// Its size in bytes.
    size: u64,
    /// file, directory, symlink or other.
    kind: String,
    /// Its permissions in octal, like 0644.
    mode: String,
    /// When its content changed, in RFC 3339.
    modified_at: String,
    /// Where a symlink points to.
    #[serde(skip_serializing_if = "String::is_empty")]
    link_target: String,
}

#[tool_router(router = list_directory_tool, vis = "pub(super)")]
impl Server {
    /// List a directory of a sandbox: names, kinds, sizes, permissions. At most 10000 entries.
    #[tool(annotations(
        title = "List a directory",
        read_only_hint = true,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn list_directory(&self, Parameters(args): Parameters<Args>) -> Result<Json<Listing>, Failure> {
        let listing = self.find(&args.sandbox_id)?.list(&args.path).await?;
        let entries = listing.entries.into_iter().map(Entry::from).collect();
        Ok(Json(Listing { entries, truncated: listing.truncated }))
    }
}

impl From<ListEntry> for Entry {
    fn from(entry: ListEntry) -> Self {
        // The guest may claim any time.
        let since = u64::try_from(entry.modified_unix_s).unwrap_or(0).min(calendar::LAST_UNIX_SECS);
        Self {
            name: entry.name,
            is_dir: entry.is_dir,
            size: entry.size,
            kind: entry.kind.to_owned(),
            mode: format!("{:04o}", entry.mode),
            modified_at: calendar::seconds(UNIX_EPOCH + Duration::from_secs(since)),
            link_target: entry.link_target,
        }
    }
}
