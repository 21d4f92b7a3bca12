//! The real executable as people type it, on the engine without VMs.
#![cfg(feature = "fake")]
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
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
        command.env("DOCKER_CONFIG", at("docker"));
        command
    }

    /// What a command line prints that succeeds, without the last line's end.
    fn ok(&self, line: &str) -> String {
        let output = self.run(&line.split_whitespace().collect::<Vec<_>>());
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// A sandbox of `run` or `create`, as the engine without VMs has it, with arguments before its image.
    fn sandbox(&self, verb: &str, arguments: &[&str]) -> Command {
        self.command(&[&[verb, "--privileged", "--network", "none"], arguments].concat())
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
        "version",
        "create base",
        "create --idle base",
        "container exec web true",
        "system events",
        "network policy web",
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        assert_eq!(site.failure(&arguments), expected, "{line}");
    }
    for line in ["ps -a", "ps -f status=exited", "container ls -a", "images", "network ls", "system prune -f"]
    {
        let output = site.run(&line.split(' ').collect::<Vec<_>>());
        assert!(output.status.success(), "{line}: {output:?}");
    }
    assert!(is_empty(&site.dir.path().join("state")), "commands left files");
    let version = site.run(&["version", "-f", "{{.Client.ApiVersion}} {{.Server}}"]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        "1 <no value>\n",
        "its own version needs no server"
    );
}

#[test]
fn created_sandboxes_wait_for_their_start() {
    let site = Site::new();
    let _server = site.serve();
    for (name, flags) in [("plain", &[][..]), ("idle", &["--idle"])] {
        let made = site.sandbox("create", &[&["--name", name], flags, &["base"]].concat()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let id = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        assert_eq!(site.ok(&format!("ps -a -q --no-trunc -f name={name}")), id);
        assert_eq!(site.ok(&format!("inspect -f {{{{.State.Status}}}} {name}")), "created");
        assert_eq!(site.ok(&format!("container start {name}")), name);
        assert_eq!(site.ok(&format!("container exec {name} echo up")), "up");
    }
    let output = site.run(&["create", "-d", "base"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8(output.stderr).unwrap().contains("'-d'"), "docker's has none either");
    assert!(site.failure(&["run", "--idle", "base"]).contains("add `--detach`"));
}

#[test]
fn commands_on_the_server_answer() {
    let site = Site::new();
    let _server = site.serve();
    assert!(site.ok("version").contains("Server:") && site.ok("info").contains("Engine: fake"));
    assert_eq!(site.ok("version -f {{.Client.Version}}"), site.ok("version -f {{.Server.Version}}"));
    assert_eq!(site.ok("system info -f {{.Driver}}"), "fake");
    assert_eq!(site.ok("network create back"), "back");
    let inspected = site.ok("network inspect back");
    assert!(inspected.contains(r#""Name": "back""#), "{inspected}");
    assert_eq!(site.ok("network ls -f name=bac --format {{.Name}}/{{.Driver}}"), "back/bridge");
    assert_eq!(site.ok("network ls -q -f dangling=false"), "");
    assert_eq!(site.ok("network prune -f --filter until=1h"), "", "it is younger");
    assert_eq!(site.ok("network prune -f"), "back");
    assert_eq!(site.ok("network rm -f back"), "", "it has gone already");
    assert!(site.failure(&["network", "rm", "back"]).contains("back"));
    assert_eq!(site.ok("images --format {{.Repository}} base"), "base");
    assert_eq!(site.ok("image ls -f reference=al* -q"), "");
    assert_eq!(site.ok("image inspect -f {{.RepoTags}} base"), "[base]");
    assert_eq!(site.ok("images -f dangling=true -q nothing"), "");
    assert!(site.ok("image prune -f --filter until=1h").starts_with("Total reclaimed space: 0 B"));
    assert!(site.failure(&["pull", "--platform", "linux/s390x", "alpine"]).contains("runs only linux/"));
    assert!(site.failure(&["events", "-f", "event=explode"]).contains("the events create, start"));
    for line in ["events --since 1h --until 0s", "events --until 0s", "container stats --no-stream"] {
        site.ok(line);
    }
}

#[test]
fn commands_on_a_sandbox_answer() {
    let site = Site::new();
    let _server = site.serve();
    let id = site.dir.path().join("id");
    let flags = ["-d", "--cidfile", id.to_str().unwrap(), "--name", "web", "-l", "a=1", "base"];
    let made = site.sandbox("run", &flags).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let printed = String::from_utf8(made.stdout).unwrap();
    assert_eq!(printed.trim(), std::fs::read_to_string(&id).unwrap());
    assert!(site.ok("container top web").contains("PID"));
    assert_eq!(site.ok("container ls --format {{.Names}}:{{.State}}"), "web:running");
    assert_eq!(site.ok("container inspect -f {{.Name}} web"), "web");
    assert!(site.failure(&["image", "inspect", "web"]).contains("there is no image `web`"));
    assert_eq!(site.ok("restart -s KILL --timeout 1 web"), "web");
    assert_eq!(site.ok("container stop --time 0 web"), "web");
    site.run(&["container", "wait", "web"]);
    let past =
        |filter: &str| site.ok(&format!("events --since 1h --until 0s --format {{{{.Action}}}} {filter}"));
    assert_eq!(past("-f container=web -f event=create -f event=start"), "create\nstart\nstart");
    assert_eq!((past("-f label=a=2"), past("-f container=db")), (String::new(), String::new()));
    assert_eq!(site.ok("container prune -f --filter label=a=2"), "");
    assert_eq!(site.ok("system prune -f --filter label=a=1"), printed.trim());
    assert_eq!(site.ok("ps -a -q"), "");
}

#[test]
fn words_after_names_belong_to_programs() {
    let site = Site::new();
    let _server = site.serve();
    let made = site.sandbox("run", &["-d", "--name", "q", "base"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    // The engine without VMs runs no main program: its description shows how the words were read.
    for (at, (words, program)) in [
        (&["--entrypoint", "sh", "base", "-c", "echo hi"][..], "sh -c echo hi"),
        (&["--entrypoint", "ls", "base", "-l", "/etc/hostname"], "ls -l /etc/hostname"),
        (&["--entrypoint", "/bin/ls", "base", "-d", "/etc"], "/bin/ls -d /etc"),
        (&["-e", "X=1", "--entrypoint", "env", "base", "-u", "PATH"], "env -u PATH"),
        (&["--entrypoint", "bash", "base", "-i", "-c", "echo hi"], "bash -i -c echo hi"),
        (&["base", "--rm"], "--rm"),
        (&["base", "--", "ls"], "-- ls"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("made{at}");
        let made = site.sandbox("create", &[&["--name", &name], words].concat()).output().unwrap();
        assert!(made.status.success(), "{words:?}: {made:?}");
        let shown = site.ok(&format!("ps -a --no-trunc -f name={name} --format {{{{.Command}}}}"));
        assert_eq!(shown, format!("\"{program}\""), "{words:?}");
    }
    let exec = |words: &[&str]| site.run(&[&["exec"], words].concat());
    assert_eq!(exec(&["q", "-e", "A=1", "env"]).status.code(), Some(127));
    assert_eq!(exec(&["q", "--help"]).status.code(), Some(127));
    assert_eq!(exec(&["q", "--", "true"]).status.code(), Some(127), "as docker");
    assert_eq!(exec(&["--", "q", "echo", "-n", "--"]).stdout, b"--");
    assert_eq!(exec(&["-e", "A=1", "q", "printenv", "A"]).stdout, b"1\n");
    assert_eq!(exec(&["-w", "/nosuch", "q", "true"]).status.code(), Some(126));
    assert!(site.ok("top q -o pid,comm").contains("COMMAND"));
}

#[test]
fn state_errors_name_sandboxes_as_typed() {
    let site = Site::new();
    let _server = site.serve();
    let made = site.sandbox("create", &["--name", "c1", "base"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let error = site.failure(&["exec", "c1", "ls"]);
    assert_eq!(error, "error: the sandbox `c1` was never started\n  try: `bouvet start` starts it\n");
    assert_eq!(site.failure(&["kill", "c1"]), "error: the sandbox `c1` was never started\n");
    assert_eq!(site.ok("start c1"), "c1");
    assert_eq!(site.ok("start c1"), "c1", "it runs already");
    let error = site.failure(&["rm", "c1", "c1"]);
    assert_eq!(error.matches("the sandbox `c1` is running").count(), 2, "{error}");
    assert_eq!(site.ok("stop -t 0 c1"), "c1");
    for arguments in [&["exec", "c1", "ls"][..], &["unpause", "c1"], &["top", "c1"], &["pause", "c1"]] {
        let error = site.failure(arguments);
        assert!(error.starts_with("error: the sandbox `c1` is stopped"), "{error}");
    }
    assert!(site.failure(&["stop", "-t", "abc", "c1"]).contains("a whole number is allowed"));
    assert_eq!(site.ok("stop -t -1 c1"), "c1");
    for tail in ["--tail=all", "--tail=-1", "-n=0"] {
        site.ok(&format!("logs {tail} c1"));
    }
    site.ok("logs --tail -1 c1");
    site.ok("logs --until 2026-01-01 c1");
}

#[test]
fn removal_without_an_answer_fails() {
    let site = Site::new();
    for line in ["prune", "system prune", "image prune", "network prune"] {
        let error = site.failure(&line.split(' ').collect::<Vec<_>>());
        assert!(
            error.contains("standard input has no answer") && error.contains("--force"),
            "{line}: {error}"
        );
    }
    let error = site.failure(&["load"]);
    assert!(error.contains("standard input is empty") && error.contains("--input FILE"), "{error}");
    let file = site.dir.path().join("text");
    std::fs::write(&file, "some text\n").unwrap();
    let error = site.failure(&["load", "-i", file.to_str().unwrap()]);
    assert!(error.contains("is not an archive of images"), "{error}");
    let pulled = site.run(&["pull", "base"]);
    assert_eq!((pulled.status.code(), &pulled.stdout[..]), (Some(0), &b"base\n"[..]), "{pulled:?}");
    assert!(site.failure(&["run", "--rm", "--persistent", "base", "true"]).contains("`--rm` removes"));
    for group in ["image", "network", "system", "container"] {
        let help = site.run(&[group]);
        assert!(help.status.success() && help.stdout.starts_with(b"Manage"), "{help:?}");
    }
}

/// A registry that accepts one password. Answers until the process ends.
fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            // The whole request is read, or closing the connection would reset it. `alice:secret`.
            let is_known = head.filter(|line| line.ends_with("Basic YWxpY2U6c2VjcmV0")).count() > 0;
            let status =
                if is_known { "200 OK" } else { "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
        }
    });
    address.to_string()
}

#[test]
fn passwords_on_the_command_line_are_warned_of() {
    let (site, registry) = (Site::new(), registry());
    let login = site.run(&["login", "-u", "alice", "-p", "secret", &registry]);
    assert_eq!(String::from_utf8(login.stdout).unwrap(), "Login Succeeded\n", "{:?}", login.stderr);
    let warning = String::from_utf8(login.stderr).unwrap();
    assert!(warning.starts_with("WARNING! `--password` is insecure"), "{warning}");
    let kept = std::fs::read_to_string(site.dir.path().join("docker/config.json")).unwrap();
    assert!(kept.contains("YWxpY2U6c2VjcmV0"), "{kept}");
    assert_eq!(site.ok(&format!("logout {registry}")), format!("Removed the credentials for {registry}"));
    assert_eq!(site.ok(&format!("logout {registry}")), format!("Not logged in to {registry}"));
    assert!(site.failure(&["login", "-u", "alice", "-p", "wrong", &registry]).contains("does not accept"));
    assert!(site.failure(&["login", "-u", "alice", &registry]).contains("--password-stdin"));
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
