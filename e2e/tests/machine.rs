//! What a sandbox is to the programs in it: the languages, the clock, the names, the resources.

use std::time::{SystemTime, UNIX_EPOCH};

use bouvet_e2e::drive::{printed, run, sh};
use bouvet_e2e::site::{Site, small};
use bouvet_host::{Acceleration, BoxConfig, ExecRequest, Program};
use bytes::Bytes;

/// Prints in a second process of its own executable, and ends as that does.
const RUST_STARTS_ITSELF: &str = r#"fn main() {
    if std::env::args().len() == 1 {
        let own = std::env::current_exe().unwrap();
        let child = std::process::Command::new(own).arg("child").status().unwrap();
        std::process::exit(child.code().unwrap());
    }
    println!("rust");
    std::process::exit(3);
}"#;

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
        (
            Program::Node,
            "console.log('node', process.versions.node.split('.')[0]);\nprocess.exit(3);",
            "node 20\n",
        ),
        (Program::Bash, "echo bash ${BASH_VERSINFO[0]}\nexit 3", "bash 5\n"),
        (Program::Rust, RUST_STARTS_ITSELF, "rust\n"),
    ];
    for (program, source, expected) in programs {
        let result = run(&sandbox, program, source).await;
        assert_eq!(result.stdout.text(), expected, "{program:?}: {}", result.stderr.text());
        assert_eq!(result.exit.exit_code, 3, "{program:?}");
    }
    site.end().await;
}

/// QEMU 7.2 loses processor flags in it, which made one kernel of a thousand panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emulated_kernel_does_without_cmpxchg16b() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let kernel_uses_it = sh(&sandbox, "grep -cw cx16 /proc/cpuinfo || true").await;
    let emulated = site.host.acceleration() == Acceleration::Software;
    assert_eq!(kernel_uses_it == "0", emulated, "{kernel_uses_it}");
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
    let adder = "fn main() {\n    let numbers = std::io::stdin().lines();\n    \
        let sum: u32 = numbers.map(|n| n.unwrap().parse::<u32>().unwrap()).sum();\n    println!(\"{sum}\");\n}";
    let mut request = ExecRequest::new(Program::Rust, adder);
    request.stdin = Bytes::from("1\n2\n39\n");
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!((result.stdout.text().as_str(), result.exit.exit_code), ("42\n", 0), "{result:?}");
    let result = run(&sandbox, Program::Rust, "fn main() {\n    let x: u8 = \"text\";\n}").await;
    let said = result.stderr.text();
    assert_eq!((result.exit.exit_code, result.stdout.text()), (1, String::new()), "{said}");
    assert!(said.contains("error[E0308]: mismatched types") && said.contains("main.rs:2:17"), "{said}");
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
