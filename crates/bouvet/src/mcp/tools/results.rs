//! The result of `execute_code`: how the program went, and what code in a context showed.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bouvet_host::{ExecResult, Form, RichOutput};
use bytes::Bytes;
use rmcp::model::{CallToolResult, ContentBlock};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::exec::Outcome;

/// One form of a value; what is longer is left out.
const MAX_FORM_BYTES: usize = 64 * 1024;
/// All forms of all values in one call, but for images. They are in the result twice.
const MAX_FORMS_BYTES: usize = 128 * 1024;
/// All images in one call.
const MAX_IMAGES_BYTES: usize = 512 * 1024;
/// What clients take as one event is 1 MiB; the rest of the message needs some of it.
const MAX_EVENT_BYTES: usize = (1024 - 16) * 1024;
/// What clients show as images.
const IMAGES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/// How code went.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CodeOutcome {
    #[serde(flatten)]
    outcome: Outcome,
    /// What code in a context showed: what it displayed and drew, and the value of its last expression.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    results: Vec<Shown>,
    /// How many results more than the limit of 32 there were.
    #[serde(skip_serializing_if = "is_zero")]
    results_left_out: u32,
    /// Why the context died of this code, if it did: its variables are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    context_died: Option<String>,
}

/// A value in all its forms.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Shown {
    /// By MIME type. JSON is JSON, and text is text; for an image, this is its number among the images that follow
    /// the text of the result, from 1 on.
    #[serde(flatten)]
    forms: BTreeMap<String, Value>,
    /// Bytes that were left out because they are too many, by MIME type: of text/plain the end, of others all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    left_out: BTreeMap<String, u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl CodeOutcome {
    /// `result` as its caller gets it: structured, the same as text, and its images.
    pub(super) fn result(mut result: ExecResult) -> CallToolResult {
        let (results, images) = shown(&std::mem::take(&mut result.results));
        let context_died = result.exit.context_death;
        let mut outcome = Self {
            results,
            results_left_out: result.omitted_results,
            context_died: context_died.map(|death| format!("{death}; create_context makes another")),
            outcome: result.into(),
        };
        let images = outcome.with_images(images);
        // Maps with string keys, strings and numbers: there is nothing that JSON could not hold.
        let mut answer = CallToolResult::structured(serde_json::to_value(outcome).unwrap_or_default());
        answer.content.extend(images);
        answer
    }

    /// Numbers the images that there is room for. Those that do not fit are left out.
    fn with_images(&mut self, images: Vec<Image>) -> Vec<ContentBlock> {
        let text = serde_json::to_string(self).unwrap_or_default();
        // Once as JSON, and once as a string of JSON.
        let taken = text.len() + serde_json::to_string(&text).unwrap_or_default().len();
        let mut room = MAX_EVENT_BYTES.saturating_sub(taken).min(MAX_IMAGES_BYTES * 4 / 3);
        let mut blocks = Vec::new();
        for Image { result, mime_type, data } in images {
            let encoded = BASE64.encode(&data);
            let shown = &mut self.results[result];
            if encoded.len() > room {
                shown.left_out.insert(mime_type, data.len() as u64);
                continue;
            }
            room -= encoded.len();
            blocks.push(ContentBlock::image(encoded, &*mime_type));
            shown.forms.insert(mime_type, blocks.len().into());
        }
        blocks
    }
}

/// An image, and the number of the result that it is a form of.
struct Image {
    result: usize,
    mime_type: String,
    data: Bytes,
}

/// The forms that are not images, within their limits; and the images.
fn shown(results: &[RichOutput]) -> (Vec<Shown>, Vec<Image>) {
    let (mut all, mut images, mut room) = (Vec::new(), Vec::new(), MAX_FORMS_BYTES);
    for (result, RichOutput { forms }) in results.iter().enumerate() {
        let mut shown = Shown::default();
        for form in forms {
            let Form { mime_type, data, omitted_bytes } = form.clone();
            if IMAGES.contains(&&*mime_type) && omitted_bytes == 0 {
                images.push(Image { result, mime_type, data });
                continue;
            }
            let kept = kept(form, room);
            room -= kept.len();
            let left_out = omitted_bytes.saturating_add((data.len() - kept.len()) as u64);
            if left_out > 0 {
                shown.left_out.insert(mime_type.clone(), left_out);
            }
            if !kept.is_empty() || left_out == 0 {
                shown.forms.insert(mime_type.clone(), value(&mime_type, kept));
            }
        }
        all.push(shown);
    }
    (all, images)
}

/// What is kept of a form: the beginning of plain text, of others all or nothing.
fn kept(form: &Form, room: usize) -> &[u8] {
    let limit = MAX_FORM_BYTES.min(room);
    if form.mime_type == "text/plain" {
        return &form.data[..form.data.len().min(limit)];
    }
    let is_whole = form.omitted_bytes == 0 && form.data.len() <= limit;
    if is_whole { &form.data } else { &[] }
}

/// JSON as what it says, and anything else as text. What claims to be JSON and is none is text, too.
fn value(mime_type: &str, data: &[u8]) -> Value {
    let is_json = mime_type == "application/json" || mime_type.ends_with("+json");
    let json = if is_json { serde_json::from_slice(data).ok() } else { None };
    json.unwrap_or_else(|| String::from_utf8_lossy(data).into())
}

#[cfg(test)]
mod tests {
    use bouvet_host::{Captured, ExecExit};
    use serde_json::json;

    use super::*;

    fn form(mime_type: &str, data: impl Into<Bytes>) -> Form {
        Form { mime_type: mime_type.into(), data: data.into(), omitted_bytes: 0 }
    }

    /// Both streams are `printed`.
    fn answer(results: Vec<Vec<Form>>, printed: &[u8]) -> CallToolResult {
        let exit = ExecExit {
            exit_code: 0,
            timed_out: false,
            out_of_memory: false,
            duration: std::time::Duration::ZERO,
            context_death: None,
        };
        let printed = Captured { head: printed.to_vec(), ..Captured::default() };
        CodeOutcome::result(ExecResult {
            exit,
            stdout: printed.clone(),
            stderr: printed,
            results: results.into_iter().map(|forms| RichOutput { forms }).collect(),
            omitted_results: 0,
        })
    }

    fn results(answer: &CallToolResult) -> &Value {
        &answer.structured_content.as_ref().unwrap()["results"]
    }

    #[test]
    fn forms_are_what_their_types_say_and_images_follow() {
        let answer = answer(
            vec![
                vec![form("text/plain", "a"), form("application/json", r#"{"a": [1]}"#)],
                vec![form("image/png", "png"), form("text/plain", "figure")],
                vec![form("application/json", "no JSON")],
            ],
            b"",
        );
        assert_eq!(
            results(&answer),
            &json!([
                { "text/plain": "a", "application/json": { "a": [1] } },
                { "text/plain": "figure", "image/png": 1 },
                { "application/json": "no JSON" },
            ])
        );
        assert_eq!(answer.content.len(), 2);
        assert_eq!(answer.content[1], ContentBlock::image("cG5n", "image/png"));
    }

    #[test]
    fn what_is_too_large_is_left_out_and_counted() {
        let over = MAX_FORM_BYTES + 1;
        let answer = answer(
            vec![
                vec![form("text/html", vec![b'x'; MAX_FORM_BYTES])],
                vec![form("text/html", vec![b'x'; over])],
                vec![form("text/plain", vec![b'x'; over])],
                vec![form("text/plain", "no room"), form("text/html", "no room")],
            ],
            b"",
        );
        let results = results(&answer);
        assert_eq!(results[0]["text/html"].as_str().map(str::len), Some(MAX_FORM_BYTES));
        assert_eq!(results[1], json!({ "left_out": { "text/html": over } }));
        assert_eq!(results[2]["text/plain"].as_str().map(str::len), Some(MAX_FORM_BYTES));
        assert_eq!(results[2]["left_out"], json!({ "text/plain": 1 }));
        assert_eq!(results[3], json!({ "left_out": { "text/plain": 7, "text/html": 7 } }));
    }

    #[test]
    fn images_fit_into_one_event_with_all_else() {
        let image = |bytes| vec![form("image/png", vec![0; bytes])];
        let all = answer(vec![image(MAX_IMAGES_BYTES - 3), image(100)], b"");
        assert_eq!(all.content.len(), 2);
        assert_eq!(results(&all)[1], json!({ "left_out": { "image/png": 100 } }));
        let less = answer(vec![image(MAX_IMAGES_BYTES - 3), image(100)], &[b'x'; 300_000]);
        assert_eq!(results(&less)[1], json!({ "image/png": 1 }));
        assert!(serde_json::to_string(&less).unwrap().len() < 1024 * 1024);
    }
}
