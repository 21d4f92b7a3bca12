//! Cells of Python: the habits of notebooks, what values and libraries show, and output between cells.

use bouvet_host::{ExecRequest, ExecResult, Form, Host, Program, ResultLimits};

use super::contexts::{Notebook, text, types};
use super::create;
use crate::drive::{eventually, run, sh};
use crate::skip::skipped;

pub async fn python_tasks_live_from_cell_to_cell(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let begin = "import asyncio, os\nasync def work():\n    await asyncio.sleep(0.01)\n    return 41\n\
                 async def background():\n    while not os.path.exists('go'): await asyncio.sleep(0.01)\n    open('gone', 'w')\n\
                 task, other = asyncio.create_task(work()), asyncio.create_task(background())";
    python.run(begin).await;
    assert_eq!(python.value("await task + 1").await, "42");
    sh(&sandbox, "touch go").await;
    // No cell runs: the loop goes on by itself.
    eventually(&sandbox, "test -e gone").await;
    for source in [
        "asyncio.run(work())",
        "asyncio.get_event_loop().run_until_complete(work())",
        "loop = asyncio.new_event_loop(); loop.run_until_complete(work())",
        "await asyncio.sleep(0); asyncio.run(work())",
        "[await work() for _ in range(2)][1]",
    ] {
        assert_eq!(python.value(source).await, "41", "{source}");
    }
    let alarm = "import signal\ndef late(*_): raise RuntimeError('alarm')\nsignal.signal(signal.SIGALRM, late)\n\
                 signal.setitimer(signal.ITIMER_REAL, 0.01); await asyncio.sleep(3600)";
    let result = python.run(alarm).await;
    assert_eq!(result.exit.exit_code, 1, "a signal handler's error is not the loop's end");
    assert!(result.stderr.text().ends_with("RuntimeError: alarm\n"), "{}", result.stderr.text());
    python.run("asyncio.get_event_loop().close()").await;
    assert_eq!(python.value("await work()").await, "41", "another loop takes its place");
}

pub async fn output_between_runs_comes_with_the_next(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    let thread = "import os, subprocess, threading, time\ndef late():\n    while not os.path.exists('go'): time.sleep(0.01)\n    \
                  print('from a thread'); display('shown late')\n    \
                  subprocess.run('echo from a child; echo error >&2; touch gone', shell=True)\n\
                  threading.Thread(target=late).start(); print('now')";
    let timer = "const fs = require('fs'); console.log('now'); const timer = setInterval(() => { if (fs.existsSync('go')) { \
                 clearInterval(timer); console.log('from a timer'); console.error('error'); fs.writeFileSync('gone', ''); } }, 10);";
    for (notebook, source, late) in
        [(&python, thread, "from a thread\nfrom a child\n"), (&node, timer, "from a timer\n")]
    {
        sh(&sandbox, "rm -f go gone").await;
        assert_eq!(notebook.run(source).await.stdout.text(), "now\n");
        sh(&sandbox, "touch go").await;
        eventually(&sandbox, "test -e gone").await;
        let result = notebook.run("1").await;
        assert_eq!((result.stdout.text().as_str(), result.stderr.text().as_str()), (late, "error\n"));
        let earlier = (result.stdout.earlier_bytes, result.stderr.earlier_bytes);
        assert_eq!(earlier, (late.len() as u64, "error\n".len() as u64));
        let result = notebook.run("1").await;
        assert_eq!((result.stdout.text().as_str(), result.stdout.earlier_bytes), ("", 0));
    }
    let much = "def much():\n    while not os.path.exists('more'): time.sleep(0.01)\n    \
                os.write(1, b'a'); print('x' * 2 ** 16, end=''); open('printed', 'w')\n\
                threading.Thread(target=much).start()";
    python.run(much).await;
    sh(&sandbox, "touch more").await;
    eventually(&sandbox, "test -e printed").await;
    let stdout = python.run("print('y', end='')").await.stdout;
    assert_eq!((stdout.earlier_bytes, stdout.earlier_dropped_bytes), (1 << 16, 1));
    assert!(stdout.truncated() && stdout.head == [vec![b'x'; 1 << 16], vec![b'y']].concat());
}

pub async fn python_values_are_shown_whatever_they_answer(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let define = "from unittest.mock import MagicMock\nimport math\n\
                  class Proxy:\n    def __getattr__(self, name): print('asked for', name); return lambda *a, **k: print('called')\n\
                  class Failing:\n    def __repr__(self): raise ValueError('no text')\n    \
                  def _repr_html_(self): raise RuntimeError('no page')\n    def _repr_markdown_(self): return '**bold**'\n\
                  class Bundle:\n    def _repr_mimebundle_(self, **_): \
                  return {'text/html': '<b>', 'application/json': [math.nan, math.inf, 1], 3: 4}, {}";
    python.run(define).await;
    let result = python.run("display(MagicMock(), Proxy(), math.nan, [math.inf])").await;
    assert_eq!((types(&result), result.stdout.text().as_str()), (vec![vec!["text/plain"]; 4], ""));
    let result = python.run("Failing()").await;
    assert_eq!((result.exit.exit_code, types(&result)), (0, vec![vec!["text/markdown", "text/plain"]]));
    assert!(text(&result.results[0], "text/plain").contains("Failing object at"));
    assert!(result.stderr.text().contains("no page") && result.stderr.text().contains("no text"));
    let result = python.run("Bundle()").await;
    assert_eq!(types(&result), [["application/json", "text/html", "text/plain"]]);
    assert_eq!(text(&result.results[0], "application/json"), "[null, null, 1]");

    let result = python.run("for n in range(40): display(n, clear=True)").await;
    assert_eq!((result.results.len(), result.omitted_results), (1, 0));
    assert_eq!(text(&result.results[0], "text/plain"), "39");
    let result =
        python.run("handle = display('one', display_id=True)\nfor n in range(40): handle.update(n)").await;
    assert_eq!((result.results.len(), text(&result.results[0], "text/plain").as_str()), (1, "39"));
    let page = "import pathlib, webbrowser\npathlib.Path('page.html').write_text('<p>hello</p>')\n\
                webbrowser.open(pathlib.Path('page.html').absolute().as_uri());";
    let result = python.run(page).await;
    assert_eq!(text(&result.results[0], "text/html"), "<p>hello</p>", "{}", result.stderr.text());
}

/// The file that has all of a form.
async fn kept(sandbox: &bouvet_host::Sandbox, form: &Form) -> u64 {
    assert_eq!(form.data.len(), 0);
    let path = form.path.clone().unwrap_or_else(|| panic!("a path in {form:?}"));
    let size = sh(sandbox, &format!("stat -c %s '{path}'")).await;
    size.trim().parse().unwrap()
}

pub async fn large_forms_are_kept_in_files(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    let limits = ResultLimits { form_bytes: 1000, forms_bytes: 2000, images_bytes: 3000 };
    let bounded = |source: &str| ExecRequest { result_limits: limits, ..python.request(source) };
    let html = "for n in (1000, 1001, 997): display({'text/html': 'x' * n, 'text/plain': 'abc'}, raw=True)";
    let result = python.try_run(bounded(html)).await.unwrap();
    let page = |index: usize| result.results[index].form("text/html").unwrap();
    assert_eq!((page(0).data.len(), page(0).path.clone()), (1000, None));
    assert_eq!((kept(&sandbox, page(1)).await, page(1).omitted_bytes), (1001, 1001));
    assert_eq!(kept(&sandbox, page(2)).await, 997, "there is no room for it any more");
    let image =
        "import os\nfor n in (1500, 751): display({'image/png': os.urandom(n)}, raw=True)\n'x' * 1500";
    let result = python.try_run(bounded(image)).await.unwrap();
    let png = |index: usize| result.results[index].form("image/png").unwrap();
    assert_eq!((png(0).data.len(), kept(&sandbox, png(1)).await), (1500, 751));
    let plain = result.results[2].form("text/plain").unwrap();
    assert_eq!((plain.data.len(), plain.omitted_bytes), (1000, 502));
    let node = Notebook::new(&sandbox, Program::Node).await;
    let html = "const show = (n) => display({ [Symbol.for('Jupyter.display')]: () => ({ 'text/html': 'x'.repeat(n) }) });\n\
                [1000, 1001, 1000, 1].forEach(show);";
    let shown = ExecRequest { result_limits: limits, ..node.request(html) };
    let result = node.try_run(shown).await.unwrap();
    let page = |index: usize| result.results[index].form("text/html").unwrap();
    assert_eq!((page(0).data.len(), page(2).data.len()), (1000, 1000));
    assert_eq!((kept(&sandbox, page(1)).await, kept(&sandbox, page(3)).await), (1001, 1));
    let over = ResultLimits { forms_bytes: 8 * 1024 * 1024, ..ResultLimits::default() };
    let error = python.try_run(ExecRequest { result_limits: over, ..python.request("1") }).await.unwrap_err();
    assert!(error.to_string().contains("result_limits"), "{error}");
}

pub async fn python_cells_follow_the_habits_of_notebooks(host: &Host) {
    let sandbox = create(host).await;
    let python = Notebook::new(&sandbox, Program::Python).await;
    assert_eq!(python.value("  indented = 6\n  indented * 7").await, "42");
    assert_eq!(python.value("_ + Out[1], In[1].strip()").await, "(84, 'indented = 6\\n  indented * 7')");
    python.run("from __future__ import annotations").await;
    assert_eq!(
        python.value("def later(n: Unknown): return n\nlater(3)").await,
        "3",
        "it holds for later cells"
    );
    let pickled = "import multiprocessing\nclass Point:\n    def __init__(self, n): self.n = n\n\
                   def moved(point): return Point(point.n + 1)\n\
                   with multiprocessing.get_context('fork').Pool(1) as pool: found = pool.map(moved, [Point(1)])\nfound[0].n";
    assert_eq!(python.value(pickled).await, "2");
    for (source, code, says) in [
        (
            "return 3",
            1,
            "  File \"cell 6\", line 1\n    return 3\n    ^^^^^^^^\nSyntaxError: 'return' outside function\n",
        ),
        (
            "input()",
            1,
            "EOFError: there is no line left to read: what a cell reads is sent with it, as `stdin`\n",
        ),
        (
            "import warnings\nfor n in range(2): warnings.warn('careful')",
            0,
            "cell 8:2: UserWarning: careful\n",
        ),
        (
            "import warnings\nfor n in range(2): warnings.warn('careful')",
            0,
            "cell 9:2: UserWarning: careful\n",
        ),
    ] {
        let result = python.run(source).await;
        assert_eq!(result.exit.exit_code, code, "{source}");
        assert_eq!(result.stderr.text().matches(says).count(), 1, "{source}: {}", result.stderr.text());
    }
    python.run("import os; os.close(1); os.close(2); os.chdir('/')").await;
    let result = python.run("print('heard', os.getcwd())").await;
    assert_eq!(result.stdout.text(), "heard /\n", "{}", result.stderr.text());

    let has_ipython = "import importlib.util as u, sys; sys.exit(u.find_spec('IPython') is None)";
    if run(&sandbox, Program::Python, has_ipython).await.exit.exit_code == 0 {
        in_ipython(&python).await;
        return;
    }
    let result = python.run("!echo hello").await;
    assert_eq!(result.exit.exit_code, 1);
    assert!(result.stderr.text().contains("hint: `%`, `!` and `?` need IPython"), "{}", result.stderr.text());
    skipped("REQUIRE_TABLES", "there is no IPython where programs run");
}

/// Syntax of IPython alone, in a context that has run cells without it.
async fn in_ipython(python: &Notebook<'_>) {
    let printed = |result: &ExecResult| result.stdout.text();
    assert_eq!(printed(&python.run("!echo hello $indented").await), "hello 6\n");
    assert_eq!(python.value("lines = !echo one; echo two\nlist(lines)").await, "['one', 'two']");
    assert_eq!(
        python.value("Out[1], _1, In[1].strip()[:8]").await,
        "(42, 42, 'indented')",
        "cells before it"
    );
    assert!(printed(&python.run("%timeit -n1 -r1 indented").await).contains("per loop"));
    assert!(printed(&python.run("%%time\nindented").await).contains("Wall time"));
    let result = python.run("%%bash\necho from bash\necho error >&2").await;
    assert_eq!((printed(&result).as_str(), result.stderr.text().as_str()), ("from bash\n", "error\n"));
    assert!(printed(&python.run("indented?").await).contains("int"));
    assert!(printed(&python.run("%pip --version").await).starts_with("pip "));
    let drawing = "from IPython.display import SVG; SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')";
    assert_eq!(types(&python.run(drawing).await), [["image/svg+xml", "text/plain"]]);
    let result = python
        .run("from IPython.display import *\ndisplay(HTML('<b>'), Latex('$x$'))\nMarkdown('**m**')")
        .await;
    assert_eq!(
        types(&result),
        [["text/html", "text/plain"], ["text/latex", "text/plain"], ["text/markdown", "text/plain"]]
    );
    let result = python.run("for n in range(40):\n    clear_output(wait=True)\n    display(n)").await;
    assert_eq!((result.results.len(), text(&result.results[0], "text/plain").as_str()), (1, "39"));
    let result = python.run("display('one', display_id='a'); update_display('two', display_id='a')").await;
    assert_eq!((result.results.len(), text(&result.results[0], "text/plain").as_str()), (1, "'two'"));
    for (source, code, says) in [
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("x = (", 1, "SyntaxError: '(' was never closed\n"),
        ("%nonesuch", 1, "UsageError: Line magic function `%nonesuch` not found.\n"),
        ("%time 1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import sys; sys.exit(3)", 3, ""),
        ("exit('bye')", 1, "bye\n"),
    ] {
        let result = python.run(source).await;
        assert_eq!(result.exit.exit_code, code, "{source}: {}", result.stderr.text());
        assert!(result.stderr.text().ends_with(says), "{source}: {}", result.stderr.text());
    }
    python.run("import asyncio\nasync def work(): return 41\ntask = asyncio.create_task(work())").await;
    assert_eq!(python.value("await task + 1").await, "42");
    let result = python.run("import unittest.mock as m; display(m.MagicMock(), {'n': float('nan')})").await;
    assert_eq!(types(&result), [["text/plain"]; 2]);
    assert_eq!(types(&python.run("{'a': [1]}").await), [["application/json", "text/plain"]]);
}
