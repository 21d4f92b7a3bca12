//! Contexts: programs that see the variables of those before them, as in a notebook.

use std::collections::BTreeMap;
use std::time::Duration;

use bouvet_host::{
    ContextError, ContextId, ContextRequest, ContextState, Death, Exec, ExecError, ExecEvent, ExecRequest,
    ExecResult, Host, Program, ResultLimits, RichOutput, Sandbox,
};
use bytes::Bytes;

use super::create;
use crate::drive::{eventually, patient, printed, run, sh};
use crate::skip::skipped;

/// A context in `sandbox`, and what runs in it.
pub(super) struct Notebook<'a> {
    sandbox: &'a Sandbox,
    program: Program,
    id: ContextId,
}

impl<'a> Notebook<'a> {
    pub(super) async fn new(sandbox: &'a Sandbox, program: Program) -> Self {
        let context = sandbox.create_context(ContextRequest::new(program)).await.unwrap();
        assert_eq!((context.program, context.state), (program, ContextState::Idle));
        Self { sandbox, program, id: context.id }
    }

    pub(super) fn request(&self, source: &str) -> ExecRequest {
        // The first import of a large library takes that long where instructions are emulated.
        let timeout = patient(240);
        ExecRequest { context: Some(self.id), timeout, ..ExecRequest::new(self.program, source.to_owned()) }
    }

    async fn start(&self, request: ExecRequest) -> Result<Exec, ExecError> {
        self.sandbox.exec(request).await
    }

    pub(super) async fn try_run(&self, request: ExecRequest) -> Result<ExecResult, ExecError> {
        self.start(request).await?.finish().await
    }

    pub(super) async fn run(&self, source: &str) -> ExecResult {
        self.try_run(self.request(source)).await.unwrap()
    }

    /// The last value of a cell that must succeed, as text.
    pub(super) async fn value(&self, source: &str) -> String {
        let result = self.run(source).await;
        assert_eq!(result.exit.exit_code, 0, "{source}: {}", result.stderr.text());
        let last = result.results.last().map(|result| text(result, "text/plain"));
        last.unwrap_or_default()
    }

    async fn state(&self) -> ContextState {
        let contexts = self.sandbox.contexts().await.unwrap();
        contexts.iter().find(|context| context.id == self.id).unwrap().state
    }
}

pub(super) fn text(result: &RichOutput, mime_type: &str) -> String {
    let form = result.form(mime_type).unwrap_or_else(|| panic!("{mime_type} in {result:?}"));
    String::from_utf8(form.data.to_vec()).unwrap()
}

/// The MIME types of each result, sorted.
pub(super) fn types(result: &ExecResult) -> Vec<Vec<&str>> {
    fn of(result: &RichOutput) -> Vec<&str> {
        let mut types: Vec<_> = result.forms.iter().map(|form| form.mime_type.as_str()).collect();
        types.sort_unstable();
        types
    }
    result.results.iter().map(of).collect()
}

pub async fn a_context_keeps_the_variables_of_python_and_node(host: &Host) {
    let sandbox = create(host).await;
    sandbox.write("helper.py", Bytes::from("answer = 42\n"), false).await.unwrap();
    sandbox.write("helper.mjs", Bytes::from("export default 42;\n"), false).await.unwrap();
    let python = Notebook::new(&sandbox, Program::Python).await;
    let node = Notebook::new(&sandbox, Program::Node).await;

    python.run("import helper\ndef twice(n):\n    return n * 2\nn = helper.answer").await;
    assert_eq!(python.value("twice(n)").await, "84");
    assert_eq!(python.value("_ + 1").await, "85");
    assert_eq!(python.value("import asyncio\nawait asyncio.sleep(0.01, twice(4))").await, "8");
    let mut request = python.request("name = input()\nprint('hello', name, __name__)");
    request.stdin = Bytes::from("you\nand more");
    let result = python.try_run(request).await.unwrap();
    assert_eq!(result.stdout.text(), "hello you __main__\n", "{}", result.stderr.text());
    let result =
        python.run("import os, sys; os.system('echo child'); print(name, repr(sys.stdin.read()))").await;
    assert_eq!(result.stdout.text(), "child\nyou ''\n");

    node.run("const n = 42; let list = [1]; function twice(n) { return n * 2 } class Box { size = n }").await;
    assert_eq!(node.value("twice(n)").await, "84");
    assert_eq!(node.value("const n = 43; new Box().size + list[0]").await, "44", "declared again");
    assert_eq!(node.value("import answer from './helper.mjs'; answer").await, "42");
    assert_eq!(
        node.value("const path = await import('path'); path.default === require('path')").await,
        "true"
    );
    let result = node.run(
        "console.log('out', answer); require('child_process').execSync('echo child', {stdio: 'inherit'});",
    );
    let result = result.await;
    assert_eq!(result.stdout.text(), "out 42\nchild\n", "{}", result.stderr.text());
}

pub async fn a_context_shows_the_last_value_and_what_is_displayed(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let result = python.run("display('first'); x = {'a': [1, None]}\nx").await;
    assert_eq!(types(&result), [["application/json", "text/plain"]; 2]);
    assert_eq!(text(&result.results[0], "text/plain"), "'first'");
    assert_eq!(text(&result.results[1], "text/plain"), "{'a': [1, None]}");
    assert_eq!(text(&result.results[1], "application/json"), r#"{"a": [1, null]}"#);
    for silent in ["x;", "x = 2", "None", "x; # quiet"] {
        assert!(python.run(silent).await.results.is_empty(), "{silent}");
    }
    let shape = "class Shape:\n    def _repr_html_(self): return '<b>shape</b>'\n    def __repr__(self): return 'shape'";
    python.run(shape).await;
    let result = python.run("Shape()").await;
    assert_eq!(types(&result), [["text/html", "text/plain"]]);
    assert_eq!(text(&result.results[0], "text/html"), "<b>shape</b>");
    let result = python.run("float('nan')").await;
    assert_eq!(types(&result), [["text/plain"]], "it is no JSON");

    let node = Notebook::new(&sandbox, Program::Node).await;
    let result = node.run("display('first'); const x = await Promise.resolve({a: [1, null]}); x").await;
    assert_eq!(types(&result), [["application/json", "text/plain"]; 2]);
    assert_eq!(text(&result.results[1], "text/plain"), "{ a: [ 1, null ] }");
    assert_eq!(text(&result.results[1], "application/json"), r#"{"a":[1,null]}"#);
    assert_eq!(types(&node.run("new Map()").await), [["text/plain"]]);
    assert!(node.run("undefined").await.results.is_empty());
}

pub async fn a_context_shows_tables_and_figures(host: &Host) {
    let sandbox = create(host).await;
    let has_both =
        "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ['pandas', 'matplotlib'])))";
    if run(&sandbox, Program::Python, has_both).await.exit.exit_code != 0 {
        assert_eq!(host.engine(), "fake", "the base image has both");
        skipped("REQUIRE_TABLES", "there is no pandas or matplotlib where programs run");
        return;
    }
    let python = Notebook::new(&sandbox, Program::Python).await;
    let result = python.run("import pandas\npandas.DataFrame({'fruit': ['fig'], 'n': [3]})").await;
    assert_eq!(types(&result), [["text/html", "text/plain"]], "{}", result.stderr.text());
    assert!(text(&result.results[0], "text/html").contains("<td>fig</td>"));
    assert!(text(&result.results[0], "text/plain").contains("fig  3"));

    let drawn = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.plot([2, 1]);";
    let result = python.run(drawn).await;
    assert_eq!(types(&result), [["image/png", "text/plain"]; 2], "{}", result.stderr.text());
    for shown in &result.results {
        let png = &shown.form("image/png").unwrap().data;
        let length = |at: usize| u32::from_be_bytes(*png[at..].first_chunk().unwrap());
        assert_eq!((&png[..8], &png[12..16]), (&b"\x89PNG\r\n\x1a\n"[..], &b"IHDR"[..]));
        assert!(length(16) > 100 && length(20) > 100, "{} × {}", length(16), length(20));
        assert!(png.ends_with(b"IEND\xae\x42\x60\x82"));
    }
    let decoded =
        "import io, matplotlib.image\nfigure, axes = plt.subplots(); axes.bar([1, 2], [3, 4])\nfigure";
    assert_eq!(types(&python.run(decoded).await), [["image/png", "text/plain"]], "once");
    assert_eq!(python.value("plt.get_fignums()").await, "[]");

    let saved = "figure = plt.figure(); plt.plot([1, 2]); figure.show(); plt.savefig('saved.png')\n\
                 import matplotlib.image; (matplotlib.image.imread('saved.png')[..., :3].min(axis=2) < 0.9).any()";
    let result = python.run(saved).await;
    assert_eq!(types(&result).len(), 2, "once, and the value: {}", result.stderr.text());
    assert_eq!(text(&result.results[1], "text/plain"), "True", "what was shown is what is saved");
    let noise =
        "import numpy; plt.figure(figsize=(4, 3)); plt.imshow(numpy.random.rand(300, 400)); plt.show()";
    let limits = ResultLimits { images_bytes: 100_000, ..ResultLimits::default() };
    let result =
        python.try_run(ExecRequest { result_limits: limits, ..python.request(noise) }).await.unwrap();
    let of =
        |mime_type| result.results[0].form(mime_type).unwrap_or_else(|| panic!("{mime_type} in {result:?}"));
    assert!(of("image/png").data.is_empty() && of("image/png").path.is_some());
    let small = &of("image/jpeg").data;
    assert!(small.starts_with(b"\xff\xd8") && small.len() <= 50_000, "{}", small.len());

    for (source, note) in [
        ("plt.switch_backend('QtAgg'); plt.plot([1, 2]); plt.show()", "there is no screen for `QtAgg`"),
        ("%matplotlib inline\nplt.plot([1, 2]);", ""),
        ("%matplotlib tk\nplt.plot([1, 2]);", "there is no screen for `tk`"),
    ] {
        let result = python.run(source).await;
        let stderr = result.stderr.text();
        assert_eq!(types(&result), [["image/png", "text/plain"]], "{source}: {stderr}");
        assert!(stderr.starts_with(note) && stderr.is_empty() == note.is_empty(), "{source}: {stderr}");
    }
}

pub async fn a_context_outlives_what_goes_wrong_in_it(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    python.run("kept = 'kept'").await;
    let result = python.run("def f():\n    return 1 / 0\nf()").await;
    assert_eq!(
        result.stderr.text().lines().take(3).collect::<Vec<_>>(),
        ["Traceback (most recent call last):", "  File \"cell 2\", line 3, in <module>", "    f()"]
    );
    assert!(result.stderr.text().ends_with("ZeroDivisionError: division by zero\n"));
    assert_eq!((result.exit.exit_code, result.exit.context_death), (1, None));
    for (source, code, says) in [
        ("x = (", 1, "SyntaxError: '(' was never closed\n"),
        ("import sys; sys.exit(3)", 3, ""),
        ("exit('bye')", 1, "bye\n"),
        ("f()", 1, "ZeroDivisionError: division by zero\n"),
    ] {
        let result = python.run(source).await;
        assert_eq!(result.exit.exit_code, code, "{source}");
        assert!(result.stderr.text().ends_with(says), "{source}: {}", result.stderr.text());
    }
    assert_eq!(python.value("kept").await, "'kept'");

    let node = Notebook::new(&sandbox, Program::Node).await;
    node.run("const kept = 'kept'").await;
    for (source, says) in [
        ("function f() { null.x }\nf()", "at f (cell-2:1:21)\n    at cell-2:2:1\n"),
        ("let x = = 1", "cell-3:1\nlet x = = 1\n        ^\n\nSyntaxError: Unexpected token '='\n"),
        ("Promise.reject(new Error('lost')); 1", "Error: lost\n    at cell-4:1:16\n"),
        ("setTimeout(() => { throw new Error('late') }, 10); await new Promise(() => {})", "Error: late"),
        ("throw 'text'", "Uncaught 'text'\n"),
    ] {
        let result = node.run(source).await;
        assert_eq!((result.exit.exit_code, result.exit.context_death), (1, None), "{source}");
        let stderr = result.stderr.text();
        assert!(stderr.contains(says) && !stderr.contains("context.js"), "{source}: {stderr}");
    }
    assert_eq!(node.value("kept").await, "'kept'");
}

pub async fn a_context_is_interrupted_at_the_deadline_and_keeps_its_variables(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    for (notebook, source, says) in [
        (&python, "kept = 7; print('before')\nwhile True: pass", "KeyboardInterrupt\n"),
        (&python, "import time; print('before'); time.sleep(3600)", "KeyboardInterrupt\n"),
        (&python, "import asyncio; print('before'); await asyncio.sleep(3600)", "KeyboardInterrupt\n"),
        (&node, "const kept = 7; console.log('before'); while (true) {}", "Interrupted\n"),
        (&node, "console.log('before'); await new Promise(() => {})", "Interrupted\n"),
    ] {
        let request = ExecRequest { timeout: patient(5), ..notebook.request(source) };
        let result = notebook.try_run(request).await.unwrap();
        assert!(result.exit.timed_out && result.exit.exit_code == 130, "{source}: {:?}", result.exit);
        assert_eq!(
            (result.exit.context_death, result.stdout.text().as_str()),
            (None, "before\n"),
            "{source}"
        );
        assert!(result.stderr.text().ends_with(says), "{source}: {}", result.stderr.text());
        assert_eq!(notebook.value("kept").await, "7");
    }
}

pub async fn a_context_whose_caller_goes_away_is_interrupted(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let mut exec =
        python.start(python.request("kept = 7; print('up', end='')\nwhile True: pass")).await.unwrap();
    assert_eq!(exec.next().await.unwrap(), Some(ExecEvent::Stdout(Bytes::from("up"))));
    assert_eq!(python.state().await, ContextState::Busy);
    drop(exec);
    assert_eq!(python.value("kept").await, "7");
    assert_eq!(python.state().await, ContextState::Idle);
}

pub async fn a_context_that_will_not_stop_is_killed_and_says_so(host: &Host) {
    let sandbox = create(host).await;
    let deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf')\nwhile True: pass";
    // What comes after an `await` is not what an interrupt finds.
    let busy = "console.log('deaf'); await null; while (true) {}";
    for (program, source) in [(Program::Python, deaf), (Program::Node, busy)] {
        let notebook = Notebook::new(&sandbox, program).await;
        let request = ExecRequest { timeout: patient(4), ..notebook.request(source) };
        let result = notebook.try_run(request).await.unwrap();
        assert_eq!(result.exit.context_death, Some(Death::Stubborn), "{:?}", result.exit);
        assert!(result.exit.timed_out && result.exit.exit_code == 137);
        assert_eq!(result.stdout.text(), "deaf\n");
        assert_eq!(notebook.state().await, ContextState::Dead(Death::Stubborn));
    }
}

pub async fn a_context_that_dies_says_so(host: &Host) {
    let sandbox = create(host).await;
    for (program, source, code, death) in [
        (Program::Python, "print('last words', flush=True)\nimport os; os._exit(7)", 7, Death::Exited(7)),
        (Program::Python, "print('last words')\nimport os; os.abort()", 134, Death::Signal(6)),
        (Program::Node, "console.log('last words'); process.exit(7)", 7, Death::Exited(7)),
    ] {
        let notebook = Notebook::new(&sandbox, program).await;
        let result = notebook.run(source).await;
        assert_eq!((result.exit.exit_code, result.exit.context_death), (code, Some(death)), "{source}");
        assert_eq!(result.stdout.text(), "last words\n");
        let error = notebook.try_run(notebook.request("1")).await.unwrap_err();
        assert!(
            matches!(error, ExecError::ContextDied(id, of) if id == notebook.id && of == death),
            "{error}"
        );
        assert_eq!(notebook.state().await, ContextState::Dead(death));
        sandbox.destroy_context(notebook.id).await.unwrap();
        let error = notebook.try_run(notebook.request("1")).await.unwrap_err();
        assert!(matches!(error, ExecError::NoContext(id) if id == notebook.id), "{error}");
    }
    // Between two programs.
    let notebook = Notebook::new(&sandbox, Program::Python).await;
    let pid = notebook.value("import os; os.getpid()").await;
    sh(&sandbox, &format!("kill -SEGV {pid}")).await;
    let error = loop {
        // The signal may arrive after the next program does.
        if let Err(error) = notebook.try_run(notebook.request("1")).await {
            break error;
        }
    };
    assert!(matches!(error, ExecError::ContextDied(_, Death::Signal(11))), "{error}");
}

pub async fn runs_in_a_context_take_turns(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    python.run("import os, time\norder = []").await;
    let wait = "order.append('first'); print('up', end='')\nwhile not os.path.exists('go'): time.sleep(0.01)";
    let mut first = python.start(python.request(wait)).await.unwrap();
    assert_eq!(first.next().await.unwrap(), Some(ExecEvent::Stdout(Bytes::from("up"))));
    let impatient =
        ExecRequest { timeout: Duration::from_millis(200), ..python.request("order.append('never')") };
    let error = python.try_run(impatient).await.unwrap_err();
    assert!(matches!(error, ExecError::ContextBusy(id) if id == python.id), "{error}");
    let second = python.start(python.request("order.append('second'); order")).await.unwrap();
    sh(&sandbox, "touch go").await;
    first.finish().await.unwrap();
    let second = second.finish().await.unwrap();
    assert_eq!(text(&second.results[0], "text/plain"), "['first', 'second']");
}

pub async fn contexts_are_apart_and_end_with_all_that_they_started(host: &Host) {
    let sandbox = create(host).await;
    let (one, other) =
        (Notebook::new(&sandbox, Program::Python).await, Notebook::new(&sandbox, Program::Python).await);
    one.run("x = 1; import os; os.environ['X'] = '1'; os.chdir('/')").await;
    assert_eq!(
        other.value("'x' in globals(), 'X' in os.environ if 'os' in globals() else None").await,
        "(False, None)"
    );
    assert_eq!(other.value("import os; os.getcwd() == '/', 'X' in os.environ").await, "(False, False)");
    one.run("import subprocess; child = subprocess.Popen(['sleep', '3241'], start_new_session=False)").await;
    eventually(&sandbox, "pgrep -f '[s]leep 3241'").await;
    assert_eq!(one.value("child.poll()").await, "", "it lives from one program to the next");
    assert_eq!(
        sandbox.contexts().await.unwrap().iter().map(|context| context.id).collect::<Vec<_>>(),
        [one.id, other.id]
    );
    sandbox.destroy_context(one.id).await.unwrap();
    eventually(&sandbox, "! pgrep -f '[s]leep 3241'").await;
    let error = sandbox.destroy_context(one.id).await.unwrap_err();
    assert!(matches!(error, ContextError::Unknown(id) if id == one.id), "{error}");
    assert_eq!(other.value("6 * 7").await, "42");
    // The other sandbox has none of them.
    let apart = create(host).await;
    assert!(apart.contexts().await.unwrap().is_empty());
    let foreign = Notebook { sandbox: &apart, program: Program::Python, id: other.id };
    let error = foreign.try_run(foreign.request("1")).await.unwrap_err();
    assert!(matches!(error, ExecError::NoContext(_)), "{error}");
    sandbox.destroy().await;
    assert!(matches!(sandbox.contexts().await, Err(ContextError::Refused(_))));
}

pub async fn a_context_is_what_it_was_created_as(host: &Host) {
    let sandbox = create(host).await;
    sh(&sandbox, "mkdir -p work && echo here > work/file").await;
    let mut request = ContextRequest::new(Program::Python);
    request.cwd = "work".into();
    request.env = BTreeMap::from([("GREETING".into(), "grüß dich".into())]);
    let id = sandbox.create_context(request).await.unwrap().id;
    let python = Notebook { sandbox: &sandbox, program: Program::Python, id };
    assert_eq!(
        python.value("import os; os.environ['GREETING'], open('file').read()").await,
        "('grüß dich', 'here\\n')"
    );

    let node = Notebook { program: Program::Node, ..python };
    let error = node.try_run(node.request("1")).await.unwrap_err();
    assert!(matches!(error, ExecError::OtherProgram(of) if of == id), "{error}");
    for request in [
        ExecRequest { cwd: "/".into(), ..python.request("1") },
        ExecRequest { env: BTreeMap::from([("A".into(), "b".into())]), ..python.request("1") },
        ExecRequest { stdin: Bytes::from("x"), ..node.request("1") },
    ] {
        let error = python.try_run(request).await.unwrap_err();
        assert!(matches!(error, ExecError::Invalid(_)), "{error}");
    }
    let error = sandbox.create_context(ContextRequest::new(Program::Bash)).await.unwrap_err();
    assert!(matches!(error, ContextError::Invalid(_)), "{error}");
    let nowhere = ContextRequest { cwd: "/nowhere".into(), ..ContextRequest::new(Program::Python) };
    let error = sandbox.create_context(nowhere).await.unwrap_err();
    assert!(matches!(&error, ContextError::NotStarted(text) if text.contains("/nowhere")), "{error}");
    assert_eq!(
        printed(&sandbox, Program::Python, "print('x' in globals())").await,
        "False",
        "without a context"
    );
}

pub async fn there_is_a_most_of_contexts(host: &Host) {
    let sandbox = create(host).await;
    let mut last = None;
    for _ in 0..8 {
        last = Some(Notebook::new(&sandbox, Program::Python).await);
    }
    let another = || sandbox.create_context(ContextRequest::new(Program::Python));
    let error = another().await.unwrap_err();
    assert!(matches!(error, ContextError::TooMany(8)), "{error}");
    sandbox.destroy_context(last.unwrap().id).await.unwrap();
    another().await.unwrap();
}

pub async fn large_results_are_bounded(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let mib = 1024 * 1024;
    let result = python.run("display({'text/html': 'x' * 2 ** 21}, raw=True)\n'x' * 100_000").await;
    assert_eq!(result.results[0].form("text/html").unwrap().data.len(), 2 * mib);
    let plain = result.results[1].form("text/plain").unwrap();
    assert_eq!((plain.data.len(), plain.omitted_bytes), (64 * 1024, 100_002 - 64 * 1024));
    let result = python.run("display({'text/html': 'x' * (2 ** 21 + 1)}, raw=True)").await;
    let html = result.results[0].form("text/html").unwrap();
    assert_eq!((html.data.len(), html.omitted_bytes), (0, 2 * mib as u64 + 1));
    let result = python.run("for n in range(33): display(n)").await;
    assert_eq!((result.results.len(), result.omitted_results), (32, 1));
    let result = python.run("for n in range(5): display({'text/html': 'x' * 2 ** 21}, raw=True)").await;
    let sizes: Vec<_> = result.results.iter().map(|result| result.forms[0].data.len()).collect();
    assert_eq!((sizes, result.omitted_results), (vec![2 * mib, 2 * mib, 0, 0, 0], 0));
    assert!(result.results[4].forms[0].path.is_some(), "a file has it");
    assert_eq!(python.value("'still there'").await, "'still there'");
}
