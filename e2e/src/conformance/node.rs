//! Contexts of Node.js: what the cells of a notebook may say, and what is shown of their values and errors.

use std::fmt::Write as _;

use bouvet_host::{ExecRequest, Host, Program};
use bytes::Bytes;

use super::contexts::{Notebook, text, types};
use super::create;
use crate::drive::{patient, run};

const KINDS: [&str; 6] = ["let", "const", "var", "class", "function", "import"];

/// Each of `count` numbers after each, itself too: a de Bruijn sequence.
fn all_pairs(count: usize) -> Vec<usize> {
    let mut order = Vec::new();
    for one in 0..count {
        order.push(one);
        (one + 1..count).for_each(|other| order.extend([one, other]));
    }
    order.push(0);
    order
}

/// A declaration of `thing` with the value `n`, and what `peek()` then finds.
fn declared(kind: &str, n: usize) -> (String, String) {
    let value = format!("'{n}'");
    match kind {
        "class" => (format!("class thing {{ static n = {n} }}"), format!("'class {n}'")),
        "function" => (format!("function thing() {{ return {n} }}"), format!("'function {n}'")),
        "import" if n.is_multiple_of(2) => ("import thing from './thing.mjs'".into(), "'default'".into()),
        "import" => ("import { named as thing } from './thing.mjs'".into(), "'named'".into()),
        _ if n.is_multiple_of(2) => (format!("{kind} thing = {value}"), value),
        _ => (format!("{kind} {{ a: [thing = {value}], ...rest }} = {{ a: [], b: 1 }}"), value),
    }
}

pub async fn node_redeclares_names_of_every_kind(host: &Host) {
    let sandbox = create(host).await;
    let module = "export default 'default'; export const named = 'named';";
    sandbox.write("thing.mjs", Bytes::from(module), false).await.unwrap();
    let node = Notebook::new(&sandbox, Program::Node).await;
    let peek = "function peek() {
        if (typeof thing !== 'function') return thing;
        return 'n' in thing ? `class ${thing.n}` : `function ${thing()}`;
    }";
    node.run(peek).await;
    let order = all_pairs(KINDS.len());
    let pairs: std::collections::BTreeSet<_> = order.windows(2).map(|pair| (pair[0], pair[1])).collect();
    assert_eq!((pairs.len(), order.len()), (36, 37));
    for (n, kind) in order.into_iter().enumerate() {
        let (source, expected) = declared(KINDS[kind], n);
        assert_eq!(node.value(&format!("{source}\npeek()")).await, expected, "{n}: {source}");
    }
    node.run("const fixed = 1; let fixedToo = 2").await;
    for source in ["fixed = 2", "fixed++", "({ fixed } = { fixed: 2 })", "(() => { fixed = 3 })()"] {
        let result = node.run(source).await;
        assert!(
            result.stderr.text().starts_with("TypeError: Assignment to constant variable.\n"),
            "{source}"
        );
    }
    assert_eq!(node.value("{ let fixed = 2; fixed = 3 }; fixedToo = fixed").await, "1");
    assert_eq!(node.value("let fixed; fixed").await, "", "declared again, it has no value");
    assert_eq!(node.value("const crypto = require('crypto'); typeof crypto.createHash").await, "'function'");
}

pub async fn node_awaits_a_promise_as_last_value(host: &Host) {
    let sandbox = create(host).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    let main = "async function main() { await new Promise((go) => setTimeout(go, 50)); console.log('finished'); return { n: 1 } }\nmain()";
    let result = node.run(main).await;
    assert_eq!(result.stdout.text(), "finished\n");
    assert_eq!(text(&result.results[0], "text/plain"), "{ n: 1 }");
    assert_eq!(text(&result.results[0], "application/json"), r#"{"n":1}"#);
    let result = node.run("async function fails() { await null; throw new Error('late') }\nfails()").await;
    assert_eq!(result.exit.exit_code, 1);
    assert!(
        result.stderr.text().starts_with("Error: late\n    at fails (cell-2:1:"),
        "{}",
        result.stderr.text()
    );
    assert!(
        node.run("const kept = Promise.reject(new Error('handled')); kept.catch(() => {}); 1")
            .await
            .stderr
            .text()
            .is_empty()
    );
    let request = ExecRequest { timeout: patient(2), ..node.request("new Promise(() => {})") };
    let result = node.try_run(request).await.unwrap();
    assert!(result.exit.timed_out && result.exit.exit_code == 130 && result.exit.context_death.is_none());
    assert_eq!(node.value("Promise.resolve()").await, "");
    // Errors between two runs end neither the context nor the next run.
    node.run("setTimeout(() => { Promise.reject(new Error('between')); throw new Error('thrown') }, 1); 1")
        .await;
    node.run("await 1").await;
    assert_eq!(node.value("typeof main").await, "'function'");
}

pub async fn node_tells_objects_from_blocks(host: &Host) {
    let sandbox = create(host).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    for (source, value) in [
        ("{ n: 2 }", "{ n: 2 }"),
        ("{ n: 2, m: [1] } // both", "{ n: 2, m: [ 1 ] }"),
        ("/* first */ {}", "{}"),
        ("{ n: 2 }.n", "2"),
        ("{ let a = 1; a }", "1"),
        ("{ n: 2 };", "2"),
        ("var shown = 3; { shown }", "3"),
    ] {
        assert_eq!(node.value(source).await, value, "{source}");
    }
}

pub async fn node_cells_are_modules(host: &Host) {
    let sandbox = create(host).await;
    sandbox.write("d.json", Bytes::from(r#"{"a": 7}"#), false).await.unwrap();
    let module = "console.log('loaded'); export default 1; export const two = 2; export { two as 'a name' };";
    sandbox.write("m.mjs", Bytes::from(module), false).await.unwrap();
    let node = Notebook::new(&sandbox, Program::Node).await;
    for (source, value) in [
        ("import data from './d.json' with { type: 'json' };\ndata.a", "7"),
        ("(await import('./d.json', { with: { type: 'json' } })).default.a", "7"),
        ("import './m.mjs'", ""),
        ("import one, { two, 'a name' as three } from './m.mjs'\n[one, two, three]", "[ 1, 2, 2 ]"),
        ("import * as all from './m.mjs'; all.two", "2"),
        ("late; import { default as late } from './m.mjs'", "1"),
        ("const load = (name) => import(name); load('./m.mjs').then((m) => m.two)", "2"),
        ("export const shared = 4; export { shared as other }; export * from './m.mjs'; shared", "4"),
        ("export default function named() { return 5 }\nnamed()", "5"),
        ("export default { n: 6 }", "{ n: 6 }"),
        ("require('./d.json').a", "7"),
        ("require.main === module && module.filename === __filename", "true"),
        ("import.meta.dirname === process.cwd() && __dirname === process.cwd()", "true"),
        ("import.meta.url === require('url').pathToFileURL(import.meta.filename).href", "true"),
        ("import.meta.resolve('./d.json') === new URL('d.json', import.meta.url).href", "true"),
        ("import.meta.mine = 1; import.meta.mine", "1"),
    ] {
        assert_eq!(node.value(source).await, value, "{source}");
    }
    assert_eq!(node.run("import './m.mjs'; import('./m.mjs')").await.stdout.text(), "", "it is loaded once");
    for (source, says) in [
        (
            "1\nimport { nothing } from './m.mjs'",
            "cell-18:2\nimport { nothing } from './m.mjs'\n^\n\nSyntaxError: The requested module './m.mjs' does not provide an export named 'nothing'\n",
        ),
        ("import './missing.mjs'", "cell-19:1\nimport './missing.mjs'\n^\n\nError [ERR_MODULE_NOT_FOUND]"),
        (
            "import fs from 'fs';\nlet x = = 1",
            "cell-20:2\nlet x = = 1\n        ^\n\nSyntaxError: Unexpected token\n",
        ),
    ] {
        let result = node.run(source).await;
        assert!(
            result.exit.exit_code == 1 && result.stderr.text().starts_with(says),
            "{}",
            result.stderr.text()
        );
    }
}

pub async fn node_values_are_shown_without_running_them(host: &Host) {
    let sandbox = create(host).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    let trap =
        "var trap = new Proxy({ n: 1 }, new Proxy({}, { get: (_, name) => { console.log('trap', name) } }))";
    node.run(trap).await;
    for (source, value) in [
        ("trap", "{ n: 1 }"),
        ("[trap]", "[ { n: 1 } ]"),
        ("Promise.resolve([trap])", "[ { n: 1 } ]"),
        ("({ then() { console.log('then') } })", "{ then: [Function: then] }"),
        ("({ get a() { throw new Error('getter') } })", "{ a: [Getter] }"),
        ("const ring = { n: 1 }; ring.me = ring; ring", "<ref *1> { n: 1, me: [Circular *1] }"),
        ("[10n, Symbol('s'), NaN, -0, undefined]", "[ 10n, Symbol(s), NaN, -0, undefined ]"),
        ("10n", "10n"),
        ("Symbol('s')", "Symbol(s)"),
        ("new (class Point { x = 1 })()", "Point { x: 1 }"),
        ("[Buffer.from('ab'), new Uint8Array(1)]", "[ <Buffer 61 62>, Uint8Array(1) [ 0 ] ]"),
        ("[new Map([[1, 2]]), new Set([3])]", "[ Map(1) { 1 => 2 }, Set(1) { 3 } ]"),
    ] {
        let result = node.run(source).await;
        assert_eq!((result.stdout.text(), result.stderr.text()), (String::new(), String::new()), "{source}");
        assert_eq!(types(&result), [["text/plain"]], "{source}");
        assert_eq!(text(&result.results[0], "text/plain"), value, "{source}");
    }
    let result = node
        .run("({ [Symbol.for('nodejs.util.inspect.custom')]() { throw new Error('its own') }, n: 1 })")
        .await;
    assert_eq!((result.exit.exit_code, result.results.len()), (0, 1));
    assert!(
        text(&result.results[0], "text/plain").contains("n: 1") && result.stderr.text().contains("its own")
    );
}

pub async fn node_errors_name_the_cell_alone(host: &Host) {
    let sandbox = create(host).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    let mut shown = String::new();
    for source in [
        "const error = new Error('logged'); console.log(error); console.log(error.stack); error",
        "async function f() { await null; throw new Error('rejected') }\nf()",
        "Promise.reject(new Error('unhandled')); await new Promise((go) => setTimeout(go, 50))",
        "setTimeout(() => { throw new Error('timer') }, 5); await new Promise((go) => setTimeout(go, 500))",
        "throw Object.assign(new Error('thrown'), { cause: new Error('cause') })",
    ] {
        let result = node.run(source).await;
        let values = result.results.iter().map(|result| text(result, "text/plain"));
        let value = values.collect::<String>();
        write!(shown, "{}{}{value}", result.stdout.text(), result.stderr.text()).unwrap();
    }
    for line in [
        "Error: logged\n    at cell-1:1:15\nError: logged\n    at cell-1:1:15\nError: logged\n    at cell-1:1:15",
        "Error: rejected\n    at f (cell-2:1:40)",
        "Error: unhandled\n    at cell-3:1:16",
        "Error: timer\n    at Timeout._onTimeout (cell-4:1:26)",
        "Error: thrown\n    at cell-5:1:21",
        "cause: Error: cause\n      at cell-5:1:",
    ] {
        assert!(shown.contains(line), "{line} in:\n{shown}");
    }
    for ours in ["context.js", "cell.js", "bouvet", "node:inspector", "evalmachine"] {
        assert!(!shown.contains(ours), "{ours} in:\n{shown}");
    }
}

pub async fn node_programs_show_no_frames_of_ours(host: &Host) {
    let sandbox = create(host).await;
    let thrown = "const order = [];\nprocess.nextTick(() => order.push('tick'));\n\
        Promise.resolve().then(() => order.push('microtask'));\norder.push('script');\n\
        setImmediate(() => { console.log(...order, module.loaded); f(); });\n\
        console.log(new Error('logged').stack, module.loaded);\nfunction f() { throw new Error('thrown'); }";
    let result = run(&sandbox, Program::Node, thrown).await;
    let shown = format!("{}{}", result.stdout.text(), result.stderr.text());
    for line in [
        "Error: logged\n    at Object.<anonymous> (",
        "main.js:6:13)\n    at process.processTicksAndRejections (node:internal/",
        " false\nscript tick microtask true\n",
        "main.js:7\nfunction f() { throw new Error('thrown'); }\n               ^\n\nError: thrown\n    at f (",
    ] {
        assert!(shown.contains(line), "{line} in:\n{shown}");
    }
    let misspelt = run(&sandbox, Program::Node, "let it = = 1").await;
    let misspelt = misspelt.stderr.text();
    assert!(misspelt.contains("main.js:1\nlet it = = 1\n         ^\n\nSyntaxError: "), "{misspelt}");
    for ours in ["runScript", "compiled", "node.js:"] {
        assert!(!shown.contains(ours) && !misspelt.contains(ours), "{ours} in:\n{shown}{misspelt}");
    }
}

pub async fn node_cells_hint_at_habits_from_elsewhere(host: &Host) {
    let sandbox = create(host).await;
    let node = Notebook::new(&sandbox, Program::Node).await;
    for (source, hint) in [
        ("!echo hello", "hint: `!` and `%` lines"),
        ("const n = 1\n%pip install requests", "hint: `!` and `%` lines"),
        ("%%bash\necho hello", "hint: `!` and `%` lines"),
        ("!ls", "hint: `!` and `%` lines"),
        ("files = !ls -la", "hint: `!` and `%` lines"),
        (
            "const { Worker } = require('worker_threads'); new Worker(__filename); await new Promise(() => {})",
            "hint: code in a context is not a file",
        ),
        ("let n = = 1", ""),
        ("if (n &&\n    !n) { let m = = 1 }", ""),
        ("!n && nonesuch", ""),
    ] {
        let result = node.run(source).await;
        let stderr = result.stderr.text();
        assert_eq!(result.exit.exit_code, 1, "{source}: {stderr}");
        let found = stderr.lines().last().filter(|line| line.starts_with("hint: ")).unwrap_or_default();
        assert!(
            if hint.is_empty() { found.is_empty() } else { found.starts_with(hint) },
            "{source}: {stderr}"
        );
    }
    let places = "[__dirname === process.cwd(), require('path').dirname(__filename) === process.cwd()]";
    assert_eq!(node.value(places).await, "[ true, true ]");
}
