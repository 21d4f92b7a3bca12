//! Python programs: most are forks of an interpreter that runs already, and must not be able to tell.

use std::collections::BTreeMap;
use std::time::Instant;

use bouvet_host::{ExecRequest, Host, Program, Sandbox};
use bytes::Bytes;

use super::create;
use crate::drive::{patient, run, sh};

/// The first programs may find no interpreter to fork, and start their own.
async fn until_forked(sandbox: &Sandbox) {
    let cmdline = "print(open('/proc/self/cmdline').read())";
    let deadline = Instant::now() + patient(60);
    while !run(sandbox, Program::Python, cmdline).await.stdout.text().contains("--serve") {
        assert!(Instant::now() < deadline, "no program was ever a fork");
    }
}

pub async fn a_python_program_finds_what_it_would_in_an_interpreter_of_its_own(host: &Host) {
    let sandbox = create(host).await;
    let python = async |source: &str| run(&sandbox, Program::Python, source).await;
    until_forked(&sandbox).await;
    let seen = python(
        "import sys, os; print(sys.argv == [__file__], __name__, sys.stdin.read(), os.getpgrp() == os.getpid())",
    );
    assert_eq!(seen.await.stdout.text(), "True __main__  True\n");
    for (source, code, says) in [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(300)", 44, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
        ("import os; os.kill(os.getpid(), 9)", 137, ""),
        ("import os; os.abort()", 134, ""),
        ("import os; os._exit(3)", 3, ""),
        ("x = (", 1, "SyntaxError: '(' was never closed\n"),
        (
            "import threading; threading.Thread(target=lambda: 1 / 0).start()",
            0,
            "ZeroDivisionError: division by zero\n",
        ),
    ] {
        let result = python(source).await;
        assert_eq!(result.exit.exit_code, code, "{source}: {}", result.stderr.text());
        assert!(result.stderr.text().ends_with(says), "{source}: {}", result.stderr.text());
    }
}

pub async fn a_python_program_ends_as_an_interpreter_of_its_own_would(host: &Host) {
    let sandbox = create(host).await;
    until_forked(&sandbox).await;
    let python = async |source: &str| run(&sandbox, Program::Python, source).await;
    let end = "
import atexit, sys, threading, time
class Last:
    def __del__(self): print(word, flush=True)
word = 'deleted'
class Greedy:
    def __del__(self): globals().pop('other', None)
greedy, other = Greedy(), Greedy()
last, cycle = Last(), Last()
cycle.itself = cycle
file = open('flushed', 'w'); file.write('all of it')
atexit.register(print, 'at exit')
threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
sys.stdout.write('end\\n')
";
    let result = python(end).await;
    assert_eq!(result.stdout.text(), "end\nthread\nat exit\ndeleted\ndeleted\n", "{}", result.stderr.text());
    assert_eq!(sandbox.read("flushed", 0, 100).await.unwrap().bytes, b"all of it");
}

pub async fn python_programs_carry_nothing_over(host: &Host) {
    let sandbox = create(host).await;
    until_forked(&sandbox).await;
    let python = async |source: &str| run(&sandbox, Program::Python, source).await;
    python("import json, builtins; json.mine = builtins.mine = 1; import os; os.environ['MINE'] = '1'").await;
    let seen = python(
        "import json, builtins, os; print(hasattr(json, 'mine'), hasattr(builtins, 'mine'), 'MINE' in os.environ)",
    );
    assert_eq!(seen.await.stdout.text(), "False False False\n");

    // Modules of its own go before those that were imported already.
    sandbox.write("json.py", Bytes::from("answer = 42"), false).await.unwrap();
    sandbox.write("random/__init__.py", Bytes::from("answer = 43"), false).await.unwrap();
    let seen = python("import json, random; print(json.answer, random.answer)").await;
    assert_eq!(seen.stdout.text(), "42 43\n", "{}", seen.stderr.text());
    sh(&sandbox, "rm -r json.py random").await;

    let mut numbers: Vec<String> = Vec::new();
    for _ in 0..4 {
        let source = "import random, uuid, secrets; print(random.random(), uuid.uuid4(), secrets.token_hex(8), sep='\\n')";
        numbers.extend(python(source).await.stdout.text().lines().map(str::to_owned));
    }
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 12);

    // What only a fresh one can do.
    let mut request =
        ExecRequest::new(Program::Python, "import sys; print(sys.flags.hash_randomization, 'ä')");
    request.env = BTreeMap::from([
        ("PYTHONHASHSEED".into(), "0".into()),
        ("PYTHONIOENCODING".into(), "latin-1".into()),
    ]);
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!(result.stdout.head, b"0 \xe4\n", "{}", result.stderr.text());

    // Killed by a program, it is started again.
    python("import os; os.kill(os.getppid(), 9)").await;
    assert_eq!(python("print(6 * 7)").await.stdout.text(), "42\n");
}
