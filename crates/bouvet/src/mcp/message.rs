//! JSON-RPC messages as they arrive: what is not one, and how that is answered. Pure.
//!
//! A message is checked without building a tree of its values: it is walked once, and what its values would take is added
//! up, so that [`intake`](super::intake) can refuse a message before anything is made of it.

use std::fmt;

use rmcp::model::{ErrorCode, RequestId};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

/// RFC 8259, section 8.1: parsers may ignore it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// What a value takes in addition to its text: a `serde_json::Value` in a list.
const VALUE_BYTES: u64 = 32;
/// The longest malformed message whose id is looked for. Without checking texts, a copy of it is needed.
const MAX_LENIENT_BYTES: usize = 1024 * 1024;

/// Why a message is refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Malformed {
    pub(crate) code: ErrorCode,
    pub(crate) text: String,
    /// That of the request, where it can be read.
    pub(crate) id: Option<RequestId>,
    /// Whether the message is itself an error response: answering it could go on without end.
    pub(crate) is_error: bool,
    /// Whether more than a message may have is the reason.
    pub(crate) is_too_large: bool,
}

impl Malformed {
    pub(crate) fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), id: None, is_error: false, is_too_large: false }
    }

    /// The answer of JSON-RPC.
    pub(crate) fn answer(&self) -> Value {
        let error = json!({ "code": self.code.0, "message": self.text });
        json!({ "jsonrpc": "2.0", "id": self.id, "error": error })
    }
}

/// The members of a message other than its parameters.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Envelope {
    /// `None` for a response.
    pub(crate) method: Option<String>,
    pub(crate) id: Option<RequestId>,
    /// `name` in the parameters.
    pub(crate) tool: Option<String>,
    pub(crate) sizes: Sizes,
}

/// What the values of a message take once they are decoded, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// By the arguments in [`LARGE`], in its order.
    pub(crate) large: [u64; LARGE.len()],
    /// All other values.
    pub(crate) other: u64,
}

/// Arguments of tools that may be large.
pub(crate) const LARGE: [&str; 4] = ["code", "command", "content", "stdin"];

/// The message without a byte order mark.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Checks that `bytes`, without a byte order mark, are one JSON-RPC message.
pub(crate) fn check(bytes: &[u8]) -> Result<Envelope, Malformed> {
    let (parsed, members) = parse(bytes, true);
    if let Err(error) = parsed {
        // The mistake may stand before the id. A parser that does not check texts reads further.
        let lenient = match bytes.len() <= MAX_LENIENT_BYTES {
            true => parse(String::from_utf8_lossy(bytes).as_bytes(), false).1,
            false => Members::default(),
        };
        let malformed = Malformed::new(ErrorCode::PARSE_ERROR, not_json(&error));
        return Err(Malformed { id: lenient.request_id(), is_error: lenient.is_error(), ..malformed });
    }
    members.envelope()
}

/// The method and the tool that are named in the beginning of a message, which may be cut off anywhere.
pub(crate) fn sketch(beginning: &[u8]) -> (Option<String>, Option<String>) {
    let (_, members) = parse(beginning, true);
    (members.method.and_then(Small::into_text), members.tool)
}

/// The words for input that is not JSON.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.contains("hex escape") {
        true => format!("this is not JSON: half of a surrogate pair, a text cut within a character: {text}"),
        false => format!("this is not JSON: {text}"),
    }
}

fn parse(bytes: &[u8], is_strict: bool) -> (serde_json::Result<()>, Members) {
    let mut members = Members::default();
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let walk = Walk { members: &mut members, is_strict, place: Place::Message, large: None };
    let parsed = walk.deserialize(&mut parser);
    (parsed.and_then(|_| parser.end()), members)
}

/// The members of a message that tell what it is.
#[derive(Debug, Default)]
struct Members {
    is_object: bool,
    is_list: bool,
    version: Option<Small>,
    id: Option<Small>,
    method: Option<Small>,
    params_are_object: Option<bool>,
    tool: Option<String>,
    has_result: bool,
    has_error: bool,
    repeated: Option<&'static str>,
    sizes: Sizes,
}

/// A value, as far as an envelope can have it.
#[derive(Debug, PartialEq)]
enum Small {
    Text(String),
    Whole(i64),
    Object,
    Other,
}

impl Small {
    fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Members {
    fn request_id(&self) -> Option<RequestId> {
        if self.repeated == Some("id") {
            return None;
        }
        match self.id.as_ref()? {
            Small::Text(text) => Some(RequestId::String(text.as_str().into())),
            Small::Whole(number) => Some(RequestId::Number(*number)),
            _ => None,
        }
    }

    fn is_error(&self) -> bool {
        self.has_error && self.method.is_none()
    }

    fn envelope(self) -> Result<Envelope, Malformed> {
        let id = self.request_id();
        match self.fault() {
            Some((code, text)) => {
                Err(Malformed { id, is_error: self.is_error(), ..Malformed::new(code, text) })
            }
            None => {
                let method = self.method.and_then(Small::into_text);
                Ok(Envelope { method, id, tool: self.tool, sizes: self.sizes })
            }
        }
    }

    fn fault(&self) -> Option<(ErrorCode, String)> {
        let invalid = |text: &str| Some((ErrorCode::INVALID_REQUEST, text.to_owned()));
        if self.is_list {
            return invalid("batches are not supported: send one message at a time");
        }
        if !self.is_object {
            return invalid("this is not a JSON-RPC message, which is an object");
        }
        if let Some(name) = self.repeated {
            return invalid(&format!("`{name}` is there twice"));
        }
        if self.version != Some(Small::Text("2.0".into())) {
            return invalid("this is not a JSON-RPC message: `jsonrpc` must be \"2.0\"");
        }
        match &self.method {
            Some(Small::Text(_)) if self.id.is_some() && self.request_id().is_none() => {
                invalid("`id` must be a string or a whole number")
            }
            Some(Small::Text(_)) if self.params_are_object == Some(false) => {
                Some((ErrorCode::INVALID_PARAMS, "`params` must be an object".into()))
            }
            Some(Small::Text(_)) => None,
            Some(_) => invalid("`method` must be a string"),
            None if self.has_result && self.request_id().is_none() => {
                invalid("a response needs the `id` of its request")
            }
            None if self.has_result || self.has_error => None,
            None => invalid("this is not a JSON-RPC message: there is no `method`"),
        }
    }
}

/// Where a value stands in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Message,
    /// The `params` of a message.
    Params,
    /// The `arguments` of `params`.
    Arguments,
    /// `id`, or another member that is needed itself.
    Member,
    /// Anywhere else: only the size counts.
    Inner,
}

/// Walks a value to its end. A value that is not strictly read may have texts that are not Unicode.
struct Walk<'m> {
    members: &'m mut Members,
    is_strict: bool,
    place: Place,
    /// Of which large argument the value is a part, by its index in [`LARGE`].
    large: Option<usize>,
}

impl Walk<'_> {
    fn at(&mut self, place: Place, large: Option<usize>) -> Walk<'_> {
        Walk { members: self.members, is_strict: self.is_strict, place, large }
    }

    fn add(&mut self, text_bytes: usize) {
        let sizes = &mut self.members.sizes;
        let size = self.large.map_or(&mut sizes.other, |index| &mut sizes.large[index]);
        *size = size.saturating_add(VALUE_BYTES).saturating_add(text_bytes as u64);
    }

    /// The members of a message.
    fn message<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        self.members.is_object = true;
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let known = ["jsonrpc", "id", "method", "params", "result", "error"];
            if let Some(name) = known.into_iter().find(|name| **name == *key) {
                if seen.contains(&name) {
                    self.members.repeated.get_or_insert(name);
                }
                seen.push(name);
            }
            self.add(key.len());
            match key.as_str() {
                "jsonrpc" => self.members.version = Some(map.next_value_seed(self.at(Place::Member, None))?),
                "id" => self.members.id = Some(map.next_value_seed(self.at(Place::Member, None))?),
                "method" => self.members.method = Some(map.next_value_seed(self.at(Place::Member, None))?),
                "params" => {
                    let params = map.next_value_seed(self.at(Place::Params, None))?;
                    self.members.params_are_object = Some(params == Small::Object);
                }
                name => {
                    self.members.has_result |= name == "result";
                    self.members.has_error |= name == "error";
                    map.next_value_seed(self.at(Place::Inner, None))?;
                }
            }
        }
        Ok(())
    }

    fn params<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.add(key.len());
            match key.as_str() {
                "name" => {
                    self.members.tool = map.next_value_seed(self.at(Place::Member, None))?.into_text();
                }
                "arguments" => drop(map.next_value_seed(self.at(Place::Arguments, None))?),
                _ => drop(map.next_value_seed(self.at(Place::Inner, None))?),
            }
        }
        Ok(())
    }

    fn arguments<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.add(key.len());
            let large = LARGE.iter().position(|name| *name == key);
            map.next_value_seed(self.at(Place::Inner, large))?;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Small;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Small, D::Error> {
        match self.is_strict || self.place == Place::Message || self.place == Place::Member {
            true => deserializer.deserialize_any(self),
            false => deserializer.deserialize_ignored_any(IgnoredAny).map(|IgnoredAny| Small::Other),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Small;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Small, A::Error> {
        self.add(0);
        match self.place {
            Place::Message => self.message(&mut map)?,
            Place::Params => self.params(&mut map)?,
            Place::Arguments => self.arguments(&mut map)?,
            Place::Member | Place::Inner => {
                let large = self.large;
                while map.next_key_seed(self.at(Place::Inner, large))?.is_some() {
                    map.next_value_seed(self.at(Place::Inner, large))?;
                }
            }
        }
        Ok(Small::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Small, A::Error> {
        self.add(0);
        self.members.is_list |= self.place == Place::Message;
        let large = self.large;
        while seq.next_element_seed(self.at(Place::Inner, large))?.is_some() {}
        Ok(Small::Other)
    }

    fn visit_bool<E>(mut self, _: bool) -> Result<Small, E> {
        self.add(0);
        Ok(Small::Other)
    }

    fn visit_i64<E>(mut self, number: i64) -> Result<Small, E> {
        self.add(0);
        Ok(Small::Whole(number))
    }

    fn visit_u64<E>(mut self, number: u64) -> Result<Small, E> {
        self.add(0);
        Ok(i64::try_from(number).map_or(Small::Other, Small::Whole))
    }

    fn visit_f64<E: serde::de::Error>(mut self, number: f64) -> Result<Small, E> {
        self.add(0);
        number.is_finite().then_some(Small::Other).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(mut self, text: &str) -> Result<Small, E> {
        self.add(text.len());
        match self.place {
            Place::Member => Ok(Small::Text(text.to_owned())),
            _ => Ok(Small::Other),
        }
    }

    fn visit_unit<E>(mut self) -> Result<Small, E> {
        self.add(0);
        Ok(Small::Other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(bytes: impl AsRef<[u8]>) -> (i32, Value) {
        let malformed = check(bytes.as_ref()).unwrap_err();
        (malformed.code.0, malformed.answer()["id"].clone())
    }

    #[test]
    fn well_formed_messages_pass() {
        for (text, method) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#, Some("tools/list")),
            (
                r#"{"jsonrpc":"2.0","id":"a","method":"x","params":{"a":1,"a":2,"b":[{"😀":"\ud83d\ude00"}]}}"#,
                Some("x"),
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/initialized","other":1}"#,
                Some("notifications/initialized"),
            ),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, None),
            (r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}"#, None),
        ] {
            assert_eq!(check(text.as_bytes()).unwrap().method.as_deref(), method, "{text}");
        }
        assert_eq!(without_mark(b"\xef\xbb\xbf{}"), b"{}");
    }

    #[test]
    fn invalid_json_is_a_parse_error() {
        let five = json!(5);
        let with = |rest: &str| format!(r#"{{"jsonrpc":"2.0","id":5,"method":"m","params":{rest}}}"#);
        for text in [
            with(r#"{"a":"cut \ud83d"}"#),
            with(r#"{"a":"\ude00 tail"}"#),
            with(r#"{"\ud83d":1}"#),
            with("{\"a\":NaN}"),
            with("{\"a\":1e999}"),
            with("{\"a\":01}"),
            with("{'a':1}"),
            with("{\"a\":1,}"),
            with("{\"a\":\"\u{1}\"}"),
            with(&format!("{}1{}", "[".repeat(200), "]".repeat(200))),
            format!("{} {{}}", with("{}")),
            with("{}")[..40].to_owned(),
            r#"{"jsonrpc":"2.0","method":"m","params":{"a":"\ud83d"},"id":5}"#.into(),
        ] {
            assert_eq!(code(&text), (-32700, five.clone()), "{text}");
        }
        let mut bytes = with(r#"{"a":"?"}"#).into_bytes();
        let at = bytes.iter().position(|byte| *byte == b'?').unwrap();
        bytes[at] = 0xff;
        assert_eq!(code(&bytes), (-32700, five));
        for text in ["", "{", "hello", "Content-Length: 3", "{\"id\"", "\u{0}", "nul", "{\"id\":5,\"id\":6,"]
        {
            assert_eq!(code(text), (-32700, Value::Null), "{text}");
        }
        let half = check(with(r#"{"a":"\ud83d"}"#).as_bytes()).unwrap_err();
        assert!(half.text.contains("surrogate"), "{}", half.text);
    }

    #[test]
    fn json_without_message_is_invalid_request() {
        for (text, expected, id) in [
            ("3", -32600, Value::Null),
            ("null", -32600, Value::Null),
            ("\"text\"", -32600, Value::Null),
            ("[]", -32600, Value::Null),
            (r#" [{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600, Value::Null),
            ("{}", -32600, Value::Null),
            (r#"{"id":1,"method":"ping"}"#, -32600, json!(1)),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600, json!(1)),
            (r#"{"jsonrpc":"2.0","id":"x"}"#, -32600, json!("x")),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600, json!(1)),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600, Value::Null),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, -32600, Value::Null),
            (r#"{"jsonrpc":"2.0","id":18446744073709551615,"method":"ping"}"#, -32600, Value::Null),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, -32600, Value::Null),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"x"}"#, -32600, json!(1)),
            (r#"{"jsonrpc":"2.0","result":{}}"#, -32600, Value::Null),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}"#, -32602, json!(1)),
        ] {
            assert_eq!(code(text), (expected, id), "{text}");
        }
        // An answer of our own that comes back.
        assert!(check(br#"{"id":1,"error":{}}"#).unwrap_err().is_error);
    }

    proptest! {
        #[test]
        fn check_agrees_with_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..60) {
            let mut text = br#"{"jsonrpc":"2.0","id":5,"method":"m","params":{"a":"\u00e9"}}"#.to_vec();
            text.splice(at.min(text.len()).., bytes.clone());
            for bytes in [bytes, text] {
                let is_json = serde_json::from_slice::<Value>(&bytes).is_ok();
                let checked = check(&bytes);
                let is_parse_error = checked.is_err_and(|error| error.code == ErrorCode::PARSE_ERROR);
                prop_assert_eq!(is_json, !is_parse_error);
            }
        }
    }
}
