"""The server over plain HTTP: the published commands, and what browsers must not do."""

import json
import socket
import subprocess
import uuid
from typing import Any

import pytest

import bouvet
from bouvet import Server, tool_call

PUBLISHED = (
    'curl -X POST http://localhost:8080/mcp -H "Content-Type: application/json" '
    """-d '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'"""
)
LIST = '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
INITIALIZE = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
)


def shell(server: Server, command: str) -> str:
    """What `command` prints, with the published port replaced by the server's."""
    command = command.replace("localhost:8080", f"localhost:{server.port}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize("accept", ["", ' -H "Accept:"', ' -H "Accept: application/json"'])
def test_the_published_command_lists_the_tools(http_server: Server, accept: str) -> None:
    listed = json.loads(shell(http_server, PUBLISHED + accept))
    assert (listed["jsonrpc"], listed["id"]) == ("2.0", 1)
    assert {tool["name"] for tool in listed["result"]["tools"]} == {
        "create_sandbox",
        "destroy_sandbox",
        "list_sandboxes",
        "execute_code",
        "run_command",
        "read_file",
        "write_file",
        "list_directory",
        "create_context",
        "list_contexts",
        "destroy_context",
        "network_policy",
        "expose_port",
    }
    verdict = " -s -o /dev/null -w '%{http_code} %{content_type}'"
    assert shell(http_server, PUBLISHED + accept + verdict) == "200 application/json"


def test_health_is_as_published(http_server: Server) -> None:
    assert shell(http_server, "curl -f http://localhost:8080/health") == (
        '{"status":"healthy","version":"0.1.0"}'
    )
    details = json.loads(shell(http_server, "curl -f http://localhost:8080/health?details"))
    assert (details["status"], details["engine"]) == ("healthy", "qemu")
    assert details["pool"] == {"ready": 0, "size": 0}


def test_the_information_page_is_html(http_server: Server) -> None:
    status, kind, body = http_server.get("/")
    assert status == 200 and kind.startswith("text/html")
    assert "<h1>Bouvet 0.1.0</h1>" in body and "/mcp" in body and "{version}" not in body


def test_what_is_not_there_is_not_found(http_server: Server) -> None:
    assert http_server.get("/no-such-page")[0] == 404


def test_a_get_is_a_stream_of_events(http_server: Server) -> None:
    with http_server.connection() as connection:
        connection.request("GET", "/mcp", headers={"Accept": "text/event-stream"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        # It stays open, and there is nothing to say.
        assert connection.sock
        connection.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            answer.read(1)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example"])
def test_a_foreign_host_is_refused(http_server: Server, host: str) -> None:
    status, _, body = http_server.post(LIST, Host=host)
    assert status == 403 and host.lower() in body and "BOUVET_ALLOWED_HOSTS" in body


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example"])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_foreign_page_is_refused(http_server: Server, method: str, origin: str) -> None:
    headers = {"Origin": origin, "Content-Type": "application/json"}
    status, _, body = http_server.request(method, "/mcp", LIST, headers)
    assert status == 403 and origin in body and "BOUVET_ALLOWED_ORIGINS" in body


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:9"])
def test_a_page_of_this_machine_is_let_in(http_server: Server, origin: str) -> None:
    assert http_server.post(LIST, Origin=origin)[0] == 200


def test_named_hosts_and_pages_are_let_in(server: Server) -> None:
    server.environment["BOUVET_ALLOWED_HOSTS"] = "sandbox.example"
    server.environment["BOUVET_ALLOWED_ORIGINS"] = "https://app.example"
    server.start().healthy()
    assert server.post(LIST, Host="sandbox.example:443", Origin="https://app.example")[0] == 200
    assert server.post(LIST, Host="other.example")[0] == 403
    assert server.post(LIST, Origin="https://other.example")[0] == 403
    server.stop()


@pytest.mark.parametrize(
    ("body", "code", "asked"),
    [
        ("{", -32700, None),
        ("", -32700, None),
        ('{"jsonrpc":"2.0","id":1,"method":"tools/list"', -32700, 1),
        ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\ud83d"}}', -32700, 1),
        (f"[{LIST}]", -32600, None),
        ("[]", -32600, None),
        ("3", -32600, None),
        ('{"jsonrpc":"2.0","id":1,"method":7}', -32600, 1),
    ],
)
def test_malformed_bodies_get_json_rpc_errors(
    http_server: Server, body: str, code: int, asked: int | None
) -> None:
    status, kind, text = http_server.post(body)
    assert (status, kind) == (400, "application/json")
    answer = json.loads(text)
    assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", asked, code)


def test_an_unknown_method_is_answered_as_such(http_server: Server) -> None:
    _, kind, text = http_server.post('{"jsonrpc":"2.0","id":5,"method":"no/such"}')
    assert kind == "application/json"
    assert (json.loads(text)["id"], json.loads(text)["error"]["code"]) == (5, -32601)
    _, _, text = http_server.post('{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":7}}')
    assert (json.loads(text)["id"], json.loads(text)["error"]["code"]) == (5, -32602)


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel"])
def test_removed_methods_are_not_found(http_server: Server, method: str) -> None:
    prefix = "io.modelcontextprotocol/"
    version = "2026-07-28"
    client = {"name": "test", "version": "1"}
    meta = {f"{prefix}protocolVersion": version, f"{prefix}clientInfo": client}
    params = {"_meta": meta | {f"{prefix}clientCapabilities": {}}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    headers = {"MCP-Protocol-Version": version, "MCP-Method": method}
    accept = "application/json, text/event-stream"
    status, _, text = http_server.post(body, Accept=accept, **headers)
    assert (status, json.loads(text)["error"]["code"]) == (404, -32601)


@pytest.mark.parametrize("method", ["prompts/list", "resources/list", "resources/templates/list"])
def test_what_is_not_offered_is_not_an_empty_list(http_server: Server, method: str) -> None:
    _, _, text = http_server.post(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}))
    assert json.loads(text)["error"]["code"] == -32601


def test_a_call_without_a_token_is_plain_json(http_server: Server, http_sandbox: str) -> None:
    arguments = {"sandbox_id": http_sandbox, "command": "echo 1; sleep 0.3; echo 2"}
    status, kind, text = http_server.post(json.dumps(tool_call("run_command", arguments)))
    assert (status, kind) == (200, "application/json")
    assert json.loads(text)["result"]["structuredContent"]["stdout"] == "1\n2\n"


def test_a_call_with_a_token_is_a_stream_that_ends_with_the_result(
    http_server: Server, http_sandbox: str
) -> None:
    arguments = {"sandbox_id": http_sandbox, "command": "echo 1; sleep 0.5; echo 2"}
    _, kind, text = http_server.post(json.dumps(tool_call("run_command", arguments, "token")))
    assert kind == "text/event-stream"
    events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    *progress, last = [json.loads(event) for event in events if event]
    assert last["result"]["structuredContent"]["stdout"] == "1\n2\n"
    assert progress and all(one["method"] == "notifications/progress" for one in progress)
    assert all(one["params"]["progressToken"] == "token" for one in progress)


@pytest.mark.parametrize("token", [None, "token"], ids=["plain", "stream"])
def test_a_client_that_goes_away_takes_its_program_with_it(
    http_server: Server, http_sandbox: str, token: str | None
) -> None:
    mark = "sleep 86404"

    def runs() -> bool:
        command = f"pgrep -f '[s]{mark[1:]}'"
        outcome = http_server.call("run_command", sandbox_id=http_sandbox, command=command)
        return bool(outcome["exit_code"] == 0)

    arguments = {"sandbox_id": http_sandbox, "command": f"setsid {mark} & {mark}"}
    with http_server.connection() as connection:
        body = json.dumps(tool_call("run_command", arguments, token))
        connection.request("POST", "/mcp", body, {"Content-Type": "application/json"})
        bouvet.until("it ran", runs, 20)
    bouvet.until("all that it had started was gone", lambda: not runs(), 20)


def test_client_gone_during_a_creation_leaves_no_sandbox(http_server: Server, http_sandbox: str) -> None:
    def listed() -> set[str]:
        return {one["sandbox_id"] for one in http_server.call("list_sandboxes")["sandboxes"]}

    before = listed()
    assert http_sandbox in before
    for _ in range(3):
        with http_server.connection() as connection:
            body = json.dumps(tool_call("create_sandbox", {}))
            connection.request("POST", "/mcp", body, {"Content-Type": "application/json"})
    # By then all of them were begun.
    http_server.call("destroy_sandbox", sandbox_id=http_server.create())
    bouvet.until("nothing was left of them", lambda: listed() == before, 60)


def test_a_session_begins_and_ends(http_server: Server) -> None:
    with http_server.connection() as connection:
        connection.request("POST", "/mcp", INITIALIZE, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        session = answer.headers["mcp-session-id"]
        assert answer.status == 200 and session
        answer.read()
    headers = {"mcp-session-id": session, "Content-Type": "application/json"}
    initialized = '{"jsonrpc":"2.0","method":"notifications/initialized"}'
    assert http_server.request("POST", "/mcp", initialized, headers)[0] == 202
    status, _, body = http_server.request("POST", "/mcp", LIST, headers)
    assert status == 200 and "create_sandbox" in body
    # The official client takes any other status for a failure, and says so to its user.
    assert http_server.request("DELETE", "/mcp", headers=headers)[0] == 204
    assert http_server.request("POST", "/mcp", LIST, headers)[0] == 404


def test_too_large_a_request_is_refused(http_server: Server) -> None:
    # Six bytes for each of the mebibyte that a list of tools may take.
    limit = 6 * bouvet.MIB
    fits = LIST + " " * (limit - len(LIST))
    assert http_server.post(fits)[0] == 200
    status, _, body = http_server.post(fits + " ")
    assert status == 413 and str(limit) in body


def test_an_unknown_session_is_not_found(http_server: Server) -> None:
    for session in [str(uuid.uuid4()), "x", "../"]:
        headers = {"mcp-session-id": session, "Content-Type": "application/json"}
        assert http_server.request("POST", "/mcp", LIST, headers)[0] == 404


def test_a_client_that_says_nothing_harms_nobody(http_server: Server) -> None:
    open_ended: list[Any] = []
    for _ in range(50):
        idle = socket.create_connection(("127.0.0.1", http_server.port), timeout=10)
        idle.sendall(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        open_ended.append(idle)
    assert http_server.post(LIST)[0] == 200
    for idle in open_ended:
        idle.close()
