"""The server over standard input and output, line by line."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

import bouvet
from bouvet import Server, tool_call

HELLO: list[dict[str, Any]] = [
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def say(server: Server, *messages: dict[str, Any] | str) -> None:
    """Writes messages, a line each."""
    assert server.process.stdin
    for message in messages:
        line = message if isinstance(message, str) else json.dumps(message)
        server.process.stdin.write(line.encode() + b"\n")
    server.process.stdin.flush()


def hear(server: Server) -> dict[str, Any]:
    """The next line, which is a message."""
    assert server.process.stdout
    line = server.process.stdout.readline()
    assert line, f"the server ended: {server.log}"
    message: dict[str, Any] = json.loads(line)
    assert message["jsonrpc"] == "2.0"
    return message


def hang_up(server: Server) -> list[bytes]:
    """Ends the server's input, checks that it ends well and leaves nothing, and returns what else it said."""
    vms = server.vms()
    assert server.process.stdin and server.process.stdout
    server.process.stdin.close()
    rest = server.process.stdout.readlines()
    assert server.process.wait(bouvet.STOP_SECONDS) == 0, server.log
    server.assert_nothing_left(vms)
    return rest


def take_terminal() -> None:
    """Makes standard input the controlling terminal of this process, in a new session."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def stdio_server(server: Server) -> Server:
    server.environment |= {"BOUVET_TRANSPORT": "stdio", "RUST_LOG": "trace"}
    return server.start(**PIPES)


def test_standard_output_carries_only_messages(stdio_server: Server) -> None:
    """However much is logged, and whatever it is told."""
    say(stdio_server, *HELLO)
    assert hear(stdio_server)["result"]["protocolVersion"] == "2025-11-25"
    say(stdio_server, tool_call("create_sandbox", {}))
    sandbox = hear(stdio_server)["result"]["structuredContent"]["sandbox_id"]
    command = {"sandbox_id": sandbox, "command": "echo 1; echo 2 >&2; sleep 0.3; echo 3"}
    say(stdio_server, tool_call("run_command", command))
    answer = hear(stdio_server)
    assert answer["id"] == 1 and answer["result"]["structuredContent"]["stdout"] == "1\n3\n"
    say(stdio_server, {"jsonrpc": "2.0", "id": 9, "method": "no/such"})
    assert hear(stdio_server)["error"]["code"] == -32601
    assert hang_up(stdio_server) == []
    assert "DEBUG" in stdio_server.log and "bytes, sha256" in stdio_server.log


def test_malformed_lines_get_json_rpc_errors(stdio_server: Server) -> None:
    say(stdio_server, *HELLO)
    hear(stdio_server)
    half = '{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"cut \\ud83d"}}'
    for line, code, asked in [
        ("{", -32700, None),
        ("[]", -32600, None),
        ("3", -32600, None),
        ('{"jsonrpc":"2.0"}', -32600, None),
        ("\x00\x01", -32700, None),
        ('"' + "x" * 100_000, -32700, None),
        (half, -32700, 5),
    ]:
        say(stdio_server, "", line)
        message = hear(stdio_server)
        assert (message["id"], message["error"]["code"]) == (asked, code), (line[:100], message)
    say(stdio_server, {"jsonrpc": "2.0", "id": 77, "method": "tools/list"})
    message = hear(stdio_server)
    assert message["id"] == 77
    assert "create_sandbox" in {tool["name"] for tool in message["result"]["tools"]}
    hang_up(stdio_server)


def test_it_ends_well_when_nobody_is_there(server: Server) -> None:
    server.environment["BOUVET_TRANSPORT"] = "stdio"
    server.start()
    assert server.process.wait(bouvet.START_SECONDS) == 0, server.log
    server.assert_nothing_left([])


def test_it_serves_no_http(stdio_server: Server) -> None:
    say(stdio_server, *HELLO)
    hear(stdio_server)
    with pytest.raises(ConnectionError):
        stdio_server.get("/health")
    hang_up(stdio_server)


@pytest.mark.parametrize("variables", [{"BOUVET_TRANSPORT": "both"}, {}], ids=["both", "default"])
def test_http_outlives_the_end_of_input(server: Server, variables: dict[str, str]) -> None:
    """As under `docker run -d`."""
    del server.environment["BOUVET_TRANSPORT"]
    server.environment |= variables
    server.start().healthy()
    bouvet.until("it saw the end of its input", lambda: "standard input" in server.log)
    assert server.call("list_sandboxes") == {"sandboxes": []}
    assert server.process.poll() is None
    server.stop()


def test_background_job_of_a_terminal_serves(server: Server) -> None:
    """As `bouvet serve &` in a shell, which stops jobs that read its terminal."""
    ours, theirs = pty.openpty()
    own, server.binary = server.binary, Path("/bin/bash")
    server.arguments = ["-c", 'set -m; "$0" & echo $!; wait $!', str(own)]
    server.environment["BOUVET_TRANSPORT"] = "both"
    server.start(stdin=theirs, stdout=subprocess.PIPE, preexec_fn=take_terminal)
    assert server.process.stdout
    pid = int(server.process.stdout.readline())
    try:
        server.healthy()
        assert server.log.count("standard input is a terminal") == 1
        assert server.call("list_sandboxes") == {"sandboxes": []}
        os.kill(pid, signal.SIGTERM)
        assert server.process.wait(bouvet.STOP_SECONDS) == 0, server.log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(ours)
        os.close(theirs)


def test_both_transports_are_one_server(server: Server) -> None:
    """A sandbox that was made over one is used over the other, and outlives the client that made it."""
    server.environment["BOUVET_TRANSPORT"] = "both"
    server.start(**PIPES).healthy()
    say(server, *HELLO, tool_call("create_sandbox", {}))
    hear(server)
    sandbox = hear(server)["result"]["structuredContent"]["sandbox_id"]
    assert server.process.stdin
    server.process.stdin.close()
    bouvet.until("it saw the end of its input", lambda: "standard input" in server.log)
    assert server.call("run_command", sandbox_id=sandbox, command="echo hi")["stdout"] == "hi\n"
    server.stop()
