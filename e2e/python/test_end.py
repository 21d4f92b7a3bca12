"""However the server ends, nothing of it stays on the machine."""

import http.client
import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import bouvet
from bouvet import Server, tool_call


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_signal_destroys_all_sandboxes(server: Server, how: signal.Signals) -> None:
    server.start().healthy()
    sandbox, _ = server.create(), server.create()
    assert len(server.vms()) == 2
    assert bool(server.cgroups()) == bouvet.HAS_CGROUPS
    assert list(server.directory.iterdir())
    # One of them is busy.
    call = tool_call("run_command", {"sandbox_id": sandbox, "command": "touch begun; sleep 600"})
    answers: list[str] = []

    def wait_for_the_answer() -> None:
        try:
            answers.append(server.post(json.dumps(call))[2])
        except (OSError, http.client.HTTPException) as error:
            # Cut off is an answer too.
            answers.append(repr(error))

    client = threading.Thread(target=wait_for_the_answer)
    client.start()
    bouvet.until("the command ran", lambda: "begun" in names(server, sandbox), 20)
    server.stop(how)
    client.join(10)
    assert answers, "its client waits in vain"


def names(server: Server, sandbox: str) -> list[str]:
    entries = server.call("list_directory", sandbox_id=sandbox, path=".")["entries"]
    return [entry["name"] for entry in entries]


def test_a_signal_ends_a_server_that_is_making_a_sandbox(server: Server) -> None:
    server.start().healthy()
    with server.connection() as connection:
        body = json.dumps(tool_call("create_sandbox", {}))
        connection.request("POST", "/mcp", body, {"Content-Type": "application/json"})
        bouvet.until("its VM ran", server.vms)
        server.stop()


def test_open_streams_do_not_keep_it(server: Server) -> None:
    server.start().healthy()
    with server.connection() as connection:
        connection.request("GET", "/mcp", headers={"Accept": "text/event-stream"})
        assert connection.getresponse().status == 200
        server.stop()


def test_a_killed_server_takes_its_vms_along_and_the_next_one_cleans_up(server: Server) -> None:
    server.start().healthy()
    server.create()
    server.kill()
    assert bool(server.cgroups()) == bouvet.HAS_CGROUPS
    assert list(server.directory.iterdir()), "there is something to clean up"
    server.start().healthy()
    assert server.call("list_sandboxes") == {"sandboxes": []}
    sandbox = server.create()
    assert server.call("run_command", sandbox_id=sandbox, command="echo hi")["stdout"] == "hi\n"
    server.stop()


def test_signals_end_in_order_or_are_ignored(server: Server) -> None:
    """Whatever a terminal, a log rotation or a mistaken operator sends, nothing is left."""
    server.start().healthy()
    server.create()
    for number in [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGIO, signal.SIGRTMIN + 1]:
        server.process.send_signal(number)
    bouvet.until("all were noticed", lambda: server.log.count(" is ignored") == 6)
    assert len(server.vms()) == 1 and server.get("/health")[0] == 200
    server.stop(signal.SIGQUIT)


def test_second_signal_ends_the_grace_period(server: Server) -> None:
    server.start().healthy()
    with server.connection() as connection:
        # A request that does not end keeps the server for its grace period.
        connection.request("POST", "/mcp", headers={"Content-Length": "10", "Content-Type": "application/json"})
        server.process.send_signal(signal.SIGTERM)
        bouvet.until("the first was noticed", lambda: "SIGTERM" in server.log)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 4, "the grace period is 5 s"


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGQUIT], ids=lambda how: how.name)
def test_server_on_stdio_ends_in_order(vm: None, tmp_path: Path, how: signal.Signals) -> None:
    with Server(tmp_path, "stdio") as server:
        server.start(stdin=subprocess.PIPE)
        bouvet.until("it serves", lambda: list(server.directory.glob("host-*/sandboxes")))
        server.stop(how)
