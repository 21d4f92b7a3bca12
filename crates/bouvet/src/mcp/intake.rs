//! What a message may carry, and the arguments of a call apart from the rest of its message. Pure.
//!
//! The MCP library parses a message into several trees of values, each many times as large as its text. So it is given
//! the message without the arguments of a call; those are parsed once, into the map that tools read.

use bytes::Bytes;
use rmcp::model::{ErrorCode, JsonObject};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::message::{self, Envelope, LARGE, Malformed, Sizes};
use super::params;

const MIB: u64 = 1024 * 1024;
/// Values of a message that are not large arguments of its tool, decoded.
const MAX_OTHER_BYTES: u64 = MIB;
/// Beyond what a tool takes of a large argument, decoded: a call that is little too large is answered by its tool.
const SLACK_BYTES: u64 = MIB;
/// In JSON a byte may be escaped as six: `\u0001`.
const ESCAPED_BYTES: u64 = 6;
/// Large arguments by their tool, decoded. Content may be base64, which takes four bytes for three.
const ALLOWED: &[(&str, &str, u64)] = &[
    ("execute_code", "code", 10 * MIB),
    ("execute_code", "stdin", 10 * MIB),
    ("run_command", "command", MIB),
    ("run_command", "stdin", 10 * MIB),
    ("write_file", "content", 10 * MIB / 3 * 4 + 4),
];
/// The longest message: code and standard input, each byte escaped.
pub(crate) const MAX_MESSAGE_BYTES: u64 = longest();
/// The largest message once it is decoded.
pub(crate) const MAX_DECODED_BYTES: u64 = MAX_MESSAGE_BYTES / ESCAPED_BYTES;

const fn longest() -> u64 {
    let (mut most, mut tool) = (0, 0);
    while tool < ALLOWED.len() {
        let (mut sum, mut argument) = (MAX_OTHER_BYTES, 0);
        while argument < ALLOWED.len() {
            if is_same(ALLOWED[tool].0, ALLOWED[argument].0) {
                sum += ALLOWED[argument].2 + SLACK_BYTES;
            }
            argument += 1;
        }
        most = if sum > most { sum } else { most };
        tool += 1;
    }
    most * ESCAPED_BYTES
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// What a large argument of `tool` may be, decoded; 0 for one that the tool does not have.
fn allowed(method: Option<&str>, tool: Option<&str>, argument: &str) -> u64 {
    let is_call = method == Some("tools/call");
    let row = ALLOWED.iter().find(|(of, name, _)| is_call && tool == Some(*of) && *name == argument);
    row.map_or(0, |(.., bytes)| bytes + SLACK_BYTES)
}

/// How many bytes a message may have that begins so.
pub(crate) fn bound(beginning: &[u8]) -> u64 {
    match message::sketch(message::without_mark(beginning)) {
        (None, _) => MAX_MESSAGE_BYTES,
        (Some(method), None) if method == "tools/call" => MAX_MESSAGE_BYTES,
        (method, tool) => {
            let large = LARGE.iter().map(|name| allowed(method.as_deref(), tool.as_deref(), name));
            (large.sum::<u64>() + MAX_OTHER_BYTES) * ESCAPED_BYTES
        }
    }
}

/// The error for a message of more than `bound` bytes.
pub(crate) fn too_long(bound: u64) -> Malformed {
    let text = format!("a message of this method may have {bound} bytes");
    Malformed { is_too_large: true, ..Malformed::new(ErrorCode::INVALID_REQUEST, text) }
}

/// A message that was read.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) envelope: Envelope,
    /// The message, with an empty object in place of `arguments`.
    pub(crate) message: Bytes,
    /// The arguments of a call. `None`: the message has none, or they are not an object.
    pub(crate) arguments: Option<JsonObject>,
}

impl Incoming {
    /// The fault of a request of `initialize`, which the MCP library takes for another method then. Revisions without
    /// `initialize` have their version in `_meta`.
    pub(crate) fn initialize_fault(&self) -> Option<Malformed> {
        let Envelope { method, id, .. } = &self.envelope;
        if method.as_deref() != Some("initialize") || id.is_none() {
            return None;
        }
        let message: Value = serde_json::from_slice(&self.message).ok()?;
        let params = message.get("params");
        let version = "/_meta/io.modelcontextprotocol~1protocolVersion";
        if params.is_some_and(|params| params.pointer(version).is_some()) {
            return None;
        }
        let text = params::fault("initialize", params)?;
        Some(Malformed { id: id.clone(), ..Malformed::new(ErrorCode::INVALID_PARAMS, text) })
    }

    /// What the values of the message take.
    pub(crate) fn decoded_bytes(&self) -> u64 {
        let Sizes { large, other } = self.envelope.sizes;
        large.iter().fold(other, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Reads a message without a byte order mark.
pub(crate) fn read(bytes: &[u8]) -> Result<Incoming, Malformed> {
    let envelope = message::check(bytes)?;
    check_sizes(&envelope)?;
    if envelope.method.as_deref() != Some("tools/call") {
        return Ok(Incoming { envelope, message: Bytes::copy_from_slice(bytes), arguments: None });
    }
    let (message, arguments) = split(bytes).map_err(|error| {
        let text = format!("the `params` are not those of tools/call: {error}");
        Malformed { id: envelope.id.clone(), ..Malformed::new(ErrorCode::INVALID_PARAMS, text) }
    })?;
    Ok(Incoming { envelope, message, arguments })
}

fn check_sizes(envelope: &Envelope) -> Result<(), Malformed> {
    let Envelope { method, tool, id, sizes } = envelope;
    let Sizes { large, mut other } = *sizes;
    let refused = |name: &str, bytes: u64, limit: u64| {
        let text = format!("{name} take {bytes} bytes; {limit} are allowed");
        let malformed = Malformed::new(ErrorCode::INVALID_REQUEST, text);
        Err(Malformed { id: id.clone(), is_too_large: true, ..malformed })
    };
    for (name, bytes) in LARGE.iter().zip(large) {
        match allowed(method.as_deref(), tool.as_deref(), name) {
            0 => other = other.saturating_add(bytes),
            limit if bytes > limit => return refused(&format!("values of `{name}`"), bytes, limit),
            _ => {}
        }
    }
    match other > MAX_OTHER_BYTES {
        true => refused("values of the message", other, MAX_OTHER_BYTES),
        false => Ok(()),
    }
}

/// A call without its arguments, and its arguments.
fn split(bytes: &[u8]) -> serde_json::Result<(Bytes, Option<JsonObject>)> {
    #[derive(Deserialize)]
    struct Call<'m> {
        #[serde(borrow)]
        params: Option<Params<'m>>,
    }
    #[derive(Deserialize)]
    struct Params<'m> {
        #[serde(borrow)]
        arguments: Option<&'m RawValue>,
    }
    let call: Call<'_> = serde_json::from_slice(bytes)?;
    let arguments = call.params.and_then(|params| params.arguments).map(RawValue::get);
    let Some(arguments) = arguments.filter(|arguments| arguments.starts_with('{')) else {
        return Ok((Bytes::copy_from_slice(bytes), None));
    };
    // The text of the arguments is a part of the message.
    let begin = arguments.as_ptr().addr() - bytes.as_ptr().addr();
    let message = [&bytes[..begin], b"{}", &bytes[begin + arguments.len()..]].concat();
    Ok((message.into(), Some(serde_json::from_str(arguments)?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn call(tool: &str, arguments: &Value) -> Vec<u8> {
        let params = json!({ "name": tool, "arguments": arguments, "_meta": { "progressToken": 1 } });
        json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params })
            .to_string()
            .into_bytes()
    }

    #[test]
    fn large_arguments_are_allowed_by_tool() {
        for (tool, name, bytes) in ALLOWED {
            let at = |bytes: u64| {
                let text = "x".repeat(usize::try_from(bytes).unwrap());
                read(&call(tool, &json!({ *name: text })))
            };
            let most = bytes + SLACK_BYTES - VALUE;
            assert!(at(most).is_ok(), "{tool} {name}");
            let malformed = at(most + 1).unwrap_err();
            assert!(malformed.is_too_large && malformed.text.contains(name), "{}", malformed.text);
            assert_eq!(malformed.id, Some(rmcp::model::RequestId::Number(5)));
        }
        // An argument that the tool does not have counts as any other.
        for (tool, name) in [("read_file", "content"), ("run_command", "code"), ("unknown", "stdin")] {
            assert!(read(&call(tool, &json!({ name: "x".repeat(1000) }))).is_ok());
            assert!(read(&call(tool, &json!({ name: "x".repeat(1 << 20) }))).unwrap_err().is_too_large);
        }
    }

    /// See `VALUE_BYTES` of the module `message`.
    const VALUE: u64 = 32;

    #[test]
    fn small_values_count_as_what_they_take() {
        let many = |count: usize| json!(vec![0; count]);
        let other = call("run_command", &json!({ "env": many(40_000) }));
        assert!(other.len() < 100_000);
        assert!(read(&other).unwrap_err().is_too_large);
        assert!(read(&call("run_command", &json!({ "env": many(20_000) }))).is_ok());
        // Anywhere in a message: in a large argument, another method, the id, a key.
        assert!(read(&call("execute_code", &json!({ "code": many(400_000) }))).unwrap_err().is_too_large);
        for text in [
            json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": { "a": many(40_000) } }),
            json!({ "jsonrpc": "2.0", "id": many(40_000), "method": "ping" }),
            json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "x": { "y".repeat(1 << 20): 1 } }),
        ] {
            assert!(read(text.to_string().as_bytes()).is_err());
        }
    }

    #[test]
    fn bounds_follow_from_the_beginning() {
        let of = |text: &str| bound(text.as_bytes());
        assert_eq!(of(r#"{"jsonrpc":"2.0","method":"ping","params":{"a":"#), 6 * MIB);
        assert_eq!(
            of(r#"{"method":"tools/call","params":{"name":"read_file","arguments":{"path":"#),
            6 * MIB
        );
        let code = r#"{"method":"tools/call","params":{"name":"execute_code","arguments":{"code":"xx"#;
        assert_eq!(of(code), MAX_MESSAGE_BYTES);
        assert_eq!(MAX_MESSAGE_BYTES, 6 * 23 * MIB);
        let command = r#"{"method":"tools/call","params":{"name":"run_command","arguments":{"stdin":"xx"#;
        assert_eq!(of(command), 6 * 14 * MIB);
        // What comes first may not tell.
        assert_eq!(of(r#"{"params":{"arguments":{"code":"xx"#), MAX_MESSAGE_BYTES);
        assert_eq!(of(r#"{"method":"tools/call","params":{"arguments":{"code":"xx"#), MAX_MESSAGE_BYTES);
    }

    #[test]
    fn arguments_leave_their_message() {
        let incoming =
            read(&call("run_command", &json!({ "command": "a\u{1}😀", "env": { "A": "1" } }))).unwrap();
        let message: Value = serde_json::from_slice(&incoming.message).unwrap();
        assert_eq!(message, serde_json::from_slice::<Value>(&call("run_command", &json!({}))).unwrap());
        let arguments = Value::Object(incoming.arguments.unwrap());
        assert_eq!(arguments, json!({ "command": "a\u{1}😀", "env": { "A": "1" } }));
        for other in [json!([1]), json!("text"), Value::Null] {
            let bytes = call("run_command", &other);
            let incoming = read(&bytes).unwrap();
            assert!(incoming.arguments.is_none() && incoming.message == bytes);
        }
        let twice =
            br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{},"arguments":{}}}"#;
        assert_eq!(read(twice).unwrap_err().code, ErrorCode::INVALID_PARAMS);
    }

    proptest! {
        #[test]
        fn split_messages_are_the_whole(bytes in "[ -~]{0,40}", name in "[a-z_]{1,12}") {
            let arguments = json!({ name.clone(): bytes, "b": [1, { "c": null }] });
            let whole = call("x", &arguments);
            let incoming = read(&whole).unwrap();
            let mut message: Value = serde_json::from_slice(&incoming.message).unwrap();
            message["params"]["arguments"] = Value::Object(incoming.arguments.unwrap());
            prop_assert_eq!(message, serde_json::from_slice::<Value>(&whole).unwrap());
        }
    }
}
