"""However the server ends, nothing of it stays on the machine."""

import http.client
import json
import signal
import threading

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
