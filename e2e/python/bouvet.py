"""The server under test: its process, the ways into it, and what it may leave on the machine."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import anyio
import mcp_types as types
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

ROOT = Path(__file__).resolve().parents[2]
CGROUPS = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/memory")]
# Only root can bound VMs where no cgroup was delegated.
HAS_CGROUPS = os.geteuid() == 0
START_SECONDS = 30
# What the published guides promise an operator who stops the server.
STOP_SECONDS = 30
MIB = 1024 * 1024


def binary() -> Path:
    """The server's binary: the one that was named, or the newest that was built."""
    if named := os.environ.get("BOUVET_BIN"):
        return Path(named).resolve()
    built = [ROOT / "target" / profile / "bouvet-mcp" for profile in ("release", "debug")]
    built = [path for path in built if path.exists()]
    assert built, "there is no bouvet-mcp in target: `cargo build --release -p bouvet-mcp` makes it"
    return max(built, key=lambda path: path.stat().st_mtime)


def images() -> dict[str, Path]:
    """The kernel and the rootfs that `make` built, or those that the environment names."""
    built = {"BOUVET_KERNEL": "vmlinux", "BOUVET_ROOTFS": "debian-devbox.ext4"}
    output = ROOT / "images" / "output"
    return {name: Path(os.environ.get(name) or output / file) for name, file in built.items()}


def lacking() -> str | None:
    """What this machine lacks for real VMs; `None` for nothing."""
    for name, path in images().items():
        if not path.exists():
            what = name.removeprefix("BOUVET_").lower()
            return f"there is no {what} in images/output: `make images` makes it"
    if os.uname().machine != "x86_64":
        return "the QEMU engine needs x86_64"
    if not shutil.which("qemu-system-x86_64"):
        return "there is no QEMU: `apt-get install qemu-system-x86`"
    return None


def environment(directory: Path, **variables: str) -> dict[str, str]:
    """Everything that a server in `directory` is told; nothing of ours gets in by accident."""
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    ours = {name: str(path) for name, path in images().items()}
    ours |= {"BOUVET_CHROOT": str(directory), "BOUVET_HTTP_HOST": "127.0.0.1"}
    # One template for all tests; and no VM that no test asked for.
    ours |= {"BOUVET_TEMPLATES": str(ROOT / "target" / "templates"), "BOUVET_POOL_ENABLED": "false"}
    # What people run at the same time must not meet the servers of tests.
    ours |= {"BOUVET_SOCKET": "off", "BOUVET_DATA": str(directory.parent / "data")}
    if not HAS_CGROUPS:
        ours["BOUVET_CGROUP"] = "off"
    return inherited | ours | variables


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def until(what: str, condition: Callable[[], object], seconds: float = 10) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{seconds} s passed, and never: {what}"
        time.sleep(0.02)


def archive(path: Path, script: str = "echo from an image; exit 4") -> None:
    """Writes an image with the shell of this machine, as `docker save` does."""

    def tar(files: dict[str, bytes]) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w") as archive:
            for name, data in files.items():
                about = tarfile.TarInfo(name)
                about.size, about.mode = len(data), 0o755
                archive.addfile(about, io.BytesIO(data))
        return written.getvalue()

    needed = ["/bin/sh", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"]
    layer = tar({name[1:]: Path(name).read_bytes() for name in needed})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"], "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["tiny:1"], "Layers": ["layer.tar"]}]
    parts = {"config.json": json.dumps(config).encode(), "layer.tar": layer}
    path.write_bytes(tar(parts | {"manifest.json": json.dumps(manifest).encode()}))


class Server:
    """A server process in a directory of its own. Killed when its block ends, if it still runs."""

    def __init__(self, parent: Path, transport: str = "http", **variables: str) -> None:
        self.directory = parent / "state"
        self.log_path = parent / "log"
        self.port = free_port()
        own = {"BOUVET_TRANSPORT": transport, "BOUVET_HTTP_PORT": str(self.port)}
        self.environment = environment(self.directory, **(own | variables))
        self.binary = binary()
        self.arguments: list[str] = []
        self._process: subprocess.Popen[Any] | None = None
        self._max_files: int | None = None

    def _limit(self) -> None:
        limit = self._max_files or 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    def limit_files(self, count: int) -> None:
        """Lets it open so many files, from its next start on."""
        self._max_files = count

    def start(self, **pipes: Any) -> Self:
        """Starts it. Its standard input is at its end, unless `pipes` says otherwise."""
        limit = self._limit if self._max_files else None
        usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "preexec_fn": limit}
        pipes = usual | pipes
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *self.arguments],
                env=self.environment,
                stderr=log,
                cwd=self.directory.parent,
                **pipes,
            )
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._process:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        if self._process.poll() is None:
            self.kill()
            for cgroup in reversed(self.cgroups()):
                cgroup.rmdir()

    @property
    def process(self) -> subprocess.Popen[Any]:
        assert self._process, "the server was not started"
        return self._process

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def healthy(self) -> Self:
        """Waits until it answers over HTTP."""

        def answers() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.log}"
            with contextlib.suppress(ConnectionError):
                return self.get("/health")[0] == 200
            return False

        until("the server answered", answers, START_SECONDS)
        return self

    # Raw HTTP

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        try:
            yield connection
        finally:
            connection.close()

    def request(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """One request: its status, content type and body."""
        with self.connection() as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers.get("content-type", ""), answer.read().decode()

    def get(self, path: str) -> tuple[int, str, str]:
        return self.request("GET", path)

    def post(self, body: str, **headers: str) -> tuple[int, str, str]:
        """POSTs to /mcp as simply as can be."""
        return self.request("POST", "/mcp", body, {"Content-Type": "application/json"} | headers)

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Calls a tool as curl would, and returns its structured result."""
        status, _, body = self.post(json.dumps(tool_call(tool, arguments)))
        assert status == 200, body
        result = json.loads(body)["result"]
        assert not result.get("isError"), result
        return dict(result["structuredContent"])

    def create(self) -> str:
        """A new sandbox's id."""
        return str(self.call("create_sandbox")["sandbox_id"])

    def peak_memory(self, anew: bool = False) -> int:
        """The most memory that it held, in bytes; from now on if `anew` (proc_pid_clear_refs(5))."""
        proc = Path("/proc", str(self.process.pid))
        if anew:
            (proc / "clear_refs").write_text("5")
        peak = re.search(r"^VmHWM:\s+(\d+) kB", (proc / "status").read_text(), re.MULTILINE)
        assert peak
        return int(peak[1]) * 1024

    # The end, and what is left after it

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it as its operator would, and checks that it ends well and leaves nothing."""
        vms = self.vms()
        self.process.send_signal(how)
        assert self.process.wait(STOP_SECONDS) == 0, self.log
        self.assert_nothing_left(vms)

    def kill(self) -> None:
        """Ends it as nothing can be prepared for, and checks that its VMs die with it."""
        vms = self.vms()
        self.process.kill()
        self.process.wait()
        until("its VMs died with it", lambda: not running(vms), 5)

    def vms(self) -> list[int]:
        """The process ids of its VMs."""
        return [pid for pid, parent, name in processes() if parent == self.process.pid and "qemu" in name]

    def cgroups(self) -> list[Path]:
        """Its cgroups, which are named after its directory."""
        parts = [re.sub("[^A-Za-z0-9]", "_", part) for part in self.directory.resolve().parts[1:]]
        name = "-".join(["bouvet", *parts])
        parents = [path for root in CGROUPS if root.is_dir() for path in root.iterdir()]
        parents = [path for path in parents if path.name.startswith(name)]
        return [path for parent in parents for path in [parent, *parent.iterdir()] if path.is_dir()]

    def assert_nothing_left(self, vms: list[int]) -> None:
        assert not running(vms), "processes were left"
        assert not self.cgroups(), "cgroups were left"
        assert not self.directory.exists() or not list(self.directory.iterdir()), "files were left"
        assert str(self.directory) not in Path("/proc/self/mountinfo").read_text(), "mounts were left"


def processes() -> Iterator[tuple[int, int, str]]:
    """All that run: their ids, their parents' ids and their names."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text().rsplit(")", 1)
            state, parent = rest.split()[:2]
            if state not in "ZX":
                yield int(path.parent.name), int(parent), name.split("(", 1)[1]


def running(pids: list[int]) -> list[int]:
    """Those of `pids` that still run."""
    return [pid for pid, _, _ in processes() if pid in pids]


def tool_call(tool: str, arguments: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    """The JSON-RPC request that calls `tool`."""
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    if token:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


# The official client


def over_http(server: Server, mode: str, **options: Any) -> Client:
    return Client(server.url, mode=mode, **options)


def over_stdio(parent: Path, mode: str, log: Any, **options: Any) -> Client:
    """A client that starts a server of its own, as desktop applications do."""
    variables = environment(parent / "state", BOUVET_TRANSPORT="stdio")
    parameters = StdioServerParameters(command=str(binary()), env=variables)
    return Client(stdio_client(parameters, errlog=log), mode=mode, **options)


async def call(client: Client, tool: str, /, progress: Any = None, **arguments: Any) -> dict[str, Any]:
    """Calls a tool that is to succeed and to show no image."""
    outcome, images = await shown(client, tool, progress, **arguments)
    assert not images
    return outcome


async def shown(
    client: Client, tool: str, /, progress: Any = None, **arguments: Any
) -> tuple[dict[str, Any], list[types.ImageContent]]:
    """Calls a tool that is to succeed. Its result is structured, and the same as JSON in its text; images follow."""
    result = await client.call_tool(tool, arguments, progress_callback=progress)
    assert not result.is_error, result.content
    content, *rest = result.content
    assert isinstance(content, types.TextContent)
    assert json.loads(content.text) == result.structured_content
    assert isinstance(result.structured_content, dict)
    images = [one for one in rest if isinstance(one, types.ImageContent)]
    assert images == rest
    return result.structured_content, images


async def refusal(client: Client, tool: str, /, **arguments: Any) -> str:
    """Calls a tool that is to fail, and returns its words."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    [content] = result.content
    assert isinstance(content, types.TextContent)
    return content.text


async def eventually(what: str, condition: Callable[[], Any], seconds: float = 20) -> None:
    """Waits until the coroutine that `condition` makes comes to a true value."""
    with anyio.move_on_after(seconds) as scope:
        while not await condition():
            await anyio.sleep(0.05)
    assert not scope.cancelled_caught, f"{seconds} s passed, and never: {what}"


def mount_tmpfs(target: Path, size: str) -> int:
    """Mounts a file system in memory, and returns how `mount` ended."""
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", target]).returncode


def unmount(target: Path) -> None:
    subprocess.run(["umount", target], check=True)
