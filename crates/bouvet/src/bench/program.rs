//! Runs the programs of others: rivals, and those that say their version. Each has a deadline.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// For what answers at once.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// What is told of a program that failed, in bytes.
const MAX_COMPLAINT_BYTES: usize = 1000;

/// A program to be started, without input, that dies with us.
pub(super) fn command(program: &str, args: &[&str]) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this is no VM; it is what we are compared with")]
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs it to its end, and returns what it printed. That it fails is an error.
pub(super) async fn run(program: &str, args: &[&str], deadline: Duration) -> anyhow::Result<String> {
    let shown = || format!("`{program} {}`", args.join(" "));
    let output = tokio::time::timeout(deadline, command(program, args).output())
        .await
        .with_context(|| format!("{} did not end within {deadline:?}", shown()))?
        .with_context(|| format!("could not start {}", shown()))?;
    let complaint: String =
        String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_COMPLAINT_BYTES).collect();
    ensure!(output.status.success(), "{} failed, {}: {complaint}", shown(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it to its end, and returns the first line that it printed with the time until that came.
pub(super) async fn first_line(
    program: &str,
    args: &[&str],
    deadline: Duration,
) -> anyhow::Result<(String, Duration)> {
    let shown = || format!("`{program} {}`", args.join(" "));
    let started = Instant::now();
    let mut child = command(program, args)
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("could not start {}", shown()))?;
    let mut output = BufReader::new(child.stdout.take().context("standard output")?);
    let mut line = String::new();
    let run = async {
        output.read_line(&mut line).await?;
        let time = started.elapsed();
        tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
        anyhow::Ok((time, child.wait().await?))
    };
    let ended = tokio::time::timeout(deadline, run).await;
    let (time, status) = ended.with_context(|| format!("{} did not end within {deadline:?}", shown()))??;
    ensure!(status.success(), "{} failed, {status}", shown());
    Ok((line, time))
}

/// Where `PATH` has a program of this name.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_says_what_failed_and_why() {
        assert_eq!(run("echo", &["1"], SHORT).await.unwrap(), "1\n");
        assert_eq!(first_line("printf", &["1\\n2\\n"], SHORT).await.unwrap().0, "1\n");
        let error = run("sh", &["-c", "echo no >&2; exit 3"], SHORT).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no"), "{error}");
        let error = first_line("sh", &["-c", "echo 1; exit 3"], SHORT).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let error = run("sleep", &["60"], Duration::from_millis(10)).await.unwrap_err().to_string();
        assert!(error.contains("did not end within 10ms"), "{error}");
        assert!(run("no-such-program", &[], SHORT).await.is_err());
        assert!(find("sh").is_some() && find("no-such-program").is_none());
    }
}
