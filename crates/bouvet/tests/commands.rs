//! The real executable as people type it, on the engine without VMs.
#![cfg(feature = "fake")]
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes longer, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(120);
/// The grace period of a program after the first signal that asks it to end.
const GRACE: Duration = Duration::from_secs(10);

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("bouvet.sock")
    }

    #[expect(clippy::disallowed_methods, reason = "this is not a VM; it is our own executable")]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bouvet"));
        let at = |name: &str| self.dir.path().join(name);
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("BOUVET_ENGINE", "fake").env("BOUVET_TEMPLATES", "off").env("BOUVET_CGROUP", "off");
        command.env("BOUVET_CHROOT", at("state")).env("BOUVET_DATA", at("data"));
        command.env("BOUVET_SOCKET", self.socket()).env("BOUVET_TRANSPORT", "stdio");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must fail with our exit code, and returns its standard error.
    fn failure(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A server, once it answers.
    fn serve(&self) -> Process {
        let mut command = self.command(&["serve"]);
        let server = Process(command.stdin(Stdio::piped()).spawn().unwrap());
        until("the server answers", || self.run(&["ps"]).status.success());
        server
    }
}

/// Killed when dropped.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happens() {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn commands_without_server_report_its_absence() {
    let site = Site::new();
    let expected = format!(
        "error: no bouvet server is running (socket {}). Start one: bouvet serve\n",
        site.socket().display()
    );
    for line in [
        "exec web true",
        "logs web",
        "stop web",
        "inspect web",
        "cp web:/file .",
        "rm web",
        "rm -f web",
        "attach web",
        "kill -9 web",
        "wait web",
        "port web",
        "pause web",
        "stats",
        "ps",
        "events",
        "start web",
        "restart web",
        "run -d base",
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        assert_eq!(site.failure(&arguments), expected, "{line}");
    }
    for line in ["ps -a", "ps -f status=exited", "images", "network ls"] {
        let output = site.run(&line.split(' ').collect::<Vec<_>>());
        assert!(output.status.success(), "{line}: {output:?}");
    }
    assert!(is_empty(&site.dir.path().join("state")), "commands left files");
}

#[test]
fn removal_of_nothing_by_force_succeeds() {
    let site = Site::new();
    let _server = site.serve();
    let output = site.run(&["rm", "-f", "nosuch"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "there is no sandbox `nosuch`\n");
    assert!(site.failure(&["rm", "nosuch"]).contains("there is no sandbox `nosuch`"));
    let output = site.run(&["rmi", "-f", "nosuch"]);
    assert!(output.status.success(), "{output:?}");
}

/// Whether this process ignores a signal, and with it all that it starts (proc(5)).
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

#[test]
fn exec_kills_its_program_after_grace() {
    let site = Site::new();
    let _server = site.serve();
    let made = site.run(&["run", "-d", "--privileged", "--network", "none", "--name", "web", "base"]);
    assert!(made.status.success(), "{made:?}");
    // Ignores the signal, and is not read: `yes` fills every buffer on the way.
    let script = "trap '' TERM HUP; echo ready; exec yes";
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        if is_ignored(signal) {
            // Under nohup(1), for one: commands keep it ignored too.
            continue;
        }
        let mut command = site.command(&["exec", "web", "sh", "-c", script]);
        let mut process = Process(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut output = BufReader::new(process.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let asked = Instant::now();
        process.signal(signal);
        assert_eq!(process.code(), Some(code), "{signal:?}");
        assert!(asked.elapsed() >= GRACE, "{signal:?}: it had {:?} to end", asked.elapsed());
    }
    // One that obeys has its own exit code.
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = site.command(&["exec", "web", "sh", "-c", script]);
    let mut process = Process(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(process.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    process.signal(Signal::TERM);
    assert_eq!(process.code(), Some(7));
}
