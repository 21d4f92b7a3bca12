//! Arguments of tools, held against their schemas. What does not fit is refused in the words of the tool's parameters.
//! Pure.

use rmcp::model::JsonObject;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Characters of a refused argument that an error shows.
const MAX_SHOWN_CHARS: usize = 64;
/// The largest number that a double, and so JavaScript, counts by ones to.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// The schema in the formats of JSON Schema alone: `uint32` and its like are of Rust, and clients warn of each.
pub(super) fn without_own_formats(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let bounds = match object.get("format").and_then(Value::as_str) {
                Some("uint8") => (Some(0), Some(u8::MAX.into())),
                Some("uint16") => (Some(0), Some(u16::MAX.into())),
                Some("uint32") => (Some(0), Some(u32::MAX.into())),
                Some("uint64" | "uint") => (Some(0), None),
                Some("int32") => (Some(i32::MIN.into()), Some(i32::MAX.into())),
                Some("int64" | "int") => (None::<i64>, None::<i64>),
                _ => return object.values_mut().for_each(without_own_formats),
            };
            object.remove("format");
            for (name, bound) in [("minimum", bounds.0), ("maximum", bounds.1)] {
                if let Some(bound) = bound {
                    object.entry(name).or_insert_with(|| bound.into());
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(without_own_formats),
        _ => {}
    }
}

/// `arguments` as `tool` takes them, whose schema is `schema`: without null where nothing is needed, which some clients
/// send for what they leave out, and with whole numbers as such.
pub(super) fn fitted(tool: &str, schema: &JsonObject, arguments: JsonObject) -> Result<JsonObject, Failure> {
    let none = Map::new();
    let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let needed = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let needed: Vec<_> = needed.iter().filter_map(Value::as_str).collect();
    if let Some(name) = arguments.keys().find(|name| !known.contains_key(*name)) {
        let has = listed(known.keys().map(String::as_str), ", ");
        let name = shortened(name);
        return Err(Failure::argument(format!("{tool} has no parameter `{name}`; it has {has}")));
    }
    let mut given = arguments;
    given.retain(|_, value| !value.is_null());
    let missing: Vec<_> = needed.into_iter().filter(|name| !given.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(Failure::argument(format!("{tool} needs {}", listed(missing.into_iter(), " and "))));
    }
    for (name, value) in &mut given {
        let schema = &known[name];
        whole(schema, value);
        if !fits(schema, value) {
            let fact = format!("`{name}` must be {}, got {}", wanted(name, schema), shown(value));
            return Err(Failure::argument(fact));
        }
    }
    Ok(given)
}

fn listed<'a>(names: impl Iterator<Item = &'a str>, between: &str) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(between)
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        short.push('…');
    }
    short
}

/// A value as its sender wrote it, unless it is long.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", shortened(text)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    }
}

fn kind(schema: &Value) -> &str {
    schema["type"].as_str().unwrap_or_default()
}

/// Makes 5.0 the integer that JSON Schema takes it for.
fn whole(schema: &Value, value: &mut Value) {
    if kind(schema) != "integer" || value.is_u64() {
        return;
    }
    if let Some(number) = value.as_f64().filter(|number| (0.0..=MAX_SAFE_INTEGER).contains(number))
        && number.fract() == 0.0
    {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "its range was checked")]
        let number = number as u64;
        *value = number.into();
    }
}

/// Whether `value` has the type that `schema` states. What else it must be is for the tool to check.
fn fits(schema: &Value, value: &Value) -> bool {
    match kind(schema) {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        // The tool itself explains larger limits.
        "integer" => value.as_u64().is_some_and(|number| {
            number <= u64::from(u32::MAX) || schema["maximum"].as_u64().is_none_or(|limit| number <= limit)
        }),
        "array" => value.as_array().is_some_and(|list| list.iter().all(|one| fits(&schema["items"], one))),
        "object" => {
            let of = &schema["additionalProperties"];
            value.as_object().is_some_and(|object| object.values().all(|one| fits(of, one)))
        }
        _ => true,
    }
}

/// The allowed values of `name`, in words.
fn wanted(name: &str, schema: &Value) -> String {
    match kind(schema) {
        "string" => "a string".into(),
        "boolean" => "true or false".into(),
        "integer" => {
            let unit = match name.rsplit('_').next() {
                Some("ms") => " of milliseconds",
                Some("secs") => " of seconds",
                Some("mib") => " of MiB",
                Some("bytes" | "offset") => " of bytes",
                _ => "",
            };
            let limit = schema["maximum"].as_u64();
            let limit = limit.map_or_else(String::new, |limit| format!(" up to {limit}"));
            format!("a whole number{unit}{limit}")
        }
        "array" => "a list of strings".into(),
        "object" => "an object whose values are strings".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::IntoContents as _;
    use serde_json::json;

    use super::*;
    use crate::mcp::tools;

    fn fit(tool: &str, arguments: Value) -> Result<Value, String> {
        let table = tools::table();
        let schema = table.get(tool).unwrap().input_schema.clone();
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        let words = |failure: Failure| failure.into_contents()[0].as_text().unwrap().text.clone();
        fitted(tool, &schema, arguments).map(Value::Object).map_err(words)
    }

    #[test]
    fn wrong_arguments_are_named_in_words() {
        let env_list = json!({"sandbox_id": "a", "command": "b", "env": {"PORT": 80}});
        for (tool, arguments, words) in [
            ("read_file", json!({"sandbox_id": "a"}), "read_file needs `path`. "),
            ("read_file", json!({"sandbox_id": "a", "path": null}), "read_file needs `path`. "),
            ("run_command", json!({}), "run_command needs `sandbox_id` and `command`. "),
            ("create_sandbox", json!({"foo": 1}), "create_sandbox has no parameter `foo`; it has `allow`, "),
            (
                "run_command",
                json!({"sandbox_id": "a", "command": "b", "timeout_ms": "10s"}),
                "`timeout_ms` must be a whole number of milliseconds up to 86400000, got \"10s\". ",
            ),
            (
                "run_command",
                json!({"sandbox_id": "a", "command": "b", "timeout_ms": -1}),
                "`timeout_ms` must be a whole number of milliseconds up to 86400000, got -1. ",
            ),
            (
                "run_command",
                json!({"sandbox_id": 7, "command": "b"}),
                "`sandbox_id` must be a string, got 7. ",
            ),
            ("run_command", env_list, "`env` must be an object whose values are strings, got an object. "),
            (
                "create_sandbox",
                json!({"memory_mib": 5_000_000_000_u64}),
                "`memory_mib` must be a whole number of MiB up to 1048576, got 5000000000. ",
            ),
            (
                "create_sandbox",
                json!({"read_only": "yes"}),
                "`read_only` must be true or false, got \"yes\". ",
            ),
            (
                "create_sandbox",
                json!({"allow": "pypi.org"}),
                "`allow` must be a list of strings, got \"pypi.org\". ",
            ),
            (
                "create_sandbox",
                json!({"vcpu_count": 1.5}),
                "`vcpu_count` must be a whole number up to 32, got 1.5. ",
            ),
        ] {
            let said = fit(tool, arguments.clone()).unwrap_err();
            assert!(said.starts_with(words), "{arguments}: {said}");
        }
        let long = fit("create_sandbox", json!({ "x".repeat(10_000): 1 })).unwrap_err();
        assert!(long.len() < 1000, "{long}");
    }

    #[test]
    fn null_and_whole_floats_mean_what_they_say() {
        let given =
            json!({"sandbox_id": "a", "command": "b", "timeout_ms": 5000.0, "env": null, "cwd": null});
        let expected = json!({"sandbox_id": "a", "command": "b", "timeout_ms": 5000});
        assert_eq!(fit("run_command", given).unwrap(), expected);
    }

    #[test]
    fn schemas_use_standard_formats_alone() {
        for tool in tools::table().list_all() {
            let schemas = [Some(tool.input_schema), tool.output_schema];
            let text = serde_json::to_string(&schemas).unwrap();
            assert!(!text.contains("\"format\""), "{}: {text}", tool.name);
        }
        let table = tools::table();
        let memory = &table.get("create_sandbox").unwrap().input_schema["properties"]["memory_mib"];
        assert_eq!((&memory["minimum"], &memory["maximum"]), (&json!(128), &json!(1 << 20)));
    }
}
