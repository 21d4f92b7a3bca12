"""What the server can be told, and what it says of what it cannot."""

import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import bouvet
from bouvet import Server

LIST = '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'

# All that cannot be just anything.
BAD = [
    ("BOUVET_ENGINE", "xen", "auto, firecracker or qemu"),
    ("BOUVET_TRANSPORT", "tcp", "stdio, http or both"),
    ("BOUVET_HTTP_HOST", "example", "an IP address"),
    ("BOUVET_HTTP_PORT", "0", "1 to 65535"),
    ("BOUVET_HTTP_PORT", "65536", "1 to 65535"),
    ("BOUVET_HTTP_PORT", "http", "1 to 65535"),
    ("BOUVET_HTTP_BODIES_MIB", "63", "64 to 65536"),
    ("BOUVET_MAX_SANDBOXES", "0", "1 to 1000"),
    ("BOUVET_MAX_SANDBOXES", "1001", "1 to 1000"),
    ("BOUVET_SANDBOX_TIMEOUT_SECS", "-1", "0 to 31536000"),
    ("BOUVET_SANDBOX_TIMEOUT_SECS", "1h", "0 to 31536000"),
    ("BOUVET_DISK_MIB", "63", "64 to 1048576"),
    ("BOUVET_POOL_ENABLED", "maybe", "true or false"),
    ("BOUVET_POOL_MIN_SIZE", "1001", "0 to 1000"),
    ("BOUVET_POOL_MAX_BOOTS", "0", "1 to 64"),
    ("BOUVET_CGROUP", "relative/path", "auto, off or the path of a delegated cgroup"),
    ("BOUVET_FIRST_UID", "0", "1 to 2000000000"),
    ("RUST_LOG", "bouvet=nonsense", "a level or a filter like bouvet=debug,info"),
]

Start = Callable[..., tuple[int, str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a server that is not to start: its exit code, and what it says."""

    def start(**variables: str) -> tuple[int, str]:
        with Server(tmp_path, **variables) as server:
            server.start()
            code = server.process.wait(bouvet.START_SECONDS)
            if code != 2:
                server.assert_nothing_left([])
            return code, server.log

    return start


@pytest.mark.parametrize(("variable", "value", "allowed"), BAD, ids=lambda value: value.split(" ")[0])
def test_a_bad_value_stops_the_start(start: Start, variable: str, value: str, allowed: str) -> None:
    code, log = start(**{variable: value})
    assert code == 2, log
    assert f"error: {variable} is `{value}`; it must be {allowed}" in log
    assert len(log.splitlines()) == 1, log


def test_a_misspelled_variable_is_warned_of(start: Start) -> None:
    _, log = start(BOUVET_HTTP_PROT="8080", BOUVET_TRANSPORT="tcp")
    assert "WARN" in log and "BOUVET_HTTP_PROT" in log


def test_doctor_warns_of_misspelled_variables_first() -> None:
    variables = {"BOUVET_HTTP_PROT": "8080", "BOUVET_TRANSPORT": "tcp"}
    command = [bouvet.binary().with_name("bouvet"), "doctor"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "warning  variables    the variable BOUVET_HTTP_PROT is not known; did you mean" in ended.stdout
    assert ended.stderr.startswith("error: BOUVET_TRANSPORT is `tcp`")


@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize(
    ("variable", "target"), [("BOUVET_KERNEL", "make kernel"), ("BOUVET_ROOTFS", "make rootfs")]
)
def test_a_missing_image_stops_the_start(start: Start, tmp_path: Path, variable: str, target: str) -> None:
    missing = str(tmp_path / "missing")
    code, log = start(**{variable: missing})
    assert code == 1, log
    assert f"`{missing}`" in log and f"`{target}`" in log and variable in log


@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("variable", ["BOUVET_KERNEL", "BOUVET_ROOTFS"])
def test_an_image_of_the_wrong_kind_stops_the_start(start: Start, tmp_path: Path, variable: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"#!" * 10_000)
    wrong.chmod(0o644)
    code, log = start(**{variable: str(wrong)})
    assert code == 1, log
    assert f"`{wrong}` is not an" in log and variable in log


def test_a_port_in_use_stops_the_start(http_server: Server, start: Start) -> None:
    code, log = start(BOUVET_HTTP_PORT=str(http_server.port))
    assert code == 1, log
    assert f"127.0.0.1:{http_server.port}" in log and "BOUVET_HTTP_PORT" in log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory that is another user's")
def test_a_directory_of_somebody_else_stops_the_start(server: Server) -> None:
    server.directory.mkdir()
    os.chown(server.directory, 65534, 65534)
    server.start()
    assert server.process.wait(bouvet.START_SECONDS) == 1
    assert "belongs to another user" in server.log and "BOUVET_CHROOT" in server.log
    assert list(server.directory.iterdir()) == []


def test_the_help_names_every_variable_with_its_default() -> None:
    shown = subprocess.run([bouvet.binary(), "--help"], capture_output=True, text=True, check=True, env={})
    assert shown.stderr == ""
    for variable in {name for name, _, _ in BAD} | {"BOUVET_KERNEL", "BOUVET_ROOTFS", "BOUVET_CHROOT"}:
        assert re.search(rf"^  {variable}$", shown.stdout, re.MULTILINE), variable
    assert shown.stdout.count("[default: ") == len(re.findall("^  [A-Z_]+$", shown.stdout, re.MULTILINE))


def test_the_version_is_the_published_one() -> None:
    shown = subprocess.run([bouvet.binary(), "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == "bouvet-mcp 0.1.0\n"


def test_arguments_that_are_not_known_are_refused() -> None:
    shown = subprocess.run([bouvet.binary(), "--port", "1"], capture_output=True, text=True)
    assert shown.returncode == 2 and "--port" in shown.stderr and shown.stdout == ""


def test_too_few_descriptors_stop_the_start(server: Server) -> None:
    server.limit_files(511)
    server.start()
    assert server.process.wait(bouvet.START_SECONDS) == 1
    assert "error: the limit of open files is 511; a server needs 512" in server.log
    assert "ulimit -n" in server.log


def test_few_descriptors_keep_the_server_healthy(server: Server) -> None:
    server.limit_files(512)
    server.start().healthy()
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(300)]
    assert server.get("/health")[0] == 200
    assert server.call("list_sandboxes") == {"sandboxes": []}
    assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 200
    # The first were idle for longest.
    assert idle[0].recv(1) == b""
    for one in idle:
        one.close()
    # Requests under way are not closed: some are refused, and health is answered.
    begun = []
    for _ in range(100):
        busy = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        busy.sendall(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        begun.append((busy, busy.recv(64)))
    assert begun[0][1].startswith(b"HTTP/1.1 200 ") and begun[-1][1].startswith(b"HTTP/1.1 503 ")
    assert server.get("/health")[0] == 200
    for busy, _ in begun:
        busy.close()
    bouvet.until("others are served again", lambda: server.post(LIST)[0] == 200)
    server.stop()
