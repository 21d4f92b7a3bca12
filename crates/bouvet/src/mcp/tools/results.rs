//! The result of `execute_code`: how the program went, and what code in a context showed.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bouvet_host::{Captured, ExecResult, Form, ResultLimits, RichOutput, Sandbox};
use bytes::Bytes;
use rmcp::model::{CallToolResult, ContentBlock};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::exec::Outcome;

/// Bytes of results that the sandbox sends: one form, all forms but images (they are in the answer twice), and all images.
/// Larger forms are kept in its files.
pub(super) const RESULT_LIMITS: ResultLimits =
    ResultLimits { form_bytes: 64 * 1024, forms_bytes: 128 * 1024, images_bytes: 448 * 1024 };
/// The same here: the guest is not trusted with it.
const MAX_FORM_BYTES: usize = RESULT_LIMITS.form_bytes as usize;
/// See [`MAX_FORM_BYTES`].
const MAX_FORMS_BYTES: usize = RESULT_LIMITS.forms_bytes as usize;
/// See [`MAX_FORM_BYTES`].
const MAX_IMAGES_BYTES: usize = RESULT_LIMITS.images_bytes as usize;
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
    /// Output of background work of earlier calls, printed before this code began. It is the beginning of stdout and stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Earlier")]
    earlier_output: Option<Earlier>,
    /// How many results more than the limit of 32 there were.
    #[serde(skip_serializing_if = "is_zero")]
    results_left_out: u32,
    /// Why the context died of this code, if it did: its variables are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    context_died: Option<String>,
}

/// Output that was printed before the code began, in bytes.
#[derive(Debug, Serialize, JsonSchema)]
struct Earlier {
    stdout_bytes: u64,
    stderr_bytes: u64,
}

impl Earlier {
    fn of(stdout: &Captured, stderr: &Captured) -> Option<Self> {
        let all = |output: &Captured| output.earlier_bytes.saturating_add(output.earlier_dropped_bytes);
        let is_any = all(stdout) > 0 || all(stderr) > 0;
        is_any.then_some(Self { stdout_bytes: stdout.earlier_bytes, stderr_bytes: stderr.earlier_bytes })
    }
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
    /// Files in the sandbox that have what was left out, by MIME type.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    files: BTreeMap<String, String>,
    /// Whether background work of earlier calls showed it, before this code began.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    earlier: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl CodeOutcome {
    /// `result` as its caller gets it: structured, the same as text, and its images. Images that there is no room for
    /// are written to files of `sandbox`. `advise` adds a hint.
    pub(super) async fn result(
        result: ExecResult,
        sandbox: &Sandbox,
        advise: impl FnOnce(&mut Outcome),
    ) -> CallToolResult {
        let (mut outcome, blocks, left_out) = Self::fitted(result);
        advise(&mut outcome.outcome);
        for Image { result, mime_type, data } in left_out {
            let ending = mime_type.rsplit('/').next().unwrap_or_default();
            let path = format!("/tmp/shown-{}.{ending}", Uuid::new_v4());
            // A sandbox that has ended meanwhile, or has no room, leaves the number of bytes as all there is.
            if sandbox.write(&path, data, false).await.is_ok() {
                outcome.results[result].files.insert(mime_type, path);
            }
        }
        outcome.answer(blocks)
    }

    /// The outcome, the images that there is room for, and the others.
    fn fitted(mut result: ExecResult) -> (Self, Vec<ContentBlock>, Vec<Image>) {
        let (results, images) = shown(&std::mem::take(&mut result.results));
        let context_died = result.exit.context_death;
        let mut outcome = Self {
            results,
            results_left_out: result.omitted_results,
            earlier_output: Earlier::of(&result.stdout, &result.stderr),
            context_died: context_died.map(|death| format!("{death}; create_context makes another")),
            outcome: result.into(),
        };
        let (blocks, left_out) = outcome.with_images(images);
        (outcome, blocks, left_out)
    }

    fn answer(self, images: Vec<ContentBlock>) -> CallToolResult {
        // Maps with string keys, strings and numbers: there is nothing that JSON could not hold.
        let mut answer = CallToolResult::structured(serde_json::to_value(self).unwrap_or_default());
        answer.content.extend(images);
        answer
    }

    /// Numbers the images that there is room for. Returns them, and those that do not fit.
    fn with_images(&mut self, images: Vec<Image>) -> (Vec<ContentBlock>, Vec<Image>) {
        let text = serde_json::to_string(self).unwrap_or_default();
        // Once as JSON, and once as a string of JSON.
        let taken = text.len() + serde_json::to_string(&text).unwrap_or_default().len();
        let mut room = MAX_EVENT_BYTES.saturating_sub(taken).min(MAX_IMAGES_BYTES * 4 / 3);
        let (mut blocks, mut left_out) = (Vec::new(), Vec::new());
        for Image { result, mime_type, data } in images {
            let encoded = BASE64.encode(&data);
            let shown = &mut self.results[result];
            if encoded.len() > room {
                shown.left_out.insert(mime_type.clone(), data.len() as u64);
                left_out.push(Image { result, mime_type, data });
                continue;
            }
            room -= encoded.len();
            blocks.push(ContentBlock::image(encoded, &*mime_type));
            shown.forms.insert(mime_type, blocks.len().into());
        }
        (blocks, left_out)
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
    for (result, RichOutput { forms, earlier }) in results.iter().enumerate() {
        let mut shown = Shown { earlier: *earlier, ..Shown::default() };
        let image = IMAGES.iter().find_map(|mime_type| {
            forms.iter().find(|form| form.mime_type == *mime_type && form.omitted_bytes == 0)
        });
        for form in forms {
            let Form { mime_type, data, omitted_bytes, path } = form.clone();
            if IMAGES.contains(&&*mime_type) && omitted_bytes == 0 {
                // Others are the same image in another format.
                if image == Some(form) {
                    images.push(Image { result, mime_type, data });
                }
                continue;
            }
            if let Some(path) = path {
                shown.files.insert(mime_type.clone(), path);
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
        Form { mime_type: mime_type.into(), data: data.into(), ..Form::default() }
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
        let (outcome, images, _) = CodeOutcome::fitted(ExecResult {
            exit,
            stdout: printed.clone(),
            stderr: printed,
            results: results.into_iter().map(|forms| RichOutput { forms, ..RichOutput::default() }).collect(),
            omitted_results: 0,
        });
        outcome.answer(images)
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
    fn forms_in_files_name_them() {
        let file =
            |mime_type: &str| Form { omitted_bytes: 9, path: Some("/tmp/x".into()), ..form(mime_type, "") };
        let answer = answer(vec![vec![file("image/png"), form("image/jpeg", "jpeg")]], b"");
        let shown = json!({
            "image/jpeg": 1,
            "left_out": { "image/png": 9 },
            "files": { "image/png": "/tmp/x" },
        });
        assert_eq!(results(&answer)[0], shown);
    }

    #[test]
    fn one_image_of_each_value_is_shown() {
        let forms = ["image/jpeg", "image/png", "text/plain"].map(|mime_type| form(mime_type, mime_type));
        let answer = answer(vec![forms.to_vec()], b"");
        assert_eq!(results(&answer)[0], json!({ "image/png": 1, "text/plain": "text/plain" }));
        assert_eq!(answer.content.len(), 2);
    }

    #[test]
    fn earlier_output_is_marked() {
        let of = |earlier_bytes, earlier_dropped_bytes| Captured {
            earlier_bytes,
            earlier_dropped_bytes,
            ..Captured::default()
        };
        assert!(Earlier::of(&of(0, 0), &of(0, 0)).is_none());
        let earlier = Earlier::of(&of(7, 0), &of(0, 1)).unwrap();
        assert_eq!((earlier.stdout_bytes, earlier.stderr_bytes), (7, 0));
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
