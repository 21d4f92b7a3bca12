"""Sandboxes of OCI images, as an MCP client asks for them: from a real registry."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bouvet
from bouvet import Server


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry on this machine that has the image `tiny:1`."""
    if missing := [tool for tool in ("docker-registry", "skopeo") if not shutil.which(tool)]:
        if os.environ.get("REQUIRE_REGISTRY", "0") != "0":
            pytest.fail(f"REQUIRE_REGISTRY is set, but there is no `{missing[0]}`")
        pytest.skip(f"there is no `{missing[0]}`")
    address = f"127.0.0.1:{bouvet.free_port()}"
    config = tmp_path / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}"
    config.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '{address}'}}\n")
    bouvet.archive(tmp_path / "tiny.tar")
    process = subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL)
    push = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"docker-archive:{tmp_path}/tiny.tar"]

    def pushed() -> bool:
        return subprocess.run([*push, f"docker://{address}/tiny:1"], capture_output=True).returncode == 0

    try:
        bouvet.until("the image was pushed", pushed, 30)
        yield address
    finally:
        process.kill()
        process.wait()


def test_a_sandbox_has_what_is_in_its_image(server: Server, registry: str) -> None:
    server.environment["BOUVET_ALLOWED_REGISTRIES"] = registry
    server.start().healthy()
    wishes = {"env": {"A": "1"}, "name": "tiny", "disk_mib": 128, "timeout_secs": 600, "tmpfs": ["/memory"]}
    sandbox = server.call("create_sandbox", image=f"{registry}/tiny:1", **wishes)["sandbox_id"]

    def run(command: str) -> tuple[int, str]:
        ended = server.call("run_command", sandbox_id=sandbox, command=command)
        return ended["exit_code"], ended["stdout"]

    # Its own program, which ends at once, was not started.
    assert run("echo $A; echo /bin/*; pwd; cd /memory; cd /usr") == (2, "1\n/bin/sh\n/\n")
    [listed] = server.call("list_sandboxes")["sandboxes"]
    assert (listed["name"], listed["image"], listed["state"]) == ("tiny", f"{registry}/tiny:1", "running")

    def refused(**wishes: Any) -> str:
        body = server.post(json.dumps(bouvet.tool_call("create_sandbox", wishes)))[2]
        result = json.loads(body)["result"]
        assert result["isError"], result
        return str(result["content"][0]["text"])

    words = refused(image="alpine")
    assert "`image`" in words and registry in words and "BOUVET_ALLOWED_REGISTRIES" in words, words
    assert "`image`" in refused(image=f"oci:{server.directory}")
    assert "`disk_mib`" in refused(disk_mib=1 << 20)
    assert "`timeout_secs`" in refused(timeout_secs=1 << 30)
    server.call("destroy_sandbox", sandbox_id=sandbox)
