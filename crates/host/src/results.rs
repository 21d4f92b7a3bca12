//! What a program in a context shows: values, each in several forms. Bounded, whatever the guest says.

use bouvet_wire::limits::{MAX_RESULT_PARTS, MAX_RESULTS, MAX_RESULTS_BYTES};
use bouvet_wire::mime::is_mime_type;
use bouvet_wire::v1;
use bytes::Bytes;

/// A value in all the forms that it can be shown in.
///
/// ```
/// use bouvet_host::{Form, RichOutput};
///
/// let form = |mime_type: &str, data: &str| {
///     Form { mime_type: mime_type.into(), data: data.to_owned().into(), omitted_bytes: 0 }
/// };
/// let table = RichOutput { forms: vec![form("text/plain", "a b"), form("text/html", "<table>…</table>")] };
/// assert_eq!(table.form("text/html").unwrap().data, "<table>…</table>");
/// assert_eq!(table.form("image/png"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RichOutput {
    /// Its forms, as the program gave them.
    pub forms: Vec<Form>,
}

impl RichOutput {
    /// Its form of this MIME type.
    pub fn form(&self, mime_type: &str) -> Option<&Form> {
        self.forms.iter().find(|form| form.mime_type == mime_type)
    }
}

/// One form of a value.
///
/// ```no_run
/// use bouvet_host::{ContextRequest, ExecRequest, Program};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let context = sandbox.create_context(ContextRequest::new(Program::Python)).await?;
/// let mut request = ExecRequest::new(Program::Python, "[n * n for n in range(5)]");
/// request.context = Some(context.id);
/// let result = sandbox.exec(request).await?.finish().await?;
/// for form in result.results.iter().flat_map(|output| &output.forms) {
///     println!("{}: {} bytes", form.mime_type, form.data.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Its MIME type: at most 128 visible ASCII characters, a `/` among them.
    pub mime_type: String,
    /// The program's bytes. Nothing says that they are what the type says.
    pub data: Bytes,
    /// Bytes left out: of `text/plain` the end, of others all.
    pub omitted_bytes: u64,
}

/// The results of one run so far.
#[derive(Debug, Default)]
pub(crate) struct Results {
    taken: Vec<RichOutput>,
    bytes: usize,
}

impl Results {
    /// Takes one more, as long as the guest keeps to the limits.
    pub(crate) fn take(&mut self, result: v1::ExecResult) -> Result<(), String> {
        self.bytes += result.parts.iter().map(|part| part.data.len()).sum::<usize>();
        if self.taken.len() == MAX_RESULTS || self.bytes > MAX_RESULTS_BYTES {
            return Err("it sent more results than are allowed".into());
        }
        let are_named = result.parts.iter().all(|part| is_mime_type(&part.mime_type));
        if result.parts.len() > MAX_RESULT_PARTS || !are_named {
            return Err("it sent a result that is none".into());
        }
        let forms = result.parts.into_iter().map(|part| Form {
            mime_type: part.mime_type,
            data: part.data,
            omitted_bytes: part.omitted_bytes,
        });
        self.taken.push(RichOutput { forms: forms.collect() });
        Ok(())
    }
}

impl From<Results> for Vec<RichOutput> {
    fn from(results: Results) -> Self {
        results.taken
    }
}

#[cfg(test)]
mod tests {
    use bouvet_wire::limits::MAX_MIME_BYTES;

    use super::*;

    fn result(mime_type: &str, bytes: usize, parts: usize) -> v1::ExecResult {
        let part = v1::ResultPart {
            mime_type: mime_type.into(),
            data: vec![0; bytes].into(),
            ..v1::ResultPart::default()
        };
        v1::ExecResult { parts: vec![part; parts] }
    }

    #[test]
    fn a_guest_s_results_hold_at_their_limits_and_not_past_them() {
        let mut results = Results::default();
        for _ in 0..MAX_RESULTS {
            results.take(result("a/b", 1, 1)).unwrap();
        }
        assert!(results.take(result("a/b", 0, 0)).is_err());
        let mut results = Results::default();
        results.take(result("a/b", MAX_RESULTS_BYTES, 1)).unwrap();
        assert!(results.take(result("a/b", 1, 1)).is_err());
        let of = |mime: &str, parts| Results::default().take(result(mime, 1, parts));
        assert!(of(&format!("/{:x<1$}", "", MAX_MIME_BYTES - 1), MAX_RESULT_PARTS).is_ok());
        assert!(of(&format!("/{:x<1$}", "", MAX_MIME_BYTES), 1).is_err());
        assert!(of("a/b", MAX_RESULT_PARTS + 1).is_err());
        assert!(
            of("", 1).is_err() && of("ab", 1).is_err() && of("a/ b", 1).is_err() && of("a/b\n", 1).is_err()
        );
    }
}
