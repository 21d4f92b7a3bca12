"""What every client gets, by whichever transport and era of the protocol it comes."""

import base64
import uuid
from typing import Any

import anyio
import mcp_types as types
import pytest

import bouvet
from bouvet import MIB
from conftest import Way

# What the published reference promises, and what it calls optional.
PARAMETERS: dict[str, tuple[list[str], list[str]]] = {
    "create_sandbox": (
        [],
        [
            *("memory_mib", "vcpu_count"),
            # Beyond the published ones.
            *("image", "env", "working_dir", "user", "name", "disk_mib", "timeout_secs", "tmpfs", "read_only"),
            *("network", "allow", "deny"),
        ],
    ),
    "destroy_sandbox": (["sandbox_id"], []),
    "list_sandboxes": ([], []),
    "execute_code": (["sandbox_id", "language", "code"], ["context_id", "timeout_ms", "env", "cwd", "stdin"]),
    "run_command": (["sandbox_id", "command"], ["timeout_ms", "env", "cwd", "stdin"]),
    "read_file": (["sandbox_id", "path"], ["offset", "limit_bytes"]),
    "write_file": (["sandbox_id", "path", "content"], ["is_base64", "append"]),
    "list_directory": (["sandbox_id", "path"], []),
    "create_context": (["sandbox_id", "language"], ["cwd", "env"]),
    "list_contexts": (["sandbox_id"], []),
    "destroy_context": (["sandbox_id", "context_id"], []),
    "network_policy": (["sandbox_id"], ["allow", "deny"]),
    "expose_port": (["sandbox_id", "port"], ["protocol"]),
}
RESULTS = {
    "create_sandbox": {"sandbox_id"},
    "destroy_sandbox": {"success"},
    "list_sandboxes": {"sandboxes"},
    "execute_code": {"exit_code", "stdout", "stderr", "duration_ms", "timed_out", "truncated"},
    "run_command": {"exit_code", "stdout", "stderr", "duration_ms", "timed_out", "truncated"},
    "read_file": {"content", "is_base64"},
    "write_file": {"success"},
    "list_directory": {"entries"},
    "create_context": {"context_id", "language", "created_at"},
    "list_contexts": {"contexts"},
    "destroy_context": {"success"},
    "network_policy": {"allow", "deny", "refused", "last_refused"},
    "expose_port": {"host", "port"},
}
READS_ONLY = {"list_sandboxes", "read_file", "list_directory", "list_contexts"}
REPEATABLE = {"network_policy", "expose_port"}
DESTROYS = {"destroy_sandbox", "write_file", "destroy_context"}
PROGRAMS = {
    "python": "import sys\nprint('out', 6 * 7)\nprint('err', file=sys.stderr)",
    "node": "console.log('out', 6 * 7)\nconsole.error('err')",
    "bash": "echo out $((6 * 7))\necho err >&2",
    "rust": 'fn main() { println!("out {}", 6 * 7); eprintln!("err"); }',
}


async def test_the_protocol_is_the_one_asked_for(way: Way) -> None:
    assert way.client.protocol_version == {"auto": "2026-07-28", "legacy": "2025-11-25"}[way.mode]
    assert way.client.server_info
    assert (way.client.server_info.name, way.client.server_info.version) == ("bouvet", "0.1.0")
    assert "create_sandbox" in (way.client.instructions or "")


async def test_the_tools_are_listed(way: Way) -> None:
    listed = await way.client.list_tools()
    assert listed.next_cursor is None
    tools = {tool.name: tool for tool in listed.tools}
    assert tools.keys() == PARAMETERS.keys()
    for name, (required, optional) in PARAMETERS.items():
        schema = tools[name].input_schema
        assert schema["properties"].keys() == {*required, *optional}, name
        assert set(schema.get("required", [])) == set(required), name
        assert tools[name].description, name
        assert all(one["description"] for one in schema["properties"].values()), name
    language = tools["execute_code"].input_schema["properties"]["language"]["description"]
    assert all(word in language for word in ["python", "node", "javascript", "bash", "shell", "sh", "rust"])


async def test_all_annotations_are_set(way: Way) -> None:
    for tool in (await way.client.list_tools()).tools:
        hints = tool.annotations
        assert hints and hints.title, tool.name
        assert hints.read_only_hint is (tool.name in READS_ONLY), tool.name
        assert hints.destructive_hint is (tool.name in DESTROYS), tool.name
        assert hints.idempotent_hint is (tool.name in READS_ONLY | REPEATABLE), tool.name
        # An image comes from a registry, and a program may have a network.
        world = {"create_sandbox", "execute_code", "run_command"}
        assert hints.open_world_hint is (tool.name in world), tool.name


async def test_results_have_schemas(way: Way) -> None:
    for tool in (await way.client.list_tools()).tools:
        assert tool.output_schema, tool.name
        assert tool.output_schema["type"] == "object", tool.name
        assert RESULTS[tool.name] <= tool.output_schema["properties"].keys(), tool.name
        assert RESULTS[tool.name] <= set(tool.output_schema["required"]), tool.name


async def test_schemas_contradict_nothing(way: Way) -> None:
    """A default is of its own type, and what is not named is not taken: clients fill forms from this."""
    for tool in (await way.client.list_tools()).tools:
        assert tool.input_schema.get("additionalProperties") is False, tool.name
        for name, one in tool.input_schema["properties"].items():
            assert "default" not in one or one["default"] is not None, f"{tool.name}: {name}"


async def test_a_sandbox_from_its_creation_to_its_end(way: Way) -> None:
    created = await bouvet.call(way.client, "create_sandbox", memory_mib=320, vcpu_count=1)
    sandbox = created["sandbox_id"]
    assert uuid.UUID(sandbox)

    async def call(tool: str, **arguments: Any) -> dict[str, Any]:
        return await bouvet.call(way.client, tool, sandbox_id=sandbox, **arguments)

    for language, code in PROGRAMS.items():
        outcome = await call("execute_code", language=language, code=code)
        assert (outcome["exit_code"], outcome["stdout"], outcome["stderr"]) == (0, "out 42\n", "err\n")
        assert not outcome["timed_out"] and not outcome["truncated"] and outcome["duration_ms"] > 0
    outcome = await call("run_command", command="uname -s; exit 3")
    assert (outcome["exit_code"], outcome["stdout"]) == (3, "Linux\n")

    text = "täglich 日記\n"
    assert await call("write_file", path="notes/today.txt", content=text) == {"success": True}
    read = await call("read_file", path="/root/notes/today.txt")
    assert read == {"content": text, "is_base64": False, "size": len(text.encode())}
    [entry] = (await call("list_directory", path="notes"))["entries"]
    assert (entry["name"], entry["is_dir"], entry["size"]) == ("today.txt", False, len(text.encode()))

    [listed] = [
        one
        for one in (await bouvet.call(way.client, "list_sandboxes"))["sandboxes"]
        if one["sandbox_id"] == sandbox
    ]
    assert (listed["state"], listed["memory_mib"], listed["engine"]) == ("running", 320, "qemu")
    assert await call("destroy_sandbox") == {"success": True}
    words = await bouvet.refusal(way.client, "run_command", sandbox_id=sandbox, command="true")
    assert sandbox in words and "destroyed" in words and "create_sandbox" in words
    left = (await bouvet.call(way.client, "list_sandboxes"))["sandboxes"]
    assert sandbox not in [one["sandbox_id"] for one in left]


async def test_bytes_that_are_no_text_come_and_go_in_base64(way: Way) -> None:
    content = base64.b64encode(bytes(range(256))).decode()
    await way.call("write_file", path="all-bytes", content=content, is_base64=True)
    assert (await way.call("read_file", path="all-bytes"))["content"] == content
    outcome = await way.call("run_command", command="sha256sum < all-bytes")
    assert outcome["stdout"].startswith("40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880")


async def test_a_long_file_is_written_and_read_in_parts(way: Way) -> None:
    for part in ["0123456789", "ABCDEFGHIJ", "end"]:
        await way.call("write_file", path="parts", content=part, append=part != "0123456789")
    first = await way.call("read_file", path="parts", offset=4, limit_bytes=10)
    assert first == {"content": "456789ABCD", "is_base64": False, "size": 23, "next_offset": 14}
    rest = await way.call("read_file", path="parts", offset=first["next_offset"])
    assert rest == {"content": "EFGHIJend", "is_base64": False, "size": 23}


async def test_a_large_file_is_read_to_its_end(way: Way) -> None:
    """What comes in one call must get through: the official client takes at most 1 MiB in one event."""
    content = "0123456789abcdef" * (3 * MIB // 16)
    await way.call("write_file", path="large", content=content)
    parts: list[str] = []
    offset: int | None = 0
    while offset is not None:
        read = await way.call("read_file", path="large", offset=offset)
        parts.append(read["content"])
        offset = read.get("next_offset")
    assert "".join(parts) == content


async def test_a_failing_program_is_a_normal_result(way: Way) -> None:
    for code, exit_code in [("exit 7", 7), ("kill -TERM $$", 128 + 15), ("no-such-command", 127)]:
        outcome = await way.call("execute_code", language="bash", code=code)
        assert outcome["exit_code"] == exit_code
    assert "no-such-command" in outcome["stderr"]


async def test_a_program_out_of_time_is_killed_and_what_it_printed_returned(way: Way) -> None:
    mark = "sleep 86401"
    command = f"echo begun; echo wrong >&2; {mark} & setsid {mark} & {mark}"
    outcome = await way.call("run_command", command=command, timeout_ms=3000)
    assert outcome["timed_out"] and outcome["exit_code"] == 137
    assert (outcome["stdout"], outcome["stderr"]) == ("begun\n", "wrong\n")
    await bouvet.eventually("all that it had started was gone", lambda: gone(way, mark))


async def test_output_arrives_as_progress(way: Way) -> None:
    seen: list[tuple[float, str]] = []

    async def progress(value: float, _total: float | None, message: str | None) -> None:
        seen.append((value, message or ""))

    # The second line is printed when the first has been seen: output is not kept back until the end.
    async def answer_the_first_line() -> None:
        while not any("first" in message for _, message in seen):
            await anyio.sleep(0.02)
        await way.call("write_file", path="seen", content="")

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(answer_the_first_line)
            command = "rm -f seen; echo first; until [ -e seen ]; do sleep 0.1; done; echo second; sleep 1"
            outcome = await way.call("run_command", command=command, progress=progress)
    assert outcome["stdout"] == "first\nsecond\n"
    assert "".join(message for _, message in seen) == "first\nsecond\n"
    values = [value for value, _ in seen]
    assert values == sorted(set(values)), "progress rises"


async def test_no_progress_comes_unasked(way: Way) -> None:
    way.notifications.clear()
    await way.call("run_command", command="for i in 1 2 3; do echo $i; sleep 0.2; done")
    assert way.notifications == []


async def test_cancelling_kills_the_whole_process_tree(way: Way) -> None:
    mark = "sleep 86402"
    async with anyio.create_task_group() as group:
        command = f"{mark} & setsid {mark} & (trap '' TERM HUP INT; {mark})"
        group.start_soon(lambda: way.call("run_command", command=command))
        await bouvet.eventually("it ran", lambda: runs(way, mark))
        group.cancel_scope.cancel()
    await bouvet.eventually("all that it had started was gone", lambda: gone(way, mark))


async def runs(way: Way, mark: str) -> bool:
    """Whether processes with `mark` in their command lines run in the sandbox."""
    # The bracket keeps this command's own line from matching.
    outcome = await way.call("run_command", command=f"pgrep -f '[{mark[0]}]{mark[1:]}'")
    assert outcome["exit_code"] in (0, 1), outcome
    return bool(outcome["exit_code"] == 0)


async def gone(way: Way, mark: str) -> bool:
    return not await runs(way, mark)


async def test_an_unknown_sandbox_is_refused(way: Way) -> None:
    for wrong in [str(uuid.uuid4()), "not-an-id", "", "../../etc", "x" * 100_000]:
        for tool, arguments in [
            ("destroy_sandbox", {}),
            ("execute_code", {"language": "python", "code": ""}),
            ("run_command", {"command": "true"}),
            ("read_file", {"path": "a"}),
            ("write_file", {"path": "a", "content": ""}),
            ("list_directory", {"path": "."}),
            ("create_context", {"language": "python"}),
            ("list_contexts", {}),
            ("destroy_context", {"context_id": "x"}),
            ("network_policy", {}),
        ]:
            words = await way.refusal(tool, sandbox_id=wrong, **arguments)
            assert "there is no sandbox" in words and wrong[:64] in words
            assert "list_sandboxes" in words and "create_sandbox" in words
            assert len(words) < 500


async def test_a_network_is_had_by_asking_and_its_policy_changed(way: Way) -> None:
    sandbox = (await bouvet.call(way.client, "create_sandbox", allow=["*.example.com"]))["sandbox_id"]

    async def fetch(*addresses: str) -> int:
        command = "; ".join(f"curl -sS -m 20 http://{address}/" for address in addresses)
        ran = await bouvet.call(way.client, "run_command", sandbox_id=sandbox, command=command)
        return ran["exit_code"]

    try:
        assert await fetch("10.0.0.1", "evil.example") != 0
        told = await bouvet.call(way.client, "network_policy", sandbox_id=sandbox)
        assert (told["allow"], told["deny"]) == (["*.example.com"], [])
        # Names are asked for over both families.
        assert told["refused"]["private"] == 1 and told["refused"]["not_allowed"] >= 1
        first = told["last_refused"][0]
        assert (first["reason"], first["protocol"], first["destination"]) == ("private", "tcp", "10.0.0.1:80")
        told = await bouvet.call(way.client, "network_policy", sandbox_id=sandbox, deny=["a.example.com"])
        assert (told["allow"], told["deny"]) == (["*.example.com"], ["a.example.com"])
        words = await way.refusal("network_policy", sandbox_id=sandbox, allow=["10.0.0.0/33"])
        assert "10.0.0.0/33" in words and "TARGET" in words
        # The operator lets clients have what is public, whatever they say.
        await bouvet.call(way.client, "network_policy", sandbox_id=sandbox, allow=["10.0.0.0/8"], deny=[])
        assert await fetch("10.0.0.1") == 7
    finally:
        await bouvet.call(way.client, "destroy_sandbox", sandbox_id=sandbox)
    alone = (await bouvet.call(way.client, "create_sandbox"))["sandbox_id"]
    interfaces = await bouvet.call(way.client, "run_command", sandbox_id=alone, command="ls /sys/class/net")
    assert interfaces["stdout"].split() == ["lo"]
    assert "no network" in await way.refusal("network_policy", sandbox_id=alone)
    await bouvet.call(way.client, "destroy_sandbox", sandbox_id=alone)
    assert "`none` and `tsi`" in await bouvet.refusal(way.client, "create_sandbox", network="host")


async def test_an_unknown_language_is_refused(way: Way) -> None:
    words = await way.refusal("execute_code", language="cobol", code="")
    assert "cobol" in words and "run_command" in words
    assert all(known in words for known in ["python", "node", "bash", "rust"])


@pytest.mark.parametrize(
    ("tool", "field", "limit", "arguments"),
    [
        ("execute_code", "code", 10 * MIB, {"language": "bash"}),
        ("run_command", "command", MIB, {}),
        ("write_file", "content", 10 * MIB, {"path": "too-much"}),
    ],
)
async def test_too_long_an_input_is_refused(
    way: Way, tool: str, field: str, limit: int, arguments: dict[str, Any]
) -> None:
    words = await way.refusal(tool, **arguments, **{field: "#" * (limit + 1)})
    assert f"`{field}`" in words and str(limit) in words and str(limit + 1) in words
    assert "write_file" in words or "append" in words


@pytest.mark.parametrize("tool", [name for name, (required, _) in PARAMETERS.items() if required])
async def test_a_missing_argument_is_named(way: Way, tool: str) -> None:
    for missing in PARAMETERS[tool][0]:
        given = {name: 80 if name == "port" else "x" for name in PARAMETERS[tool][0] if name != missing}
        assert f"`{missing}`" in await bouvet.refusal(way.client, tool, **given)


@pytest.mark.parametrize("tool", PARAMETERS)
async def test_an_unknown_argument_is_refused_by_its_name(way: Way, tool: str) -> None:
    """Or a model that writes `timeout` would never learn that it is `timeout_ms`."""
    required, optional = PARAMETERS[tool]
    given = {name: "x" for name in required} | {"bogus": 1}
    words = await bouvet.refusal(way.client, tool, **given)
    assert "`bogus`" in words
    assert all(f"`{name}`" in words for name in [*required, *optional])


@pytest.mark.parametrize(
    ("tool", "arguments", "field"),
    [
        ("create_sandbox", {"memory_mib": 64}, "memory_mib"),
        ("create_sandbox", {"vcpu_count": 33}, "vcpu_count"),
        ("expose_port", {"port": 65_536}, "port"),
        ("run_command", {"command": "true", "timeout_ms": 0}, "timeout_ms"),
        ("run_command", {"command": "true", "timeout_ms": 86_400_001}, "timeout_ms"),
        ("run_command", {"command": "true", "env": {"A=B": ""}}, "env"),
        ("run_command", {"command": "a\0b"}, "command"),
        ("read_file", {"path": "/etc/passwd", "limit_bytes": 0}, "limit_bytes"),
        ("write_file", {"path": "a", "content": "%", "is_base64": True}, "content"),
    ],
)
async def test_a_bad_value_is_refused_by_the_name_of_its_argument(
    way: Way, tool: str, arguments: dict[str, Any], field: str
) -> None:
    own = {} if tool == "create_sandbox" else {"sandbox_id": way.sandbox}
    assert f"`{field}`" in await bouvet.refusal(way.client, tool, **own, **arguments)


async def test_what_is_not_there_is_told_from_what_is_of_the_wrong_kind(way: Way) -> None:
    for tool, path, word in [
        ("read_file", "nowhere", "No such file"),
        ("list_directory", "nowhere", "No such file"),
        ("read_file", "/etc", "is a directory"),
        ("list_directory", "/etc/passwd", "Not a directory"),
    ]:
        words = await way.refusal(tool, path=path)
        assert word in words and path in words and "list_directory" in words


async def test_an_unknown_tool_is_a_protocol_error(way: Way) -> None:
    with pytest.raises(Exception, match="tool not found") as caught:
        await way.client.call_tool("no_such_tool")
    assert caught.value.error.code == types.INVALID_PARAMS  # type: ignore[attr-defined]
