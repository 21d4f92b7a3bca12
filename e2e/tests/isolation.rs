//! What a sandbox keeps from others, from its host and from itself: on QEMU, because only a VM can.

#![expect(clippy::unwrap_used, reason = "test code: a panic is how it reports")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bouvet_e2e::site::{Site, small};
use bouvet_host::{
    BoxConfig, ExecError, ExecRequest, ExecResult, FileError, Program, Refusal, Sandbox, State,
};
use bytes::Bytes;

async fn run(sandbox: &Sandbox, program: Program, source: &str) -> ExecResult {
    let exec = sandbox.exec(ExecRequest::new(program, source.to_owned())).await.unwrap();
    exec.finish().await.unwrap()
}

async fn run_at_most(sandbox: &Sandbox, seconds: u64, program: Program, source: &str) -> ExecResult {
    let mut request = ExecRequest::new(program, source.to_owned());
    request.timeout = Duration::from_secs(seconds);
    sandbox.exec(request).await.unwrap().finish().await.unwrap()
}

/// What `source` prints; it must succeed.
async fn printed(sandbox: &Sandbox, program: Program, source: &str) -> String {
    let result = run(sandbox, program, source).await;
    assert_eq!(result.exit.exit_code, 0, "{source}: {:?} {}", result.exit, result.stderr.text());
    result.stdout.text().trim_end().to_owned()
}

async fn sh(sandbox: &Sandbox, command: &str) -> String {
    printed(sandbox, Program::Command, command).await
}

/// Waits until `command` succeeds.
async fn eventually(sandbox: &Sandbox, command: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while run(sandbox, Program::Command, command).await.exit.exit_code != 0 {
        assert!(Instant::now() < deadline, "`{command}` never succeeded");
    }
}

/// A sandbox whose programs and files work as if nothing had happened.
async fn assert_usable(sandbox: &Sandbox) {
    assert_eq!(sh(sandbox, "echo a command").await, "a command");
    assert_eq!(printed(sandbox, Program::Python, "print('a program')").await, "a program");
    sandbox.write("usable", Bytes::from("a file"), false).await.unwrap();
    assert_eq!(sandbox.read("usable", 0, 100).await.unwrap().bytes, b"a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_ends_with_its_deadline() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let result = run_at_most(&sandbox, 5, Program::Bash, ":(){ :|:& };:\nsleep 3223").await;
    assert!(result.exit.timed_out, "{:?}", result.exit);
    assert_usable(&sandbox).await;
    eventually(&sandbox, "! pgrep -f 'main[.]sh'").await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_in_the_background_leaves_room_for_others() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    run(&sandbox, Program::Command, ":(){ :|:& };:").await;
    assert_usable(&sandbox).await;
    // Bash waits longer and longer before it tries again. This one does not.
    let tireless = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass";
    sandbox.write("tireless.py", Bytes::from(tireless), false).await.unwrap();
    sh(&sandbox, "python3 tireless.py >tireless.log 2>&1 &").await;
    eventually(&sandbox, "[ $(pgrep -fc 'tireless[.]py') -gt 100 ]").await;
    assert_usable(&sandbox).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_hog_kills_itself_alone() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    sh(&sandbox, "sleep 3224 &").await;
    let creeping = "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 20))";
    let result = run(&sandbox, Program::Python, creeping).await;
    assert_eq!((result.exit.exit_code, result.exit.out_of_memory), (128 + 9, true), "{result:?}");
    assert_usable(&sandbox).await;
    assert_eq!(sh(&sandbox, "pgrep -xc sleep").await, "1", "the other program lives on");
    let result = run(&sandbox, Program::Python, "bytearray(1 << 40)").await;
    assert_eq!((result.exit.exit_code, result.exit.out_of_memory), (1, false), "{result:?}");
    assert!(result.stderr.text().ends_with("MemoryError\n"), "{}", result.stderr.text());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_takes_all_the_memory_it_may_leaves_room_for_others() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let greedy = "
import time
cgroup = '/sys/fs/cgroup' + open('/proc/self/cgroup').read().strip().removeprefix('0::')
read = lambda name: int(open(f'{cgroup}/{name}').read())
hoard = []
while read('memory.current') < read('memory.max') - (4 << 20):
    hoard.append(b'x' * (1 << 20))
open('has-all', 'w').close()
time.sleep(3225)
";
    sandbox.write("greedy.py", Bytes::from(greedy), false).await.unwrap();
    sh(&sandbox, "python3 greedy.py >greedy.log 2>&1 &").await;
    eventually(&sandbox, "[ -e has-all ]").await;
    assert_usable(&sandbox).await;
    sh(&sandbox, "pkill -f 'greedy[.]py'").await;
    site.end().await;
}

/// Memory that is written to a file system in memory stays taken when its writer is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_systems_in_memory_cannot_take_all_of_it() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    // What is the service's own can be spoiled, like the service; nobody does that by mistake.
    let places = sh(&sandbox, "findmnt -rno TARGET -t tmpfs,devtmpfs,ramfs | grep -v bouvet").await;
    for expected in ["/dev", "/dev/shm", "/run"] {
        assert!(places.lines().any(|place| place == expected), "{places}");
    }
    for place in places.lines() {
        let result = run(&sandbox, Program::Command, &format!("cat /dev/zero >{place}/hog")).await;
        assert_eq!(result.exit.exit_code, 1, "{place}: {:?}", result.exit);
        assert!(result.stderr.text().contains("No space left on device"), "{}", result.stderr.text());
    }
    assert_usable(&sandbox).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_says_so_and_is_usable_again() {
    let Some(site) = Site::qemu().await else { return };
    let mut config = small();
    config.resources.disk_mb = 128;
    let sandbox = site.host.create(config).await.unwrap();
    sandbox.write("kept", Bytes::from("as it was"), false).await.unwrap();
    let result = run(&sandbox, Program::Command, "cat /dev/zero >big").await;
    assert_eq!(result.exit.exit_code, 1);
    assert!(result.stderr.text().contains("No space left on device"), "{}", result.stderr.text());

    assert_eq!(sh(&sandbox, "echo still here").await, "still here");
    assert_eq!(printed(&sandbox, Program::Python, "print(6 * 7)").await, "42");
    for path in ["kept", "new"] {
        let error = sandbox.write(path, Bytes::from(vec![b'x'; 1 << 20]), false).await.unwrap_err();
        assert!(matches!(error, FileError::DiskFull(_)), "{error:?}");
    }
    assert_eq!(sandbox.read("kept", 0, 100).await.unwrap().bytes, b"as it was");
    assert!(matches!(sandbox.read("new", 0, 1).await, Err(FileError::NotFound(_))));
    assert_eq!(sh(&sandbox, "ls -A | grep bouvet || true").await, "", "half a file was left");

    sh(&sandbox, "rm big").await;
    sandbox.write("kept", Bytes::from(vec![b'x'; 1 << 20]), false).await.unwrap();
    assert_usable(&sandbox).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_reaped() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let double_fork = "
import os
for number in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(f'orphan-{number}', 'w').close()
        os._exit(0)
";
    // No shell waits for them: the program itself ends before they are reaped by anybody.
    printed(&sandbox, Program::Python, double_fork).await;
    eventually(&sandbox, "[ $(ls orphan-* | wc -l) = 20 ]").await;
    eventually(&sandbox, "! ps -eo stat,pid,ppid,args | grep '^Z'").await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_language_runs() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let programs = [
        (
            Program::Python,
            "import sys\nprint('python', sys.version_info >= (3, 11))\nsys.exit(3)",
            "python True\n",
        ),
        (Program::Node, "console.log('node', process.version.split('.')[0]);\nprocess.exit(3)", "node v20\n"),
        (Program::Bash, "echo bash ${BASH_VERSINFO[0]}\nexit 3", "bash 5\n"),
        (Program::Rust, "fn main() {\n    println!(\"rust\");\n    std::process::exit(3);\n}", "rust\n"),
    ];
    for (program, source, expected) in programs {
        let result = run(&sandbox, program, source).await;
        assert_eq!(result.stdout.text(), expected, "{program:?}: {}", result.stderr.text());
        assert_eq!(result.exit.exit_code, 3, "{program:?}");
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_runs_scripts_and_modules() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    sandbox.write("answer.js", Bytes::from("module.exports = { answer: 42 };"), false).await.unwrap();
    sandbox.write("answer.mjs", Bytes::from("export const answer = 43;"), false).await.unwrap();
    let node = async |source| printed(&sandbox, Program::Node, source).await;
    let script = "const { answer } = require('./answer');\nconsole.log(answer, require.main === module);";
    assert_eq!(node(script).await, "42 true");
    let module = "import { answer } from './answer.mjs';\nimport fs from 'node:fs';\n\
        console.log(answer, fs.existsSync('answer.mjs'));";
    assert_eq!(node(module).await, "43 true");
    let awaiting = "const answer = await new Promise(done => setTimeout(() => done(44), 10));\n\
        console.log(answer);";
    assert_eq!(node(awaiting).await, "44");

    let failed = async |source| {
        let result = run(&sandbox, Program::Node, source).await;
        assert_eq!(result.exit.exit_code, 1, "{result:?}");
        result.stderr.text()
    };
    let said = failed("console.log('fine');\nlet it = = 1;\n").await;
    assert!(said.contains("main.js:2\nlet it = = 1;") && said.contains("SyntaxError"), "{said}");
    let said = failed("import './answer.mjs';\nlet it = = 1;\n").await;
    assert!(said.contains("main.mjs:2\nlet it = = 1;") && said.contains("SyntaxError"), "{said}");
    let said = failed("function f() {\n    throw new Error('on purpose');\n}\nf();").await;
    assert!(said.contains("Error: on purpose\n    at f (") && said.contains("main.js:2:11"), "{said}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_programs_are_compiled_and_fed() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let adder = "fn main() {\n    let sum: i64 = std::io::stdin().lines().map(|line| line.unwrap().parse::<i64>().unwrap()).sum();\n    println!(\"{sum}\");\n}";
    let mut request = ExecRequest::new(Program::Rust, adder);
    request.stdin = Bytes::from("1\n2\n39\n");
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!((result.stdout.text().as_str(), result.exit.exit_code), ("42\n", 0), "{result:?}");

    let result = run(&sandbox, Program::Rust, "fn main() {\n    let x: u8 = \"text\";\n}").await;
    let said = result.stderr.text();
    assert_ne!(result.exit.exit_code, 0, "{said}");
    assert!(said.contains("error[E0308]: mismatched types") && said.contains("main.rs:2:17"), "{said}");
    let result = run(&sandbox, Program::Rust, "fn main() {\n    panic!(\"on purpose\");\n}").await;
    let said = result.stderr.text();
    assert_eq!(result.exit.exit_code, 101, "{said}");
    assert!(said.contains("panicked at main.rs:2:5:\non purpose"), "{said}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_share_nothing_that_they_can_change() {
    let Some(site) = Site::qemu().await else { return };
    let (one, other) = tokio::join!(site.host.create(small()), site.host.create(small()));
    let (one, other) = (one.unwrap(), other.unwrap());
    sh(&one, "echo secret >/root/secret; echo secret >/tmp/secret; rm /usr/bin/git; echo : >/usr/bin/curl")
        .await;
    let untouched = "ls /root/secret /tmp/secret; git --version && curl --version";
    let later = site.host.create(small()).await.unwrap();
    for sandbox in [&other, &later] {
        let result = run(sandbox, Program::Command, untouched).await;
        assert!(result.stdout.text().starts_with("git version 2"), "{result:?}");
        assert!(result.stdout.text().contains("\ncurl 7."), "{result:?}");
        assert_eq!(result.stderr.text().matches("No such file or directory").count(), 2, "{result:?}");
    }
    let own = [
        "hostname",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/boot_id",
        "python3 -c 'import os; print(os.getrandom(32).hex())'",
    ];
    for command in own {
        let (of_one, of_other) = (sh(&one, command).await, sh(&other, command).await);
        assert_ne!(of_one, of_other, "`{command}` prints the same in two sandboxes");
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_and_the_names_are_right() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let seen: f64 = sh(&sandbox, "date +%s.%N").await.parse().unwrap();
    let after = now();
    assert!(before - 2.0 < seen && seen < after + 2.0, "{seen} is not between {before} and {after}");
    assert_eq!(sh(&sandbox, "date +%Z%z").await, "UTC+0000");

    let hostname = sh(&sandbox, "hostname").await;
    let id = sandbox.id().to_string();
    assert_eq!(hostname, format!("sandbox-{}", &id[..8]));
    assert_eq!(sh(&sandbox, "cat /etc/hostname; hostname -s").await, format!("{hostname}\n{hostname}"));
    assert!(sh(&sandbox, "getent hosts $(hostname)").await.contains(&hostname));
    assert_eq!(sh(&sandbox, "wc -c </etc/machine-id").await, "33");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_network_but_its_own_loopback() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    assert_eq!(sh(&sandbox, "ls /sys/class/net").await, "lo");
    let flags = sh(&sandbox, "cat /sys/class/net/lo/flags").await;
    assert_eq!(flags, "0x9", "up, and a loopback");

    sandbox.write("www/page", Bytes::from("served"), false).await.unwrap();
    sh(&sandbox, "python3 -m http.server --bind 127.0.0.1 --directory www 8000 >www.log 2>&1 &").await;
    let fetched =
        "curl --silent --fail --retry-connrefused --retry 60 --retry-delay 1 http://localhost:8000/page";
    assert_eq!(sh(&sandbox, fetched).await, "served");

    let outside = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=20)";
    let result = run(&sandbox, Program::Python, outside).await;
    assert!(result.stderr.text().contains("Network is unreachable"), "{}", result.stderr.text());
    let result = run(&sandbox, Program::Command, "curl --silent --show-error http://example.com").await;
    assert_eq!(result.exit.exit_code, 6, "no name is found: {}", result.stderr.text());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_has_the_resources_that_were_asked_for() {
    let Some(site) = Site::qemu().await else { return };
    let mut config = BoxConfig::default();
    config.resources.vcpus = 2;
    config.resources.memory_mb = 512;
    config.resources.disk_mb = 2048;
    let sandbox = site.host.create(config).await.unwrap();
    assert_eq!(sh(&sandbox, "nproc").await, "2");
    let within = |seen: u64, asked: u64| seen > asked * 8 / 10 && seen <= asked;
    let memory_kb: u64 = sh(&sandbox, "awk '/^MemTotal/ {print $2}' /proc/meminfo").await.parse().unwrap();
    assert!(within(memory_kb / 1024, 512), "{memory_kb} kB");
    let disk_mb: u64 = sh(&sandbox, "df -m --output=size / | tail -1").await.trim().parse().unwrap();
    assert!(within(disk_mb, 2048), "{disk_mb} MiB");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_sandboxes_at_once_get_their_own_answers() {
    let Some(site) = Site::qemu().await else { return };
    let work = (0..10).map(|number| {
        let host = &site.host;
        async move {
            let sandbox = host.create(small()).await.unwrap();
            sandbox.write("number", Bytes::from(number.to_string()), false).await.unwrap();
            let (program, source) = match number % 2 {
                0 => (Program::Python, "n = int(open('number').read())\nprint(n * n)"),
                _ => (Program::Bash, "read n <number || true\necho $((n * n))"),
            };
            printed(&sandbox, program, source).await
        }
    });
    let answers = tokio::time::timeout(Duration::from_secs(120), futures_util::future::join_all(work));
    let answers = answers.await.unwrap();
    assert_eq!(answers, (0..10).map(|n: u32| (n * n).to_string()).collect::<Vec<_>>());
    site.end().await;
}
