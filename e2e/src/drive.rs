//! Runs programs in sandboxes, the way tests want it.

use std::time::{Duration, Instant};

use bouvet_host::{ExecRequest, ExecResult, Program, Sandbox};
use bytes::Bytes;

/// So many seconds, or a multiple where `BOUVET_TEST_PATIENCE` says that VMs are slower than anybody's: with KVM in
/// software, that is some ten times.
pub fn patient(seconds: u64) -> Duration {
    let factor = std::env::var_os("BOUVET_TEST_PATIENCE").and_then(|factor| factor.to_str()?.parse().ok());
    Duration::from_secs(seconds) * factor.unwrap_or(1)
}

/// How `source` went.
pub async fn run(sandbox: &Sandbox, program: Program, source: &str) -> ExecResult {
    run_at_most(sandbox, 60, program, source).await
}

/// How `source` went, with a deadline of its own.
pub async fn run_at_most(sandbox: &Sandbox, seconds: u64, program: Program, source: &str) -> ExecResult {
    let mut request = ExecRequest::new(program, source.to_owned());
    request.timeout = patient(seconds);
    sandbox.exec(request).await.unwrap().finish().await.unwrap()
}

/// What `source` prints; it must succeed.
pub async fn printed(sandbox: &Sandbox, program: Program, source: &str) -> String {
    let result = run(sandbox, program, source).await;
    assert_eq!(result.exit.exit_code, 0, "{source}: {:?} {}", result.exit, result.stderr.text());
    result.stdout.text().trim_end().to_owned()
}

/// What `command` prints; it must succeed.
pub async fn sh(sandbox: &Sandbox, command: &str) -> String {
    printed(sandbox, Program::Command, command).await
}

/// Waits until `command` succeeds.
pub async fn eventually(sandbox: &Sandbox, command: &str) {
    let deadline = Instant::now() + patient(120);
    while run(sandbox, Program::Command, command).await.exit.exit_code != 0 {
        assert!(Instant::now() < deadline, "`{command}` never succeeded");
    }
}

/// Panics unless programs and files of `sandbox` work as if nothing had happened.
pub async fn assert_usable(sandbox: &Sandbox) {
    assert_eq!(sh(sandbox, "echo a command").await, "a command");
    assert_eq!(printed(sandbox, Program::Python, "print('a program')").await, "a program");
    sandbox.write("usable", Bytes::from("a file"), false).await.unwrap();
    assert_eq!(sandbox.read("usable", 0, 100).await.unwrap().bytes, b"a file");
}
