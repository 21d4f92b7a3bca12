"""The first sandbox of a size takes long: clients and commands report why."""

from pathlib import Path

import anyio

import bouvet
from bouvet import Server
from test_cli import Cli, Terminal

WORDS = "making the first sandbox of this size, about a minute; the next take a second"
SIZE_MIB = 200
OTHER_SIZE_MIB = 208
# What the server gives by default.
DISK_MIB = 2048


async def test_first_sandbox_of_a_size_is_announced(vm: None, tmp_path: Path) -> None:
    own = {"BOUVET_SOCKET": str(tmp_path / "run" / "bouvet.sock"), "BOUVET_TEMPLATES": str(tmp_path / "templates")}
    heard: list[str] = []

    async def progress(_value: float, _total: float | None, message: str | None) -> None:
        heard.append(message or "")

    with Server(tmp_path, **own) as server:
        server.start().healthy()
        cli = Cli(server.environment, tmp_path)
        size = ["-m", f"{SIZE_MIB}m", "--cpus", "1", "--disk", f"{DISK_MIB}m"]
        with Terminal(cli, "run", "--rm", *size, "base", "echo", "it runs") as terminal:
            # Both wait for one template.
            async with bouvet.over_http(server, "auto") as client:
                wanted = {"memory_mib": SIZE_MIB, "vcpu_count": 1}
                await bouvet.call(client, "create_sandbox", progress=progress, **wanted)
                assert WORDS in heard
                heard.clear()
                await bouvet.call(client, "create_sandbox", progress=progress, **wanted)
                assert heard == [], "the next takes a second"
            assert WORDS in await anyio.to_thread.run_sync(terminal.until, "it runs")
            terminal.end()
        assert WORDS in server.log
        assert cli.run("run", "--rm", *size, "base", "echo", "it runs") == (0, "it runs\n", "")
        # A sandbox that was created is made when it is started; without a terminal the notice is one line.
        cli.ok("create", "--name", "later", "-m", f"{OTHER_SIZE_MIB}m", "--cpus", "1", "base", "true")
        assert cli.run("start", "-a", "later") == (0, "", f"{WORDS}\n")
        assert "the pool is" not in server.log, "it has none"
        server.stop()
