//! Parameters of requests that the MCP library cannot read: the member that is missing or wrong. Pure.

use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Object,
}

/// A member of `params`: its JSON pointer, its kind, and whether requests need it.
type Member = (&'static str, Kind, bool);

/// The members that the library reads, by method.
fn members(method: &str) -> &'static [Member] {
    match method {
        "initialize" => &[
            ("/protocolVersion", Kind::Text, true),
            ("/capabilities", Kind::Object, true),
            ("/clientInfo", Kind::Object, true),
            ("/clientInfo/name", Kind::Text, true),
            ("/clientInfo/version", Kind::Text, true),
        ],
        "tools/call" => &[("/name", Kind::Text, true), ("/arguments", Kind::Object, false)],
        "tools/list" => &[("/cursor", Kind::Text, false)],
        _ => &[],
    }
}

/// The first fault of the `params` of a request of `method`. `None`: there is none that is known here.
pub(super) fn fault(method: &str, params: Option<&Value>) -> Option<String> {
    members(method).iter().find_map(|(pointer, kind, is_needed)| {
        let member = format!("params{}", pointer.replace('/', "."));
        let wanted = match kind {
            Kind::Text => "a string",
            Kind::Object => "an object",
        };
        match params.and_then(|params| params.pointer(pointer)) {
            None if *is_needed => Some(format!("{method} needs `{member}`, {wanted}")),
            Some(Value::Null) if !is_needed => None,
            Some(value) if !is_of(*kind, value) => {
                Some(format!("`{member}` must be {wanted}, got {}", name(value)))
            }
            _ => None,
        }
    })
}

fn is_of(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Text => value.is_string(),
        Kind::Object => value.is_object(),
    }
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_member_is_named() {
        let info = json!({ "name": "x", "version": "1" });
        let cases = [
            ("initialize", json!({}), "initialize needs `params.protocolVersion`, a string"),
            (
                "initialize",
                json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "x" } }),
                "initialize needs `params.clientInfo.version`, a string",
            ),
            (
                "initialize",
                json!({ "protocolVersion": "2025-11-25", "capabilities": null, "clientInfo": info }),
                "`params.capabilities` must be an object, got null",
            ),
            ("tools/call", json!({ "arguments": {} }), "tools/call needs `params.name`, a string"),
            ("tools/call", json!({ "name": 7 }), "`params.name` must be a string, got a number"),
            (
                "tools/call",
                json!({ "name": "x", "arguments": [] }),
                "`params.arguments` must be an object, got a list",
            ),
            ("tools/list", json!({ "cursor": 1 }), "`params.cursor` must be a string, got a number"),
        ];
        for (method, params, words) in cases {
            assert_eq!(fault(method, Some(&params)).as_deref(), Some(words));
        }
        assert_eq!(fault("tools/call", None).as_deref(), Some("tools/call needs `params.name`, a string"));
    }

    #[test]
    fn right_members_have_no_fault() {
        let info = json!({ "name": "x", "version": "1" });
        let begun = json!({ "protocolVersion": "1", "capabilities": {}, "clientInfo": info });
        assert_eq!(fault("initialize", Some(&begun)), None);
        assert_eq!(fault("tools/call", Some(&json!({ "name": "x", "arguments": null }))), None);
        assert_eq!(fault("tools/list", None), None);
        assert_eq!(fault("ping", None), None);
    }
}
