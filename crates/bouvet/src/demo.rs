//! `bouvet demo`: what a first user would try, step by step, on a server of its own.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::{Client, ServerProcess};

const PROGRAMS: [(&str, &str, &str); 4] = [
    (
        "python",
        "import platform, sys\nprint('hello from Python', platform.python_version())",
        "hello from Python 3",
    ),
    ("node", "console.log('hello from Node.js', process.version)", "hello from Node.js v"),
    ("bash", "echo \"hello from Bash ${BASH_VERSION%%(*}, kernel $(uname -r)\"", "hello from Bash "),
    (
        "rust",
        "fn main() { println!(\"hello from Rust, {} CPU\", std::thread::available_parallelism().unwrap()); }",
        "hello from Rust, ",
    ),
];

pub(crate) async fn run() -> anyhow::Result<()> {
    let server = step("start the server", async {
        let server = ServerProcess::start(&[]).await?;
        let url = server.url();
        Ok((server, url))
    })
    .await?;
    let client = step("connect an MCP client", async {
        let client = Client::connect(&server.url()).await?;
        Ok((client, "streamable HTTP".to_owned()))
    })
    .await?;
    step("make a template and a pool", async {
        server.wait_until_pooled().await?;
        Ok(((), "kept for the next time; what follows is cloned from it".to_owned()))
    })
    .await?;
    let sandbox = step("create_sandbox", async {
        let created = client.call("create_sandbox", json!({})).await?;
        let id = text(&created, "sandbox_id");
        Ok((id.clone(), id))
    })
    .await?;
    for (language, code, expected) in PROGRAMS {
        step(&format!("execute_code, {language}"), async {
            let arguments = json!({ "sandbox_id": sandbox, "language": language, "code": code });
            let outcome = client.call("execute_code", arguments).await?;
            let stdout = text(&outcome, "stdout");
            ensure!(stdout.starts_with(expected), "it printed `{stdout}` and `{}`", text(&outcome, "stderr"));
            Ok(((), stdout))
        })
        .await?;
    }
    notebook(&client, &sandbox).await?;
    files(&client, &sandbox).await?;
    port(&client, &sandbox).await?;
    step("destroy_sandbox", async {
        client.call("destroy_sandbox", json!({ "sandbox_id": sandbox })).await?;
        Ok(((), String::new()))
    })
    .await?;
    client.close().await;
    step("stop the server", async { server.stop().await.map(|()| ((), String::new())) }).await?;
    say("\nThat was all of it. `make run` starts a server on port 8080 for your own MCP client.\n");
    Ok(())
}

async fn notebook(client: &Client, sandbox: &str) -> anyhow::Result<()> {
    let context = step("create_context", async {
        let created =
            client.call("create_context", json!({ "sandbox_id": sandbox, "language": "python" })).await?;
        let id = text(&created, "context_id");
        Ok((id.clone(), id))
    })
    .await?;
    for (code, expected) in [("x = 6", Value::Null), ("x * 7", json!("42"))] {
        step("execute_code, in it", async {
            let arguments =
                json!({ "sandbox_id": sandbox, "language": "python", "context_id": context, "code": code });
            let outcome = client.call("execute_code", arguments).await?;
            let shown = &outcome["results"][0]["text/plain"];
            ensure!(*shown == expected, "it returned {outcome}");
            Ok(((), format!("{code}  {}", shown.as_str().unwrap_or_default())))
        })
        .await?;
    }
    step("list_contexts", async {
        let listed = client.call("list_contexts", json!({ "sandbox_id": sandbox })).await?;
        ensure!(listed["contexts"][0]["state"] == "idle", "it listed {listed}");
        Ok(((), "python, idle".to_owned()))
    })
    .await?;
    step("destroy_context", async {
        client.call("destroy_context", json!({ "sandbox_id": sandbox, "context_id": context })).await?;
        Ok(((), String::new()))
    })
    .await
}

async fn files(client: &Client, sandbox: &str) -> anyhow::Result<()> {
    let content = "a line of text\n";
    step("write_file", async {
        let arguments = json!({ "sandbox_id": sandbox, "path": "notes/today.txt", "content": content });
        client.call("write_file", arguments).await?;
        Ok(((), "notes/today.txt".to_owned()))
    })
    .await?;
    step("read_file", async {
        let read =
            client.call("read_file", json!({ "sandbox_id": sandbox, "path": "notes/today.txt" })).await?;
        ensure!(text(&read, "content") == content, "it read {read}");
        Ok(((), content.to_owned()))
    })
    .await?;
    step("list_directory", async {
        let listed = client.call("list_directory", json!({ "sandbox_id": sandbox, "path": "notes" })).await?;
        let names: Vec<_> =
            listed["entries"].as_array().into_iter().flatten().map(|entry| text(entry, "name")).collect();
        ensure!(names == ["today.txt"], "it listed {listed}");
        Ok(((), names.join(" ")))
    })
    .await?;
    step("run_command", async {
        let arguments = json!({ "sandbox_id": sandbox, "command": "wc -c < notes/today.txt; exit 3" });
        let outcome = client.call("run_command", arguments).await?;
        ensure!(outcome["exit_code"] == 3 && text(&outcome, "stdout") == "15\n", "it returned {outcome}");
        Ok(((), "15, exit code 3, as asked".to_owned()))
    })
    .await
}

async fn port(client: &Client, sandbox: &str) -> anyhow::Result<()> {
    step("expose_port", async {
        let command = "cd notes && (python3 -m http.server 8000 >/dev/null 2>&1 &); \
                       until (: </dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done";
        client.call("run_command", json!({ "sandbox_id": sandbox, "command": command })).await?;
        let exposed = client.call("expose_port", json!({ "sandbox_id": sandbox, "port": 8000 })).await?;
        let url = text(&exposed, "url");
        let page = reqwest::get(format!("{url}today.txt")).await?.error_for_status()?.text().await?;
        ensure!(page == "a line of text\n", "{url} has {page:?}");
        Ok(((), format!("{url}today.txt")))
    })
    .await
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// Runs one step, and prints its name, its time and what came of it.
async fn step<T>(name: &str, work: impl Future<Output = anyhow::Result<(T, String)>>) -> anyhow::Result<T> {
    let spinner = indicatif::ProgressBar::new_spinner().with_message(name.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let started = Instant::now();
    let result = work.await;
    let took = started.elapsed();
    spinner.finish_and_clear();
    let (mark, note) = match &result {
        Ok((_, note)) => ("ok  ", note.trim_end()),
        Err(_) => ("FAIL", ""),
    };
    say(&format!("{mark} {name:<24} {:>8.1} ms  {note}\n", took.as_secs_f64() * 1000.0));
    result.map(|(value, _)| value)
}

fn say(text: &str) {
    // A closed standard output is no reason to stop.
    std::io::stdout().write_all(text.as_bytes()).ok();
}
