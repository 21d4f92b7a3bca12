//! A template filled with a value. Pure.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value;

use super::parse::{Node, Operand, Pipe};

/// The field that has labels by their names, for `{{.Label "NAME"}}`.
const LABELS: &str = "LabelsByName";
/// Fields that an error names.
const MAX_NAMED_FIELDS: usize = 20;

/// Fills `nodes` with `value`.
pub(super) fn render(nodes: &[Node], value: &Value) -> Result<String, String> {
    let mut scope = Scope { root: value, variables: Vec::new() };
    let mut text = String::new();
    scope.nodes(nodes, value, &mut text)?;
    Ok(text)
}

struct Scope<'a> {
    root: &'a Value,
    /// The last of a name counts.
    variables: Vec<(String, Value)>,
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), String> {
        let depth = self.variables.len();
        for node in nodes {
            self.node(node, dot, out)?;
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value, out: &mut String) -> Result<(), String> {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipe) => out.push_str(&shown(&self.pipe(pipe, dot)?)),
            Node::Set(name, pipe) => {
                let value = self.pipe(pipe, dot)?;
                self.variables.push((name.clone(), value));
            }
            Node::If(conditions, otherwise) => {
                for (condition, body) in conditions {
                    if is_true(&self.pipe(condition, dot)?) {
                        return self.nodes(body, dot, out);
                    }
                }
                self.nodes(otherwise, dot, out)?;
            }
            Node::With(name, pipe, body, otherwise) => {
                let value = self.pipe(pipe, dot)?;
                if !is_true(&value) {
                    return self.nodes(otherwise, dot, out);
                }
                let depth = self.variables.len();
                self.variables.extend(name.iter().map(|name| (name.clone(), value.clone())));
                self.nodes(body, &value, out)?;
                self.variables.truncate(depth);
            }
            Node::Range(key, value, pipe, body, otherwise) => {
                let items: Vec<(Value, Value)> = match self.pipe(pipe, dot)? {
                    Value::Array(items) => (0_u64..).map(Value::from).zip(items).collect(),
                    Value::Object(items) => items.into_iter().map(|(key, item)| (key.into(), item)).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(format!("`range` over {}", kind(&other))),
                };
                if items.is_empty() {
                    return self.nodes(otherwise, dot, out);
                }
                for (index, item) in items {
                    let depth = self.variables.len();
                    self.variables.extend(key.iter().map(|name| (name.clone(), index.clone())));
                    self.variables.extend(value.iter().map(|name| (name.clone(), item.clone())));
                    self.nodes(body, &item, out)?;
                    self.variables.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn pipe(&self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for command in pipe {
            last = Some(self.command(command, dot, last.as_ref())?);
        }
        Ok(last.unwrap_or_default())
    }

    fn command(&self, words: &[Operand], dot: &Value, piped: Option<&Value>) -> Result<Value, String> {
        let (first, rest) = words.split_first().ok_or("a command is empty")?;
        let arguments = || -> Result<Vec<Value>, String> {
            let given: Result<Vec<_>, _> = rest.iter().map(|word| self.operand(word, dot)).collect();
            Ok(given?.into_iter().chain(piped.cloned()).collect())
        };
        match first {
            Operand::Function(name) => call(name, &arguments()?),
            // The only method that lists have.
            Operand::Dot(fields) if fields == &["Label"] && !rest.is_empty() => {
                let arguments = arguments()?;
                let name = arguments.first().map(shown).unwrap_or_default();
                Ok(match dot.get(LABELS) {
                    Some(labels) => labels.get(&name).cloned().unwrap_or_else(|| "".into()),
                    None => name.into(),
                })
            }
            _ if !rest.is_empty() || piped.is_some() => Err("only a function takes arguments".into()),
            operand => self.operand(operand, dot),
        }
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        match operand {
            Operand::Dot(fields) => walk(dot, fields),
            Operand::Variable(name, fields) if name.is_empty() => walk(self.root, fields),
            Operand::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| format!("`${name}` was not set"))?;
                walk(value, fields)
            }
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Function(name) => call(name, &[]),
            Operand::Group(pipe, fields) => walk(&self.pipe(pipe, dot)?, fields),
        }
    }
}

fn walk(value: &Value, fields: &[String]) -> Result<Value, String> {
    let mut at = value;
    for field in fields {
        at = match at {
            Value::Object(map) => map.get(field).ok_or_else(|| {
                let known: Vec<_> = map
                    .keys()
                    .filter(|key| *key != LABELS)
                    .take(MAX_NAMED_FIELDS)
                    .map(String::as_str)
                    .collect();
                format!("there is no field `{field}`; there are {}", known.join(", "))
            })?,
            // As of a map that has nothing.
            Value::Null => return Ok(Value::Null),
            other => return Err(format!("`{field}` of {}, which has no fields", kind(other))),
        };
    }
    Ok(at.clone())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go prints a value.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let items = map.iter().map(|(key, item)| format!("{key}:{}", shown(item)));
            format!("map[{}]", items.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

fn call(name: &str, given: &[Value]) -> Result<Value, String> {
    let one = || given.first().ok_or_else(|| format!("`{name}` needs an argument"));
    let two = || match given {
        [a, b] => Ok((a, b)),
        _ => Err(format!("`{name}` needs two arguments")),
    };
    Ok(match name {
        "json" => one()?.to_string().into(),
        "print" => print(given).into(),
        "println" => format!("{}\n", given.iter().map(shown).collect::<Vec<_>>().join(" ")).into(),
        "printf" => printf(&shown(one()?), &given[1..]).into(),
        "len" => length(one()?)?.into(),
        "index" => index(one()?, &given[1..])?,
        "upper" => shown(one()?).to_uppercase().into(),
        "lower" => shown(one()?).to_lowercase().into(),
        "title" => title(&shown(one()?)).into(),
        "join" => {
            let (list, by) = two()?;
            let items = list.as_array().ok_or_else(|| format!("`join` of {}", kind(list)))?;
            items.iter().map(shown).collect::<Vec<_>>().join(&shown(by)).into()
        }
        "split" => {
            let (text, by) = two()?;
            shown(text).split(&shown(by)).map(Value::from).collect::<Vec<_>>().into()
        }
        "truncate" => {
            let (text, length) = two()?;
            let length = usize::try_from(length.as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
            shown(text).chars().take(length).collect::<String>().into()
        }
        "not" => (!is_true(one()?)).into(),
        "and" => given.iter().find(|value| !is_true(value)).or(given.last()).cloned().unwrap_or_default(),
        "or" => given.iter().find(|value| is_true(value)).or(given.last()).cloned().unwrap_or_default(),
        "eq" => {
            let first = one()?;
            given[1..].iter().any(|other| equal(first, other)).into()
        }
        "ne" => {
            let (a, b) = two()?;
            (!equal(a, b)).into()
        }
        "lt" | "le" | "gt" | "ge" => {
            let (a, b) = two()?;
            let order = order(a, b).ok_or_else(|| format!("`{name}` of {} and {}", kind(a), kind(b)))?;
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        name => return Err(format!("there is no function `{name}`")),
    })
}

fn equal(a: &Value, b: &Value) -> bool {
    a == b || order(a, b) == Some(Ordering::Equal)
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

fn length(value: &Value) -> Result<u64, String> {
    match value {
        Value::String(text) => Ok(text.len() as u64),
        Value::Array(items) => Ok(items.len() as u64),
        Value::Object(map) => Ok(map.len() as u64),
        Value::Null => Ok(0),
        other => Err(format!("`len` of {}", kind(other))),
    }
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, String> {
    let mut at = value.clone();
    for key in keys {
        at = match (&at, key) {
            // As Go has it for maps: what is missing is empty.
            (Value::Object(map), key) => map.get(&shown(key)).cloned().unwrap_or_else(|| "".into()),
            (Value::Array(items), Value::Number(number)) => {
                let found = number.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?));
                found.cloned().ok_or_else(|| format!("index {number} of a list of {}", items.len()))?
            }
            (Value::Null, _) => Value::Null,
            (other, _) => return Err(format!("`index` of {}", kind(other))),
        };
    }
    Ok(at)
}

/// A space between two values of which neither is a string.
fn print(values: &[Value]) -> String {
    let mut text = String::new();
    for (at, value) in values.iter().enumerate() {
        if at > 0 && !value.is_string() && !values[at - 1].is_string() {
            text.push(' ');
        }
        text.push_str(&shown(value));
    }
    text
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `%s`, `%d`, `%v`, `%t` and `%q`, with `-`, a width and a precision.
fn printf(format: &str, given: &[Value]) -> String {
    let mut text = String::new();
    let mut given = given.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(c) = chars.next_if(|c| matches!(c, '-' | '0'..='9' | '.')) {
            spec.push(c);
        }
        let verb = match chars.next() {
            Some('%') => {
                text.push('%');
                continue;
            }
            Some(verb) => verb,
            None => break,
        };
        let Some(value) = given.next() else {
            // Writing to a string does not fail.
            write!(text, "%!{verb}(missing)").ok();
            continue;
        };
        text.push_str(&padded(&spec, verb, value));
    }
    text
}

fn padded(spec: &str, verb: char, value: &Value) -> String {
    /// More than a terminal is wide.
    const MAX_WIDTH: usize = 1000;
    let mut text = match verb {
        'q' => Value::from(shown(value)).to_string(),
        _ => shown(value),
    };
    let (left, spec) = spec.strip_prefix('-').map_or((false, spec), |spec| (true, spec));
    let (width, precision) = spec.split_once('.').map_or((spec, None), |(a, b)| (a, Some(b)));
    if let Some(limit) = precision.and_then(|digits| digits.parse().ok()) {
        text = text.chars().take(limit).collect();
    }
    let width = width.parse().unwrap_or(0).min(MAX_WIDTH);
    if left { format!("{text:<width$}") } else { format!("{text:>width$}") }
}
