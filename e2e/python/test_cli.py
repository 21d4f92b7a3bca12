"""The command line: with a server, and alone."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bouvet
from bouvet import Server, until

DEADLINE_SECONDS = 90
# What a program has after the first signal that asks it to end.
GRACE_SECONDS = 10


class Cli:
    """The binary `bouvet` in an environment."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self.environment = environment
        self.directory = directory
        self.binary = bouvet.binary().with_name("bouvet")
        assert self.binary.exists(), "there is no bouvet beside bouvet-mcp: `cargo build -p bouvet` makes it"

    def options(self) -> dict[str, Any]:
        return {"env": self.environment, "cwd": self.directory}

    def run(self, *words: str | Path, stdin: bytes | None = None) -> tuple[int, str, str]:
        """Its exit code, what it printed, and its errors."""
        given: dict[str, Any] = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        command = [self.binary, *words]
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, **given, **self.options())
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def ok(self, *words: str | Path, stdin: bytes | None = None) -> str:
        """What it printed, without the last line's end, when all is well."""
        code, out, err = self.run(*words, stdin=stdin)
        assert code == 0, (words, code, out, err)
        return out.rstrip("\n")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([self.binary, *words], **pipes, **self.options())

    def sandboxes(self) -> dict[str, dict[str, Any]]:
        """All, by name."""
        return {one["name"]: one for one in json.loads(self.ok("ps", "-a", "--json"))}


class Terminal:
    """A command with a terminal of its own, as a person has."""

    def __init__(self, cli: Cli, *words: str, rows: int = 40, columns: int = 132) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)

        def take() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        pipes = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen([cli.binary, *words], preexec_fn=take, **pipes, **cli.options())
        self.theirs = theirs
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, text: str) -> str:
        """Reads until `text` has come, and returns what came."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} never came, but {self.seen!r}"
            if select.select([self.ours], [], [], min(left, 1))[0]:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")
        came, self.seen = self.seen.split(text, 1)
        return came

    def end(self) -> int:
        """Waits for its end, and returns its exit code. The terminal is as it was."""
        code = self.process.wait(DEADLINE_SECONDS)
        assert termios.tcgetattr(self.theirs) == self.before, "the terminal was left raw"
        return code


@pytest.fixture(scope="module")
def served(vm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cli]]:
    """A server with a socket, and the command line that finds it."""
    parent = tmp_path_factory.mktemp("cli")
    with Server(parent, BOUVET_SOCKET=str(parent / "run" / "bouvet.sock")) as server:
        server.start().healthy()
        yield server, Cli(server.environment, parent)
        server.stop()


@pytest.fixture(scope="module")
def cli(served: tuple[Server, Cli]) -> Cli:
    return served[1]


@pytest.fixture(scope="module")
def box(cli: Cli) -> str:
    """A sandbox that tests share and leave running."""
    cli.ok("run", "-d", "--name", "box", "base")
    return "box"


@pytest.fixture
def alone(vm: None, tmp_path: Path) -> Cli:
    """The command line where there is no server."""
    return Cli(bouvet.environment(tmp_path / "state"), tmp_path)


def test_exit_codes_pass_through(cli: Cli, box: str) -> None:
    assert cli.run("run", "--rm", "base", "sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    assert cli.run("run", "--rm", "base", "true")[0] == 0
    assert cli.run("run", "--rm", "base", "no-such-program")[0] == 127
    assert cli.run("run", "--rm", "base", "/etc/passwd")[0] == 126
    assert cli.run("exec", box, "sh", "-c", "exit 7") == (7, "", "")
    assert cli.run("exec", box, "no-such-program")[0] == 127
    assert cli.run("exec", box, "/etc/passwd")[0] == 126
    assert cli.run("exec", box, "sh", "-c", "kill -9 $$")[0] == 137
    code, _, error = cli.run("run", "-m", "1m", "base", "true")
    assert code == 125 and "--memory 1m is 1 MiB" in error
    assert cli.run("exec", "nobody", "true")[0] == 125
    assert cli.run("no-such-command")[0] == 125
    assert cli.run("serve", "--no-such-flag")[0] == 125
    assert cli.run("image")[0] == 0
    assert cli.run("exec", box, "-c", "true")[0] == 127, "what follows the sandbox is the program"
    assert cli.run("exec", "-w", "/nosuch", box, "true")[0] == 126
    assert cli.run("run", "--rm", "--entrypoint", "sh", "base", "-c", "exit 9")[0] == 9
    assert [one["name"] for one in cli.sandboxes().values()] == ["box"], "what had --rm is gone"


def test_input_is_handed_on(cli: Cli, box: str) -> None:
    content = bytes(range(256)) * 8192
    done = subprocess.run(
        [cli.binary, "exec", "-i", box, "cat"], input=content, capture_output=True, timeout=60, **cli.options()
    )
    assert done.returncode == 0 and done.stdout == content, (len(done.stdout), done.stderr)
    assert cli.ok("run", "--rm", "-i", "base", "wc", "-c", stdin=content) == str(len(content))
    assert cli.ok("exec", box, "cat", stdin=b"not handed on") == ""
    words = ["-e", "A=1", "-e", "HOME_OF", "-w", "/tmp", "-u", "nobody", box, "sh", "-c", "echo $A; pwd; id -un"]
    assert cli.ok("exec", *words) == "1\n/tmp\nnobody"


def test_signals_reach_the_program(cli: Cli, box: str) -> None:
    script = "trap 'echo got; exit 5' USR1; trap 'echo int; exit 6' INT; echo ready; while :; do sleep 0.1; done"
    for words in (["run", "--rm", "base"], ["exec", box]):
        for number, said, code in ((signal.SIGUSR1, b"got\n", 5), (signal.SIGINT, b"int\n", 6)):
            process = cli.start(*words, "bash", "-c", script)
            assert process.stdout and process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
            assert (out, process.returncode) == (said, code), words
    # A signal does not wait behind input that nobody reads.
    process = cli.start("exec", "-i", box, "sh", "-c", "echo ready; exec sleep 1000")
    assert process.stdin and process.stdout and process.stdout.readline() == b"ready\n"
    os.set_blocking(process.stdin.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while os.write(process.stdin.fileno(), b"x" * 65536):
            time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    with contextlib.suppress(BrokenPipeError):
        process.communicate()


def test_a_terminal_is_one(cli: Cli, box: str) -> None:
    for words in (["exec", "-it", box, "bash", "--norc"], ["run", "--rm", "-it", "base", "bash", "--norc"]):
        with Terminal(cli, *words) as terminal:
            terminal.type("tty; echo o''k\n")
            assert "/dev/pts/" in terminal.until("ok\r\n")
            terminal.type("until [ \"$(stty size)\" = '40 132' ]; do sleep 0.1; done; echo si''zed\n")
            terminal.until("sized\r\n")
            terminal.resize(50, 100)
            terminal.process.send_signal(signal.SIGWINCH)
            terminal.type("until [ \"$(stty size)\" = '50 100' ]; do sleep 0.1; done; echo re''sized\n")
            terminal.until("resized\r\n")
            terminal.type("echo be''gun; sleep 1000\n")
            terminal.until("begun\r\n")
            time.sleep(0.5)
            terminal.type("\x03")
            terminal.type("echo status $?; exit 3\n")
            terminal.until("status 130")
            assert terminal.end() == 3
    code, _, error = cli.run("exec", "-it", box, "bash")
    assert code == 125 and "not a terminal" in error


def test_a_terminal_is_left_and_found_again(cli: Cli) -> None:
    with Terminal(cli, "run", "-it", "--name", "shell", "base", "bash", "--norc") as terminal:
        terminal.type("X=kept; echo fi''rst\n")
        terminal.until("first\r\n")
        terminal.type("\x10\x11")
        assert terminal.end() == 0
    assert cli.sandboxes()["shell"]["state"] == "running"
    with Terminal(cli, "attach", "shell") as terminal:
        terminal.type("echo $X; exit 4\n")
        terminal.until("kept\r\n")
        assert terminal.end() == 4
    assert cli.sandboxes()["shell"]["exit_code"] == 4
    cli.ok("rm", "shell")


def test_logs_are_kept_and_followed(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "log", "base", "sh", "-c", "echo one; echo two; echo err >&2; sleep 3; echo three; exit 2")
    process = cli.start("logs", "-f", "log")
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == (b"one\ntwo\nthree\n", b"err\n", 0)
    assert cli.run("wait", "log")[:2] == (2, "2\n")
    assert cli.ok("logs", "-n", "1", "log") == "three"
    time_of, text = cli.ok("logs", "-t", "-n", "1", "log").split(" ")
    assert text == "three" and time_of.endswith("Z")
    assert cli.ok("logs", "--since", "1h", "log").endswith("three")
    assert cli.run("logs", "--since", "yesterday", "log")[0] == 125
    table = cli.ok("ps", "-a", "--filter", "name=log").splitlines()
    assert table[0].split()[:3] == ["ID", "NAME", "IMAGE"] and "Exited (2)" in table[1]
    cli.ok("rm", "log")


def test_a_life_of_stops_and_starts(cli: Cli) -> None:
    events = cli.start("events", "--json")
    until("events come", lambda: cli.run("ps")[0] == 0)
    script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"
    name = cli.ok("run", "-d", "--name", "life", "base", "bash", "-c", script)
    state = lambda: cli.sandboxes()["life"]["state"]
    assert cli.sandboxes()["life"]["id"] == name
    cli.ok("pause", "life")
    assert state() == "paused"
    code, _, error = cli.run("exec", "life", "true")
    assert code == 125 and "bouvet resume" in error
    cli.ok("unpause", name[:8])
    assert json.loads(cli.ok("stats", "--no-stream", "--json", "life"))[0]["memory_bytes"] > 0
    assert cli.ok("stats", "--no-stream", "--format", "{{.Name}} {{.ID}}", "life") == f"life {name[:8]}"
    assert cli.run("rm", "life")[0] == 125
    until("it is up", lambda: "up" in cli.ok("logs", "life"))
    cli.ok("stop", "life")
    assert cli.sandboxes()["life"]["exit_code"] == 0
    cli.ok("start", "life")
    assert state() == "running"
    until("it is up again", lambda: cli.ok("logs", "life").count("up") == 2)
    cli.ok("restart", "-t", "1", "life")
    cli.ok("container", "kill", "-9", "life")
    assert cli.run("wait", "life")[0] == 137
    assert json.loads(cli.ok("inspect", "life"))[0]["config"]["cmd"][0] == "bash"
    cli.ok("rm", "-f", "life")
    assert "life" not in cli.sandboxes()
    events.send_signal(signal.SIGTERM)
    out, _ = events.communicate(timeout=10)
    happened = [one["event"] for one in map(json.loads, out.splitlines()) if one["sandbox"] == name]
    assert happened[:4] == ["create", "start", "pause", "resume"] and happened[-1] == "destroy", happened


def test_sigterm_ends_commands_that_wait_for_programs(cli: Cli, alone: Cli) -> None:
    deaf = ["base", "sh", "-c", "trap '' TERM; while :; do echo ready; sleep 0.1; done"]
    cli.ok("create", "--name", "started", "--hostname", "db", *deaf)
    assert cli.ok("inspect", "-f", "{{.Config.Hostname}} {{.State.Status}}", "started") == "db created"
    commands = {
        "run": cli.start("run", "--name", "ran", *deaf),
        "run without a server": alone.start("run", *deaf),
        "start -a": cli.start("start", "-a", "started"),
    }
    ready = lambda process: process.stdout.readline() == b"ready\n"
    assert all(map(ready, commands.values()))
    commands["attach"] = cli.start("attach", "started")
    assert ready(commands["attach"])
    begun = time.monotonic()
    for process in commands.values():
        process.send_signal(signal.SIGTERM)
    for what, process in commands.items():
        _, error = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 143, (what, error)
    assert time.monotonic() - begun >= GRACE_SECONDS
    assert cli.ok("inspect", "-f", "{{.State.Status}}", "ran", "started") == "exited\nrunning"
    cli.ok("rm", "-f", "ran", "started")


def test_a_policy_restarts_what_fails(cli: Cli) -> None:
    cli.ok("run", "-d", "--restart", "on-failure:1", "--name", "failing", "base", "sh", "-c", "exit 3")
    state = lambda: cli.ok("inspect", "-f", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "failing")
    until("it was restarted once", lambda: state() == "1 exited 3")
    cli.ok("rm", "failing")


def test_files_are_copied_both_ways(cli: Cli, box: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "down").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "deep" / "down" / "file").write_bytes(bytes(range(256)) * 4096)
    script = source / "script"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o755)
    (source / "link").symlink_to("script")
    cli.ok("cp", source, f"{box}:/srv/copy")
    assert cli.ok("exec", box, "/srv/copy/script") == "ran"
    assert cli.ok("exec", box, "sh", "-c", "test -d /srv/copy/empty && echo there") == "there"
    cli.ok("cp", source, f"{box}:/srv/copy")
    assert cli.ok("exec", box, "ls", "/srv/copy/source") == "deep\nempty\nlink\nscript"
    cli.ok("exec", box, "sh", "-c", "rm -r /srv/copy/source; ln -s /etc/passwd /srv/copy/passwd")
    target = tmp_path / "target"
    cli.ok("cp", f"{box}:/srv/copy", target)
    assert (target / "deep/down/file").read_bytes() == (source / "deep/down/file").read_bytes()
    assert (target / "script").stat().st_mode & 0o777 == 0o755 and (target / "empty").is_dir()
    assert os.readlink(target / "passwd") == "/etc/passwd", "a link is a link, and not what it points to"
    cli.ok("cp", f"{box}:/srv/copy/script", tmp_path)
    assert (tmp_path / "script").read_text() == script.read_text()
    assert (tmp_path / "script").stat().st_mode & 0o777 == 0o755
    cli.ok("cp", f"{box}:/srv/copy/.", target)
    assert not (target / "copy").exists()
    code, _, error = cli.run("cp", f"{box}:/nowhere", tmp_path)
    assert code == 125 and "/nowhere" in error
    assert cli.run("cp", "a", "b")[0] == 125


def test_archives_and_stopped_sandboxes_are_copied(cli: Cli, tmp_path: Path) -> None:
    name = cli.ok("run", "-d", "--name", "archives", "--label", "kind=copy", "base") and "archives"
    make = "mkdir -p /srv/t && cd /srv/t && echo 1 > a && ln a b && ln -s a l && mkfifo p && truncate -s 64M s && chown 7:8 a"
    cli.ok("exec", name, "sh", "-c", make)
    command = [cli.binary, "cp", f"{name}:/srv/t", "-"]
    out = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, **cli.options())
    assert out.returncode == 1 and b"`/srv/t/p`: is a named pipe" in out.stderr, out.stderr
    assert len(out.stdout) < 1 << 20, "holes are not sent"
    with tarfile.open(fileobj=io.BytesIO(out.stdout)) as archive:
        entries = {entry.name: entry for entry in archive}
    assert sorted(entries) == ["t", "t/a", "t/b", "t/l", "t/s"], entries
    assert entries["t/b"].islnk() and entries["t/l"].linkname == "a" and entries["t/a"].uid == 7
    assert entries["t/s"].size == 64 << 20 and not (cli.directory / "-").exists()
    assert cli.run("cp", "-", f"{name}:/opt", stdin=out.stdout)[0] == 0
    assert cli.ok("exec", name, "stat", "-c", "%h %u:%g", "/opt/t/b") == "2 7:8"
    code, _, error = cli.run("cp", "-", f"{name}:/etc/hostname", stdin=out.stdout)
    assert code == 125 and "into a directory" in error
    cli.ok("stop", "-t", "0", name)
    shown = cli.ok("ps", "-a", "--filter", "label=kind=copy", "--format", "{{.Names}} {{.Status}}")
    assert shown.startswith("archives Exited (0) "), shown
    assert cli.run("cp", f"{name}:/srv/t", tmp_path)[0] == 1, "but for the pipe all is there"
    assert (tmp_path / "t/a").read_text() == "1\n" and (tmp_path / "t/a").stat().st_nlink == 2
    code, _, error = cli.run("cp", tmp_path / "t/a", f"{name}:/srv")
    assert code == 125 and "its next start would discard" in error
    cli.ok("rename", name, "renamed")
    cli.ok("start", "renamed")
    assert cli.run("exec", "renamed", "test", "-e", "/srv/t")[0] == 1, "it begins with a clean disk"
    format = "{{.State.Status}} {{.Config.Labels.kind}} {{.Name}}"
    assert cli.ok("inspect", "-f", format, "renamed") == "running copy renamed"
    assert cli.run("rm", "renamed")[0] == 125
    cli.ok("stop", "-t", "0", "renamed")
    assert cli.run("prune", stdin=b"n\n")[0] == 0 and "renamed" in cli.sandboxes()
    cli.ok("prune", "-f", "--filter", "label=kind=copy")
    assert "renamed" not in cli.sandboxes()


def test_the_socket_is_its_owners(served: tuple[Server, Cli]) -> None:
    server, cli = served
    socket = Path(server.environment["BOUVET_SOCKET"])
    assert socket.stat().st_mode & 0o777 in (0o600, 0o660)
    assert socket.parent.stat().st_mode & 0o777 in (0o700, 0o755)
    second = {"BOUVET_HTTP_PORT": str(bouvet.free_port())}
    done = subprocess.run(
        [cli.binary, "serve"], env=cli.environment | second, capture_output=True, timeout=30, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1 and b"another server answers" in done.stderr
    health = subprocess.run(
        ["curl", "-sS", "--unix-socket", socket, "http://bouvet/v1/health"], capture_output=True, timeout=30
    )
    assert json.loads(health.stdout)["engine"] == "qemu", health.stderr


def test_it_works_alone(alone: Cli) -> None:
    assert alone.run("run", "base", "sh", "-c", "echo out; exit 7")[:2] == (7, "out\n")
    assert alone.ok("run", "-i", "base", "cat", stdin=b"typed\n") == "typed"
    code, _, error = alone.run("run", "--network", "shop", "base", "true")
    assert code == 125 and "no bouvet server" in error and "`shop`" in error
    assert alone.ok("network", "create", "shop") == "shop"
    assert alone.ok("network", "ls", "-q").split() == ["shop"]
    assert alone.ok("network", "rm", "shop") == "shop"
    code, _, error = alone.run("run", "-d", "base")
    assert code == 125 and "bouvet serve" in error
    process = alone.start("run", "base", "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done")
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 5
    process.communicate()
    assert alone.sandboxes() == {}
    state = Path(alone.environment["BOUVET_CHROOT"])
    assert not state.exists() or not list(state.glob("host-*")), "files were left"


def test_what_is_persistent_outlives_command_and_server(alone: Cli, tmp_path: Path) -> None:
    alone.ok("run", "--persistent", "--name", "db", "base", "sh", "-c", "cat /srv/n 2>/dev/null; echo x >>/srv/n")
    assert alone.sandboxes()["db"]["state"] == "stopped"
    assert "db" in alone.ok("ps", "-a")
    assert alone.run("ps")[0] == 125
    assert alone.ok("start", "-a", "db") == "x"
    with Server(tmp_path, BOUVET_SOCKET=str(tmp_path / "run" / "bouvet.sock")) as server:
        server.start().healthy()
        cli = Cli(server.environment, tmp_path)
        assert cli.ok("start", "-a", "db") == "x\nx"
        assert cli.run("run", "--name", "db", "base", "true")[0] == 125
        server.stop()
    assert alone.sandboxes()["db"]["state"] == "stopped"
    # Neither a server that no command reaches nor a command that needs nothing kept has it meanwhile.
    with Server(tmp_path, BOUVET_SOCKET="off") as server:
        server.start().healthy()
        process = alone.start("run", "-i", "base", "sh", "-c", "echo up; read line")
        assert process.stdout and process.stdout.readline() == b"up\n"
        assert alone.ok("start", "-a", "db") == "x\nx\nx"
        process.communicate(b"line\n", timeout=DEADLINE_SECONDS)
        server.stop()
    alone.ok("rm", "db")
    assert alone.sandboxes() == {}


def test_what_is_persistent_outlives_a_server_that_was_killed(alone: Cli, tmp_path: Path) -> None:
    with Server(tmp_path, BOUVET_SOCKET=str(tmp_path / "run" / "bouvet.sock")) as server:
        server.start().healthy()
        cli = Cli(server.environment, tmp_path)
        # PID 1 of its namespace is not ended by a signal that it does not ask for.
        script = "trap 'exit 0' TERM; cat /srv/n; echo x >>/srv/n; sync; echo up; sleep 1000 & wait"
        cli.ok("run", "-d", "--persistent", "--name", "db", "base", "sh", "-c", script)
        until("it has written", lambda: "up" in cli.ok("logs", "db"), DEADLINE_SECONDS)
        server.kill()
    left = alone.sandboxes()["db"]
    assert left["state"] == "failed" and "its host ended" in json.dumps(left), left
    process = alone.start("start", "-a", "db")
    assert process.stdout and process.stdout.readline() == b"x\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_SECONDS)
    alone.ok("rm", "db")


def test_images_are_pulled_run_and_removed(cli: Cli) -> None:
    bouvet.archive(cli.directory / "tiny.tar")
    name = "docker-archive:tiny.tar"
    code, _, error = cli.run("run", "--pull", "never", name)
    assert code == 125 and "bouvet pull" in error
    identity = cli.ok("pull", name)
    [base, *_, image] = json.loads(cli.ok("images", "--json"))
    assert (base["references"], base["id"]) == (["base"], "")
    assert image["id"] == identity and image["references"] == [f"docker-archive:{cli.directory}/tiny.tar"]
    assert cli.run("run", "--rm", name)[:2] == (4, "from an image\n")
    assert cli.run("run", "--rm", name, "nothing")[0] == 127
    short = cli.ok("images", "-q")
    assert cli.run("run", "--rm", short, "sh", "-c", "exit 6")[0] == 6
    assert json.loads(cli.ok("inspect", short))[0]["config"]["env"] == [["PATH", "/bin"]]
    fields = "{{.Config.Env}} {{index .Config.Cmd 0}} {{.Architecture}} {{.RepoTags}} {{len .RepoDigests}}"
    assert cli.ok("inspect", "-f", fields, short) == f"[PATH=/bin] /bin/sh amd64 [{image['references'][0]}] 0"
    # All ports that the image exposes, each on a free one.
    cli.ok("create", "-P", "--name", "exposed", name)
    assert json.loads(cli.ok("inspect", "exposed"))[0]["config"]["port_map"] == ["80"]
    cli.ok("container", "rm", "exposed")
    mounts = ["--mount", f"type=bind,source={cli.directory},target=/mnt,readonly", "--mount", "type=tmpfs,target=/memory"]
    script = "test -f /mnt/tiny.tar && ! touch /mnt/x && touch /memory/x"
    assert cli.run("run", "--rm", *mounts, "base", "sh", "-c", script)[0] == 0
    cli.ok("tag", name, "tiny:1")
    cli.ok("save", "--output", "saved.tar", "tiny:1")
    cli.ok("rmi", short)
    assert cli.ok("images", "-q") == ""
    loaded = "Loaded image: tiny:1"
    assert cli.ok("load", stdin=(cli.directory / "saved.tar").read_bytes()) == loaded
    assert cli.ok("image", "load", "--input", "saved.tar") == loaded
    assert cli.run("run", "--rm", "tiny:1")[:2] == (4, "from an image\n")
    assert "Deleted: sha256:" in cli.ok("image", "prune", "--all", "--force")
    assert cli.ok("images", "-q") == ""
    assert cli.run("rmi", "nothing")[0] == 125
    assert "`base` is the server's own image and cannot be removed" in cli.run("rmi", "base")[2]


def test_a_page_of_a_sandbox_is_no_page_of_this_machine(served: tuple[Server, Cli]) -> None:
    server, cli = served
    cli.ok("run", "-d", "--name", "page", "-p", "80", "base")
    address = cli.ok("port", "page", "80")
    pages = [f"http://{name}:{address.rpartition(':')[2]}" for name in ("localhost", "127.0.0.1", "[::1]")]
    ask = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})

    def refuses_them() -> None:
        for page in pages:
            status, _, words = server.post(ask, Origin=page)
            assert status == 403 and page in words and "a sandbox's" in words, words
        assert server.post(ask, Origin=f"http://localhost:{bouvet.free_port()}")[0] == 200

    refuses_them()
    cli.ok("rm", "-f", "page")
    # It may still be open in a browser.
    refuses_them()


def test_a_sidecar_runs_beside_the_program(cli: Cli) -> None:
    bouvet.archive(cli.directory / "beside.tar", "echo beside with $A")
    beside = ("--sidecar", "docker-archive:beside.tar", "--sidecar-env", "A=1")
    cli.ok("run", "-d", "--name", "watched", *beside, "base", "sleep", "1000")
    until("it has spoken", lambda: cli.ok("logs", "--sidecar", "watched") == "beside with 1", DEADLINE_SECONDS)
    assert cli.ok("logs", "watched") == "" and cli.sandboxes()["watched"]["state"] == "running"
    # It has ended well, and listens no more.
    code, _, error = cli.run("sidecar", "watched")
    assert code == 125 and "nobody listens on port 4092" in error, error
    cli.ok("rm", "-f", "watched")
    bouvet.archive(cli.directory / "ends.tar", "exit 7")
    code, _, error = cli.run("run", "--rm", "--sidecar", "docker-archive:ends.tar", "base", "sleep", "1000")
    assert code == 125 and "its sidecar ended with the exit code 7" in error, error
    code, _, error = cli.run("run", "--sidecar-env", "A=1", "base", "true")
    assert code == 125 and "--sidecar" in error, error


def test_a_sandbox_is_attested(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "measured", "--tee", "sev-snp", "--tee-simulate", "base")
    kernel = hashlib.sha384(Path(cli.environment["BOUVET_KERNEL"]).read_bytes()).hexdigest()
    right, wrong = f"kernel={kernel}", f"kernel={'0' * 96}"
    code, said, warned = cli.run("attest", "measured", "--expect", right, "--workload", "base", "--save", "report")
    assert code == 0 and kernel in said, said
    assert "SIMULATED" in warned and "proves nothing" in warned, warned
    saved = json.loads(cli.ok("attest", "--report", "report", "--expect", right, "--json"))
    assert saved["simulated"] and saved["launch"]["kernel"] == kernel, saved
    code, said, error = cli.run("attest", "--report", "report", "--expect", wrong)
    assert (code, said) == (125, "") and "the kernel is" in error, error
    code, _, error = cli.run("attest", "--report", "report", "--nonce", "00")
    assert code == 125 and "carries" in error, error
    changed = json.loads((cli.directory / "report").read_text())
    changed["payload"] = "AAAA" + changed["payload"][4:]
    (cli.directory / "changed").write_text(json.dumps(changed))
    code, _, error = cli.run("attest", "--report", "changed")
    assert code == 125 and "signature" in error, error
    cli.ok("rm", "-f", "measured")
    code, _, error = cli.run("run", "--rm", "--tee", "tdx", "base", "true")
    assert code == 125 and "Intel TDX" in error and "simulate" in error, error


def test_a_network_is_as_the_command_line_says(cli: Cli, tmp_path: Path) -> None:
    interfaces = ["run", "--rm", "--network", "none", "base", "ls", "/sys/class/net"]
    assert cli.ok(*interfaces).split() == ["lo"]
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    given = ["--allow", "*.example.com:443", "--deny", "a.example.com", "--dns", "9.9.9.9"]
    cli.ok("run", "-d", "--idle", "--name", "net", *given, "--secret", f"KEY={secret}@api.example.com", "base")
    try:
        assert sorted(cli.ok("exec", "net", "ls", "/sys/class/net").split()) == ["eth0", "lo"]
        assert cli.ok("exec", "net", "printenv", "KEY").startswith("bouvet-secret-")
        shown = cli.ok("inspect", "net")
        assert "hunter2" not in shown and "KEY" in shown
        assert cli.run("exec", "net", "curl", "-sS", "-m", "20", "http://10.0.0.1/")[0] == 7
        told = json.loads(cli.ok("network", "policy", "--json", "net"))
        assert told["policy"] == {"allow": ["*.example.com:443"], "deny": ["a.example.com"]}
        assert told["counts"]["refused"] == {"private": 1}
        refused = "once: tcp 10.0.0.1:80 has a private address, which only a rule that names it allows"
        assert refused in cli.ok("network", "policy", "net", "--allow", "10.0.0.0/8")
        assert json.loads(cli.ok("network", "policy", "--json", "net"))["policy"]["allow"] == ["10.0.0.0/8"]
        code, _, words = cli.run("network", "policy", "net", "--allow", "10.0.0.0/33")
        assert code == 125 and "10.0.0.0/33" in words
    finally:
        cli.ok("rm", "-f", "net")
    code, _, words = cli.run("run", "--network", "none", "--allow", "example.com", "base", "true")
    assert code == 125 and "--allow" in words


def test_sandboxes_on_a_network_know_each_other_by_name(cli: Cli) -> None:
    code, _, words = cli.run("run", "--network", "shop", "base", "true")
    assert code == 125 and "no network `shop`" in words and "bouvet network create" in words
    assert cli.ok("network", "create", "shop") == "shop"
    assert cli.ok("network", "create", "--subnet", "10.9.8.0/24", "other") == "other"
    try:
        code, _, words = cli.run("network", "create", "shop")
        assert code == 125 and "already" in words
        code, _, words = cli.run("network", "create", "--subnet", "8.8.8.0/24", "third")
        assert code == 125 and "8.8.8.0/24" in words
        assert cli.ok("network", "ls", "-q").split() == ["other", "shop"]
        cli.ok("run", "-d", "--name", "db", "--network", "shop", "base", "python3", "-m", "http.server", "80")
        asked = ["curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://db/etc/hostname"]
        cli.ok("run", "--rm", "--network", "shop", "base", *asked)
        code, _, words = cli.run("run", "--rm", "--network", "other", "base", "curl", "-sS", "http://db/")
        assert code == 6, words
        (other, shop) = json.loads(cli.ok("network", "ls", "--json"))
        assert other["ipv4"] == "10.9.8.0/24" and other["sandboxes"] == []
        (member,) = shop["sandboxes"]
        assert member["name"] == "db" and shop["ipv4"].startswith(member["addresses"][0].rsplit(".", 1)[0])
        assert f"db {member['addresses'][0]}" in cli.ok("network", "ls")
        code, _, words = cli.run("network", "rm", "shop")
        assert code == 125 and "in use by db" in words
    finally:
        cli.run("rm", "-f", "db")
        assert cli.ok("network", "rm", "shop", "other").split() == ["shop", "other"]
    code, _, words = cli.run("network", "rm", "shop")
    assert code == 125 and "no network `shop`" in words
    assert json.loads(cli.ok("network", "ls", "--json")) == []


def test_clients_do_not_change_what_an_operators_sandbox_reaches(server: Server, tmp_path: Path) -> None:
    server.environment["BOUVET_SOCKET"] = str(tmp_path / "run" / "bouvet.sock")
    server.start().healthy()
    cli = Cli(server.environment, tmp_path)
    cli.ok("run", "-d", "--name", "net", "--allow", "example.com", "base")
    sandbox = cli.sandboxes()["net"]["id"]
    before = server.call("network_policy", sandbox_id=sandbox)
    assert (before["allow"], before["deny"]) == (["example.com"], []), "it may be read"
    for change in [{"allow": ["10.0.0.0/8"]}, {"allow": ["host"]}, {"deny": []}]:
        call = bouvet.tool_call("network_policy", {"sandbox_id": sandbox, **change})
        result = json.loads(server.post(json.dumps(call))[2])["result"]
        assert result["isError"] and "for its owner to change" in result["content"][0]["text"], result
    assert server.call("network_policy", sandbox_id=sandbox)["allow"] == ["example.com"]
    cli.ok("network", "policy", "net", "--allow", "example.org")
    mine = server.call("create_sandbox", allow=["example.com"])["sandbox_id"]
    assert server.call("network_policy", sandbox_id=mine, allow=["example.org"])["allow"] == ["example.org"]
    server.stop()


def test_shells_complete_commands(tmp_path: Path) -> None:
    cli = Cli(bouvet.environment(tmp_path / "state"), tmp_path)
    for shell in ("bash", "zsh", "fish"):
        script = cli.ok("completions", shell)
        assert "unpause" in script and "--entrypoint" in script or shell == "fish", shell
    done = subprocess.run(["bash", "-n"], input=cli.ok("completions", "bash").encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
