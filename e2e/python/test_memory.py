"""Memory that clients can make the server hold: large bodies and many sessions. No VM runs."""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import bouvet
import pytest
from bouvet import MIB, Server

CLIENTS = 20
BODY_BYTES = 64 * MIB
MAX_RISE_BYTES = 300 * MIB
# What may be left a minute after the last request.
REST_SECONDS = 60
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


def resident(server: Server) -> int:
    status = Path("/proc", str(server.process.pid), "status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


# A process of its own: threads of this one wait for each other.
ASK = """
import http.client, sys, threading, time
is_over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set())).start()
waits = []
while not is_over.wait(0.01):
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read()
    waits.append(time.monotonic() - begin)
print(sorted(waits)[len(waits) * 95 // 100] * 1000)
"""


def p95_ms(server: Server, meanwhile: Callable[[], None]) -> float:
    """The 95th percentile of the time that /health takes."""
    command = [sys.executable, "-c", ASK, str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        meanwhile()
        answer, _ = asking.communicate()
    assert asking.returncode == 0
    return float(answer)


def small_values() -> bytes:
    """A call of no known method, of millions of values."""
    head = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":['
    return head + b"0," * ((BODY_BYTES - len(head) - 4) // 2) + b"0]}}"


def small_values_first() -> bytes:
    """The same where the method is not known before all was read."""
    head, tail = b'{"params":{"arguments":{"code":[', b'0]}},"jsonrpc":"2.0","id":1,"method":"tools/call"}'
    return head + b"0," * ((BODY_BYTES - len(head) - len(tail)) // 2) + tail


def escaped_code() -> bytes:
    """Valid calls, each byte of whose code is escaped."""
    code = "\\u0023" * ((BODY_BYTES - 4096) // 6 // 2)
    call = json.dumps(bouvet.tool_call("execute_code", {"sandbox_id": "x", "language": "python"}))
    return call.replace('"python"', f'"python", "code": "{code}", "stdin": "{code}"').encode()


@pytest.mark.parametrize("body", [small_values, small_values_first, escaped_code])
def test_large_bodies_share_bounded_memory(server: Server, body: Callable[[], bytes]) -> None:
    server.start().healthy()
    message = body()
    before = resident(server)
    server.peak_memory(anew=True)
    statuses: list[int] = []

    def post() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/mcp", message, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 503:
            assert answer.headers["retry-after"] == "1"
        statuses.append(answer.status)
        connection.close()

    quiet = p95_ms(server, lambda: time.sleep(1))
    posting = [threading.Thread(target=post) for _ in range(CLIENTS)]

    def flood() -> None:
        for thread in posting:
            thread.start()
        for thread in posting:
            thread.join()

    loaded = p95_ms(server, flood)
    rise = server.peak_memory() - before
    counted = {status: statuses.count(status) for status in set(statuses)}
    figures = (
        f"{body.__name__}: {before // MIB} MiB before, {rise // MIB} MiB more at the peak; answers {counted}; "
        f"/health p95 {loaded:.0f} ms, before {quiet:.0f} ms"
    )
    most = before + before // 10 + 8 * MIB
    deadline = time.monotonic() + REST_SECONDS
    while resident(server) > most and time.monotonic() < deadline:
        time.sleep(0.1)
    rest = resident(server)
    print(f"{figures}; {(rest - before) // MIB} MiB more at rest")
    assert rest <= most, f"the memory did not go back within {REST_SECONDS} s"
    assert len(statuses) == CLIENTS and counted.keys() <= {200, 400, 413, 503}
    assert rise <= MAX_RISE_BYTES
    server.stop()


def test_sessions_are_bounded(server: Server) -> None:
    server.start().healthy()
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE})
    initialized = '{"jsonrpc":"2.0","method":"notifications/initialized"}'
    listed = '{"jsonrpc":"2.0","id":2,"method":"tools/list"}'
    sessions: list[str] = []

    def begin() -> None:
        with server.connection() as connection:
            connection.request("POST", "/mcp", request, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            sessions.append(answer.headers["mcp-session-id"])

    def of(session: str, body: str) -> int:
        return server.post(body, **{"mcp-session-id": session})[0]

    begin()
    before = resident(server)
    for _ in range(499):
        begin()
    rise = resident(server) - before
    print(f"{rise // 499 // 1024} KiB for each of 499 sessions")
    assert of(sessions[0], initialized) == 202 and of(sessions[0], listed) == 200
    begin()
    assert of(sessions[1], listed) == 404, "it was the one that was not used for longest"
    assert of(sessions[0], listed) == 200 and of(sessions[2], initialized) == 202
    for _ in range(500):
        begin()
    assert resident(server) - before <= rise * 2 + 8 * MIB
    server.stop()
