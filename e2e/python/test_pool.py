"""The pool of waiting clones, as those see it who run the server."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import bouvet
from bouvet import Server

SIZE = 2
FILL_SECONDS = 60


@pytest.fixture
def pooled(vm: None, tmp_path: Path) -> Iterator[Server]:
    """A server with a pool, not yet started."""
    with Server(tmp_path, BOUVET_POOL_ENABLED="true", BOUVET_POOL_MIN_SIZE=str(SIZE)) as server:
        yield server


def is_full(server: Server) -> bool:
    pool = json.loads(server.get("/health?details=true")[2])["pool"]
    return bool(pool["ready"] == pool["size"])


def fill(server: Server) -> None:
    bouvet.until("the pool was full", lambda: is_full(server), FILL_SECONDS)


def test_a_clone_that_died_while_it_waited_is_never_handed_out(pooled: Server) -> None:
    pooled.start().healthy()
    fill(pooled)
    waiting = pooled.vms()
    assert len(waiting) == SIZE
    assert "the pool is filling" in pooled.log and "the pool is full" in pooled.log
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    for _ in waiting:
        sandbox = pooled.create()
        assert pooled.call("run_command", sandbox_id=sandbox, command="echo hi")["stdout"] == "hi\n"
    pooled.stop()


def test_a_killed_server_takes_waiting_clones_along(pooled: Server) -> None:
    pooled.start().healthy()
    fill(pooled)
    pooled.kill()
    pooled.start().healthy()
    fill(pooled)
    pooled.stop()


@pytest.mark.parametrize("vms", [1, SIZE], ids=["as it builds a template", "as it fills the pool"])
def test_a_signal_ends_a_server_that_makes_ready(pooled: Server, tmp_path: Path, vms: int) -> None:
    if vms == 1:
        pooled.environment["BOUVET_TEMPLATES"] = str(tmp_path / "templates")
    pooled.start().healthy()
    bouvet.until("VMs ran", lambda: len(pooled.vms()) >= vms, FILL_SECONDS)
    pooled.stop()


def test_a_template_that_does_not_fit_on_the_disk_is_used_all_the_same(pooled: Server, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    # It makes its directory there, and can write nothing into it.
    if bouvet.mount_tmpfs(full, "64k") != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        pooled.environment["BOUVET_TEMPLATES"] = str(full)
        pooled.start().healthy()
        fill(pooled)
        pooled.create()
        assert "template built, and not kept" in pooled.log
        assert not list(full.glob("*.new"))
        pooled.stop()
    finally:
        bouvet.unmount(full)
