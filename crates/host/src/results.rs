//! What a program in a context shows: values, each in several forms. Bounded, whatever the guest says.

use bouvet_wire::limits::{
    MAX_PATH_BYTES, MAX_RESULT_BYTES, MAX_RESULT_ID_BYTES, MAX_RESULT_PARTS, MAX_RESULTS, MAX_RESULTS_BYTES,
};
use bouvet_wire::mime::is_mime_type;
use bouvet_wire::v1;
use bytes::Bytes;

use crate::boxconfig::InvalidConfig;

/// Limits of the results of a program in a context. Larger forms are kept in files of the sandbox.
///
/// ```
/// use bouvet_host::{ExecRequest, Program, ResultLimits};
///
/// let mut request = ExecRequest::new(Program::Python, "figure");
/// request.result_limits = ResultLimits { images_bytes: 256 * 1024, ..ResultLimits::default() };
/// assert_eq!(request.result_limits.form_bytes, 2 * 1024 * 1024);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultLimits {
    /// Bytes of one form that is not an image, at most 2 MiB.
    pub form_bytes: u32,
    /// Bytes of all forms that are not images. With the images, at most 8 MiB.
    pub forms_bytes: u32,
    /// Bytes of all images. One may take half of what is left; a larger one is made smaller where the sandbox has
    /// Pillow.
    pub images_bytes: u32,
}

impl Default for ResultLimits {
    fn default() -> Self {
        const MIB: u32 = 1024 * 1024;
        Self { form_bytes: 2 * MIB, forms_bytes: 4 * MIB, images_bytes: 4 * MIB }
    }
}

impl ResultLimits {
    pub(crate) fn validate(self) -> Result<(), InvalidConfig> {
        let all = u64::from(self.forms_bytes) + u64::from(self.images_bytes);
        for (bytes, limit) in [(self.form_bytes.into(), MAX_RESULT_BYTES), (all, MAX_RESULTS_BYTES)] {
            if bytes > limit as u64 {
                let (value, allowed) = (format!("{bytes} bytes"), format!("{limit} bytes are allowed"));
                return Err(InvalidConfig { field: "result_limits", value, allowed });
            }
        }
        Ok(())
    }
}

impl From<ResultLimits> for v1::ResultLimits {
    fn from(limits: ResultLimits) -> Self {
        let ResultLimits { form_bytes, forms_bytes, images_bytes } = limits;
        Self { form_bytes, forms_bytes, images_bytes }
    }
}

/// A value in all the forms that it can be shown in.
///
/// ```
/// use bouvet_host::{Form, RichOutput};
///
/// let form = |mime_type: &str, data: &str| {
///     Form { mime_type: mime_type.into(), data: data.to_owned().into(), ..Form::default() }
/// };
/// let forms = vec![form("text/plain", "a b"), form("text/html", "<table>…</table>")];
/// let table = RichOutput { forms, ..RichOutput::default() };
/// assert_eq!(table.form("text/html").unwrap().data, "<table>…</table>");
/// assert_eq!(table.form("image/png"), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RichOutput {
    /// Its forms, as the program gave them.
    pub forms: Vec<Form>,
    /// Whether it was shown before the run began, by what earlier runs left running.
    pub earlier: bool,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// Its MIME type: at most 128 visible ASCII characters, a `/` among them.
    pub mime_type: String,
    /// The program's bytes. Nothing says that they are what the type says.
    pub data: Bytes,
    /// Bytes left out: of `text/plain` the end, of others all.
    pub omitted_bytes: u64,
    /// A file in the sandbox that has all of it, as far as the program can be believed.
    pub path: Option<String>,
}

/// The results of one run so far, and the names by which they may be replaced.
#[derive(Debug, Default)]
pub(crate) struct Results(Vec<(String, RichOutput)>);

impl Results {
    /// Takes one more, as long as the guest keeps to the limits.
    pub(crate) fn take(&mut self, result: v1::ExecResult) -> Result<(), String> {
        let v1::ExecResult { parts, id, update, earlier } = result;
        let are_sound =
            parts.iter().all(|part| is_mime_type(&part.mime_type) && part.path.len() <= MAX_PATH_BYTES);
        if parts.len() > MAX_RESULT_PARTS || id.len() > MAX_RESULT_ID_BYTES || !are_sound {
            return Err("it sent a malformed result".into());
        }
        let forms = parts.into_iter().map(|part| Form {
            mime_type: part.mime_type,
            data: part.data,
            omitted_bytes: part.omitted_bytes,
            path: Some(part.path).filter(|path| !path.is_empty()),
        });
        let output = RichOutput { forms: forms.collect(), earlier };
        match self.0.iter_mut().find(|(known, _)| update && !id.is_empty() && *known == id) {
            Some((_, replaced)) => *replaced = output,
            None => self.0.push((id, output)),
        }
        let bytes: usize =
            self.0.iter().flat_map(|(_, output)| &output.forms).map(|form| form.data.len()).sum();
        if self.0.len() > MAX_RESULTS || bytes > MAX_RESULTS_BYTES {
            return Err("it sent more results than are allowed".into());
        }
        Ok(())
    }

    /// Forgets those so far.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl From<Results> for Vec<RichOutput> {
    fn from(results: Results) -> Self {
        results.0.into_iter().map(|(_, output)| output).collect()
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
        v1::ExecResult { parts: vec![part; parts], ..v1::ExecResult::default() }
    }

    #[test]
    fn updates_replace_results_of_their_name() {
        let named = |id: &str, update, bytes| {
            let (id, result) = (id.to_owned(), result("a/b", bytes, 1));
            v1::ExecResult { id, update, ..result }
        };
        let mut results = Results::default();
        for (id, update) in [("a", false), ("", true), ("a", true), ("b", true), ("a", false)] {
            results.take(named(id, update, MAX_RESULTS_BYTES / 8)).unwrap();
        }
        for _ in 0..2 * MAX_RESULTS {
            results.take(named("a", true, MAX_RESULTS_BYTES / 2)).unwrap();
        }
        let sizes = |results: Results| -> Vec<_> {
            Vec::<RichOutput>::from(results).iter().map(|output| output.forms[0].data.len() * 8).collect()
        };
        assert_eq!(sizes(results), [4, 1, 1, 1].map(|eighths| eighths * MAX_RESULTS_BYTES));
        let mut results = Results::default();
        results.take(named("a", false, MAX_RESULTS_BYTES)).unwrap();
        results.clear();
        results.take(named("a", true, 1)).unwrap();
        assert_eq!(sizes(results), [8]);
    }

    #[test]
    fn result_limits_hold_at_the_limit() {
        let limits = |form_bytes: usize, forms_bytes: usize, images_bytes: usize| {
            let [form_bytes, forms_bytes, images_bytes] =
                [form_bytes, forms_bytes, images_bytes].map(|bytes| u32::try_from(bytes).unwrap());
            ResultLimits { form_bytes, forms_bytes, images_bytes }.validate()
        };
        assert_eq!(ResultLimits::default().validate(), Ok(()));
        assert!(limits(MAX_RESULT_BYTES, MAX_RESULTS_BYTES - 1, 1).is_ok());
        assert!(limits(MAX_RESULT_BYTES + 1, 0, 0).is_err());
        assert!(limits(0, MAX_RESULTS_BYTES, 1).is_err());
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
