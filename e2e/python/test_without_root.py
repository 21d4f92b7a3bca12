"""The server as an ordinary user, as docs/SELF_HOST.md has it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bouvet import Server, images, until

NOBODY = 65534


def reach(server: Server, home: Path) -> None:
    """Puts what the server needs where its user may read it: the checkout may lie in a directory of root's own."""
    own = images()
    modules = Path(f"{own['BOUVET_KERNEL']}.modules.cpio")
    for path in [server.binary, *own.values(), *([modules] if modules.exists() else [])]:
        # Sparse, and without taking space where the file system can.
        subprocess.run(["cp", "--reflink=auto", "--sparse=auto", path, home], check=True)
        (home / path.name).chmod(0o755 if path == server.binary else 0o644)
    server.binary = home / server.binary.name
    server.environment |= {name: str(home / path.name) for name, path in own.items()}


@pytest.fixture
def users_server(vm: None) -> Iterator[Server]:
    """A server that root started as somebody else, in a directory of theirs; without root, as whom we are."""
    with tempfile.TemporaryDirectory(prefix="bouvet-user-") as name:
        home = Path(name)
        variables = {"BOUVET_TEMPLATES": str(home / "templates"), "BOUVET_POOL_MIN_SIZE": "1"}
        with Server(home, BOUVET_POOL_ENABLED="true", **variables) as server:
            # The default finds out what this user has.
            server.environment.pop("BOUVET_CGROUP", None)
            if os.geteuid() == 0:
                os.chown(home, NOBODY, NOBODY)
                reach(server, home)
                yield server.start(user=NOBODY, group=NOBODY, extra_groups=[]).healthy()
            else:
                yield server.start().healthy()


def test_it_serves_without_root(users_server: Server) -> None:
    for _ in range(2):
        sandbox = users_server.create()
        ran = users_server.call("execute_code", sandbox_id=sandbox, language="python", code="print(6 * 7)")
        assert ran["stdout"] == "42\n"
        assert users_server.call("destroy_sandbox", sandbox_id=sandbox) == {"success": True}
    vm = users_server.vms()[0]
    status = Path(f"/proc/{vm}/status").read_text
    # One that is just made for the pool puts its filter on after it has started.
    until("its filter is in force", lambda: "\nSeccomp:\t2\n" in status())
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status()
    assert "\nNoNewPrivs:\t1\n" in status()
    users_server.stop()


def test_named_cgroup_of_root_is_an_error(users_server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests without root show it")
    users_server.stop()
    cgroups = Path("/sys/fs/cgroup")
    users_server.environment["BOUVET_CGROUP"] = str(cgroups / "memory" if (cgroups / "memory").exists() else cgroups)
    users_server.start(user=NOBODY, group=NOBODY, extra_groups=[])
    assert users_server.process.wait(30) != 0
    assert "BOUVET_CGROUP" in users_server.log
