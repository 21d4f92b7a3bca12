"""Servers and sandboxes that tests share, and how a test says that it was skipped."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

import bouvet
from bouvet import Server

WAYS = [("http", "auto"), ("http", "legacy"), ("stdio", "auto"), ("stdio", "legacy")]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def vm() -> None:
    """Skips what needs real VMs where there can be none; where they are required, that is a failure."""
    if lacking := bouvet.lacking():
        if os.environ.get("REQUIRE_VM", "0") != "0":
            pytest.fail(f"REQUIRE_VM is set, but {lacking}")
        pytest.skip(lacking)


@pytest.fixture
def server(vm: None, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, not yet started."""
    with Server(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def http_server(vm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server over HTTP that tests share. They leave it as they found it."""
    with Server(tmp_path_factory.mktemp("http")) as server:
        yield server.start().healthy()
        server.stop()


@pytest.fixture(scope="session")
def http_sandbox(http_server: Server) -> str:
    """The sandbox on it that tests share. They leave it alive."""
    return http_server.create()


@dataclass
class Way:
    """A connected client, by one transport and one era of the protocol, and a sandbox that it made."""

    client: Client
    transport: str
    mode: str
    # Notifications that no call of the client asked for.
    notifications: list[Any] = field(default_factory=list)
    sandbox: str = ""

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        return await bouvet.call(self.client, tool, sandbox_id=self.sandbox, **arguments)

    async def refusal(self, tool: str, /, **arguments: Any) -> str:
        return await bouvet.refusal(self.client, tool, **({"sandbox_id": self.sandbox} | arguments))


@pytest.fixture(scope="session", params=WAYS, ids="-".join)
async def way(
    request: pytest.FixtureRequest, http_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Way]:
    """Each of the four ways in turn. Tests leave the sandbox alive."""
    transport, mode = request.param
    parent = tmp_path_factory.mktemp(f"{transport}-{mode}")
    notifications: list[Any] = []

    async def note(message: Any) -> None:
        notifications.append(message)

    with (parent / "log").open("wb") as log:
        if transport == "http":
            client = bouvet.over_http(http_server, mode, message_handler=note)
        else:
            client = bouvet.over_stdio(parent, mode, log, message_handler=note)
        async with client:
            way = Way(client, transport, mode, notifications)
            way.sandbox = (await bouvet.call(client, "create_sandbox"))["sandbox_id"]
            yield way
            assert await way.call("destroy_sandbox") == {"success": True}
