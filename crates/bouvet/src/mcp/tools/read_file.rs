//! `read_file`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bouvet_host::{FileContent, MAX_CONTENT_BYTES};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The file; relative paths start in the working directory.
    path: String,
    /// The byte to start at; 0 if left out.
    #[serde(default)]
    offset: u64,
    /// The most bytes to read. More need another call, from next_offset on.
    #[serde(default = "default_limit")]
    #[schemars(range(min = 1, max = MAX_CONTENT_BYTES))]
    limit_bytes: usize,
}

/// A result carries its content twice, as structure and as text, and the official Rust client takes answers
/// of at most 16 MiB.
const DEFAULT_LIMIT_BYTES: usize = 4 * 1024 * 1024;

fn default_limit() -> usize {
    DEFAULT_LIMIT_BYTES
}

#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Content {
    /// The text, or its bytes in base64 if they are not UTF-8.
    content: String,
    /// Whether content is base64.
    is_base64: bool,
    /// The size of the whole file in bytes.
    size: u64,
    /// Where to go on reading; left out at the end of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    next_offset: Option<u64>,
}

#[tool_router(router = read_file_tool, vis = "pub(super)")]
impl Server {
    /// Read a file of a sandbox: text as it is, other content in base64. At most 10 MiB a call; longer files
    /// are read in parts by next_offset.
    #[tool(annotations(
        title = "Read a file",
        read_only_hint = true,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn read_file(&self, Parameters(args): Parameters<Args>) -> Result<Json<Content>, Failure> {
        let sandbox = self.find(&args.sandbox_id)?;
        if !(1..=MAX_CONTENT_BYTES).contains(&args.limit_bytes) {
            let given = args.limit_bytes;
            return Err(Failure::argument(format!(
                "`limit_bytes` is {given}; 1 to {MAX_CONTENT_BYTES} are allowed"
            )));
        }
        let read = sandbox.read(&args.path, args.offset, args.limit_bytes).await?;
        Ok(Json(present(read, args.offset)))
    }
}

fn present(read: FileContent, offset: u64) -> Content {
    let FileContent { mut bytes, file_bytes } = read;
    let more = offset.saturating_add(bytes.len() as u64) < file_bytes;
    if more
        && let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        // The part ends within a character, which belongs to the next part.
        bytes.truncate(error.valid_up_to());
    }
    let next_offset = more.then(|| offset.saturating_add(bytes.len() as u64));
    let (content, is_base64) = match String::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(error) => (STANDARD.encode(error.as_bytes()), true),
    };
    Content { content, is_base64, size: file_bytes, next_offset }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_that_are_no_text_come_in_base64() {
        let read = FileContent { bytes: vec![0xff, 0x00], file_bytes: 2 };
        let content = Content { content: "/wA=".into(), is_base64: true, size: 2, next_offset: None };
        assert_eq!(present(read, 0), content);
    }

    proptest! {
        /// Reading a text in parts of any size gives the text, as text.
        #[test]
        fn parts_of_a_text_are_texts(text in "\\PC{1,40}", limit in 4usize..16) {
            let (mut offset, mut parts) = (0, String::new());
            loop {
                let from = usize::try_from(offset).unwrap();
                let part = text.as_bytes()[from..].iter().copied().take(limit).collect();
                let content = present(FileContent { bytes: part, file_bytes: text.len() as u64 }, offset);
                prop_assert!(!content.is_base64);
                parts.push_str(&content.content);
                match content.next_offset {
                    Some(next) => offset = next,
                    None => break,
                }
            }
            prop_assert_eq!(parts, text);
        }
    }
}
