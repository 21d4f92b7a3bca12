"""Ports of this machine that lead into sandboxes: by the command line, the API and MCP."""

import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

import bouvet
from bouvet import Server
from conftest import Way
from test_cli import Cli

SERVE = "mkdir -p /srv/www; echo hello from $0 >/srv/www/x; cd /srv/www; exec python3 -m http.server"
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
while True:
    data, peer = server.recvfrom(65535)
    server.sendto(data.upper(), peer)
"""


@pytest.fixture(scope="module")
def cli(vm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line of a server with a socket."""
    parent = tmp_path_factory.mktemp("ports")
    with Server(parent, BOUVET_SOCKET=str(parent / "run" / "bouvet.sock")) as server:
        server.start().healthy()
        yield Cli(server.environment, parent)
        server.stop()


def fetched(url: str) -> str:
    """What is there, once somebody serves it."""
    body = ""

    def fetch() -> bool:
        nonlocal body
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                body = answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    bouvet.until(f"{url} was served", fetch, 60)
    return body


def is_closed(port: int) -> bool:
    """Whether nothing listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_server_in_a_sandbox_is_reached_through_a_port(cli: Cli) -> None:
    port = bouvet.free_port()
    words = ["-p", f"{port}:8000", "-p", "8000", "-p", "0.0.0.0:0:53/udp", "base", "sh", "-c", f"{SERVE} 8000", "web"]
    cli.ok("run", "-d", "--name", "web", *words)
    assert fetched(f"http://127.0.0.1:{port}/x") == "hello from web\n"

    mine, any_port, datagrams = cli.ok("port", "web").split("\n")
    assert mine == f"8000/tcp -> 127.0.0.1:{port}"
    assert any_port.startswith("8000/tcp -> 127.0.0.1:") and datagrams.startswith("53/udp -> 0.0.0.0:")
    other = any_port.rsplit(":", 1)[1]
    assert fetched(f"http://127.0.0.1:{other}/x") == "hello from web\n"
    assert cli.ok("port", "web", "8000") == f"127.0.0.1:{port}\n127.0.0.1:{other}"
    assert cli.ok("port", "web", "53/udp") == datagrams.removeprefix("53/udp -> ")
    code, _, error = cli.run("port", "web", "53")
    assert code == 125 and "no port of the host leads to the port 53/tcp" in error
    code, _, error = cli.run("port", "web", "http")
    assert code == 125 and "`http`" in error
    assert f"127.0.0.1:{port}->8000/tcp, 127.0.0.1:{other}->8000/tcp" in cli.ok("ps")
    [inspected] = json.loads(cli.ok("inspect", "web"))
    assert inspected["ports"] == cli.sandboxes()["web"]["ports"]
    assert inspected["ports"][0] == {
        **{"host": "127.0.0.1", "host_port": port},
        **{"guest_port": 8000, "protocol": "tcp"},
    }

    number = int(datagrams.rsplit(":", 1)[1])
    echo = cli.start("exec", "web", "python3", "-c", ECHO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(1)
        peer.connect(("127.0.0.1", number))
        answers: list[bytes] = []

        def ask() -> bool:
            peer.send(b"datagram")
            try:
                answers.append(peer.recv(100))
            except TimeoutError:
                return False
            return True

        bouvet.until("a datagram was answered", ask, 60)
        assert answers == [b"DATAGRAM"]
    echo.kill()
    echo.communicate()

    code, _, error = cli.run("run", "-d", "--name", "late", "-p", f"{port}:80", "base")
    assert code == 125 and f"`127.0.0.1:{port}:80/tcp`" in error and "by the sandbox `web`" in error, error
    assert "choose another port" in error and "late" not in cli.sandboxes()
    cli.ok("stop", "web")
    assert cli.ok("port", "web", "8000").startswith(f"127.0.0.1:{port}"), "it keeps them"
    cli.ok("start", "web")
    assert fetched(f"http://127.0.0.1:{port}/x") == "hello from web\n"
    cli.ok("rm", "-f", "web")
    assert is_closed(port)


@pytest.mark.parametrize(
    ("port", "allowed"),
    [("eighty", "host_port:guest_port"), ("80:0", "host_port:guest_port"), ("::1:80:80", "brackets")],
)
def test_what_is_no_port_is_refused_at_once(cli: Cli, port: str, allowed: str) -> None:
    code, _, error = cli.run("run", "-p", port, "base", "true")
    assert code == 125 and f"`--publish` is `{port}`" in error and allowed in error, error


def test_ports_come_and_go_by_the_api(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "open", "base")

    def api(path: str, *more: str) -> Any:
        url = f"http://bouvet/v1/{path}"
        command = ["curl", "-sS", "--unix-socket", cli.environment["BOUVET_SOCKET"], *more, url]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        return json.loads(done.stdout)

    told = ["-H", "content-type: application/json", "-d"]
    assert api("sandboxes/open/ports") == []
    added = api("sandboxes/open/ports", *told, '{"port": "8000"}')
    assert (added["host"], added["guest_port"], added["protocol"]) == ("127.0.0.1", 8000, "tcp")
    assert api("sandboxes/open/ports") == [added]
    serve = cli.start("exec", "open", "sh", "-c", f"{SERVE} 8000", "api")
    assert fetched(f"http://127.0.0.1:{added['host_port']}/x") == "hello from api\n"
    same = json.dumps({"port": f"{added['host_port']}:80"})
    assert api("sandboxes/open/ports", *told, same)["kind"] == "port_in_use"
    assert api("sandboxes/open/ports", *told, '{"port": "x"}')["kind"] == "invalid"
    assert api("sandboxes/open/ports/8000%2Fudp", "-X", "DELETE")["kind"] == "not_exposed"
    assert api("sandboxes/open/ports/8000", "-X", "DELETE") == {}
    assert api("sandboxes/open/ports") == [] and is_closed(added["host_port"])
    serve.kill()
    serve.communicate()
    cli.ok("rm", "-f", "open")


async def test_a_client_exposes_a_port(way: Way) -> None:
    command = f"({SERVE} 8000) >/dev/null 2>&1 &"
    await way.call("run_command", command=command)
    exposed = await way.call("expose_port", port=8000)
    assert exposed["host"] == "127.0.0.1" and exposed["url"] == f"http://127.0.0.1:{exposed['port']}/"
    assert fetched(exposed["url"] + "x").startswith("hello from")
    assert await way.call("expose_port", port=8000, protocol="tcp") == exposed, "the same again"
    datagrams = await way.call("expose_port", port=8000, protocol="udp")
    assert datagrams.keys() == {"host", "port"}
    words = await way.refusal("expose_port", port=8000, sandbox_id="0" * 8)
    assert "there is no sandbox" in words and "list_sandboxes" in words
    words = await way.refusal("expose_port", port=0)
    assert "`port` is 0" in words and "65535" in words


@pytest.mark.parametrize("address", ["off", "::1"])
def test_an_operator_says_where_ports_are_exposed_or_that_they_are_not(server: Server, address: str) -> None:
    server.environment["BOUVET_EXPOSE_ADDRESS"] = address
    server.start().healthy()
    listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    tools = json.loads(server.post(json.dumps(listing))[2])["result"]["tools"]
    assert ("expose_port" in [tool["name"] for tool in tools]) is (address != "off")
    sandbox = server.create()
    if address == "off":
        arguments = {"sandbox_id": sandbox, "port": 80}
        answer = json.loads(server.post(json.dumps(bouvet.tool_call("expose_port", arguments)))[2])
        assert "error" in answer or answer["result"]["isError"], answer
    else:
        exposed = server.call("expose_port", sandbox_id=sandbox, port=80)
        assert exposed["host"] == "::1" and exposed["url"] == f"http://[::1]:{exposed['port']}/"
    server.stop()
