//! Programs in a sandbox: the first run of each, and those after it.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Run;
use super::session::Server;

/// The compiler takes seconds, and shows in a few runs what it has to show.
const MAX_RUST_RUNS: u32 = 3;
/// A run takes seconds where instructions are emulated.
const MAX_LINES_RUNS: u32 = 5;

/// Prints enough lines for the start of an interpreter to count little.
const MANY_LINES: &str = "for (let n = 0; n < 20000; n++) console.log('line', n)";

struct Program {
    id: &'static str,
    name: &'static str,
    tool: &'static str,
    arguments: Value,
    prints: &'static str,
}

fn programs() -> [Program; 6] {
    let command = |id, name, command, prints| {
        let arguments = json!({ "command": command });
        Program { id, name, tool: "run_command", arguments, prints }
    };
    let code = |id, name, language, code| {
        let arguments = json!({ "language": language, "code": code });
        Program { id, name, tool: "execute_code", arguments, prints: "1\n" }
    };
    [
        command("true", "run_command true", "true", ""),
        command("python3", "run_command python3 -c 'print(1)'", "python3 -c 'print(1)'", "1\n"),
        code("python", "execute_code python print(1)", "python", "print(1)"),
        code("node", "execute_code node console.log(1)", "node", "console.log(1)"),
        code("bash", "execute_code bash echo 1", "bash", "echo 1"),
        code("rust", "execute_code rust println!(\"1\")", "rust", "fn main() { println!(\"1\") }"),
    ]
}

/// Runs each program in one sandbox.
pub(super) async fn calls(run: &mut Run) -> anyhow::Result<()> {
    let server = run.server(&[]).await?;
    server.warm().await?;
    let sandbox = server.agent.create().await?;
    server.quiet().await?;
    for Program { id, name, tool, arguments, prints } in programs() {
        let mut arguments = arguments;
        arguments["sandbox_id"] = Value::from(sandbox.as_str());
        let repeat = if id == "rust" { run.line.repeat.min(MAX_RUST_RUNS) } else { run.line.repeat };
        let mut times = Vec::new();
        // The first run of each pages its program in and translates it; it is reported by itself.
        for time in 0..=repeat {
            run.say(format!("{name}: {time} of {repeat}"));
            let started = Instant::now();
            let outcome = server.agent.call(tool, arguments.clone()).await?;
            times.push(started.elapsed());
            ensure!(outcome["exit_code"] == 0 && outcome["stdout"] == prints, "{name} came to {outcome}");
        }
        let (first, later) = times.split_at(1);
        run.report.add_times(&format!("{id}-first"), &format!("{name}, first"), first);
        run.report.add_times(&format!("{id}-later"), &format!("{name}, later"), later);
    }
    many_lines(run, &server, &sandbox).await?;
    server.agent.destroy(&sandbox).await?;
    server.end().await
}

/// Prints [`MANY_LINES`] in a program, and in a context whose interpreter runs already.
async fn many_lines(run: &mut Run, server: &Server, sandbox: &str) -> anyhow::Result<()> {
    let created = json!({ "sandbox_id": sandbox, "language": "node" });
    let created = server.agent.call("create_context", created).await?;
    let context = created["context_id"].as_str().context("no context was created")?;
    let program = json!({ "sandbox_id": sandbox, "language": "node", "code": MANY_LINES });
    let mut cell = program.clone();
    cell["context_id"] = Value::from(context);
    let repeat = run.line.repeat.min(MAX_LINES_RUNS);
    for (id, name, arguments) in [("lines", "a program", program), ("lines-context", "a context", cell)] {
        let mut times = Vec::new();
        for time in 1..=repeat {
            run.say(format!("20,000 lines of console.log in {name}: {time} of {repeat}"));
            let started = Instant::now();
            let outcome = server.agent.call("execute_code", arguments.clone()).await?;
            times.push(started.elapsed());
            ensure!(outcome["exit_code"] == 0, "{name} came to {outcome}");
        }
        run.report.add_times(id, &format!("20,000 lines of console.log in {name}"), &times);
    }
    Ok(())
}
