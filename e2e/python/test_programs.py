"""What programs in a sandbox are given, and what becomes of the sandbox whatever they do."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import Client

import bouvet
from bouvet import MIB, Server


@pytest.fixture
async def client(http_server: Server) -> AsyncIterator[Client]:
    async with bouvet.over_http(http_server, "auto") as client:
        yield client


@pytest.fixture
def run(client: Client, http_sandbox: str) -> Any:
    """Runs a command in the shared sandbox."""

    async def run(command: str, **options: Any) -> dict[str, Any]:
        return await bouvet.call(client, "run_command", sandbox_id=http_sandbox, command=command, **options)

    return run


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["python", "Python", "PYTHON"], "print(40 + 2)"),
        (["node", "JavaScript", "javascript"], "console.log(40 + 2)"),
        (["bash", "shell", "sh", "SH"], "echo $((40 + 2))"),
    ],
)
async def test_languages_go_by_all_their_names(
    client: Client, http_sandbox: str, names: list[str], code: str
) -> None:
    for name in names:
        outcome = await bouvet.call(client, "execute_code", sandbox_id=http_sandbox, language=name, code=code)
        assert (outcome["exit_code"], outcome["stdout"]) == (0, "42\n"), name


async def test_working_directory_of_create_sandbox_is_everybodys(client: Client) -> None:
    sandbox = (await bouvet.call(client, "create_sandbox", working_dir="/srv/app"))["sandbox_id"]
    await bouvet.call(client, "write_file", sandbox_id=sandbox, path="note", content="here")
    outcome = await bouvet.call(client, "run_command", sandbox_id=sandbox, command="pwd; cat note")
    assert outcome["stdout"] == "/srv/app\nhere"
    code = "import os; print(os.getcwd(), open('note').read())"
    outcome = await bouvet.call(client, "execute_code", sandbox_id=sandbox, language="python", code=code)
    assert outcome["stdout"] == "/srv/app here\n"
    context = await bouvet.call(client, "create_context", sandbox_id=sandbox, language="python")
    identity = {"sandbox_id": sandbox, "language": "python", "context_id": context["context_id"]}
    outcome = await bouvet.call(client, "execute_code", **identity, code=code)
    assert outcome["stdout"] == "/srv/app here\n"
    await bouvet.call(client, "destroy_sandbox", sandbox_id=sandbox)


async def test_a_rust_program_that_does_not_compile_says_why(client: Client, http_sandbox: str) -> None:
    outcome = await bouvet.call(
        client, "execute_code", sandbox_id=http_sandbox, language="RUST", code="fn main() { no_such() }"
    )
    assert outcome["exit_code"] == 1
    assert "cannot find function `no_such`" in outcome["stderr"]


async def test_programs_get_their_environment_directory_and_input(run: Any) -> None:
    command = 'echo "$GREETING" && pwd && cat && echo "$HOME $USER" && id -u'
    outcome = await run(command, env={"GREETING": "grüß dich"}, cwd="/tmp", stdin="line 1\nline 2\n")
    assert outcome["stdout"] == "grüß dich\n/tmp\nline 1\nline 2\n/root root\n0\n"


async def test_a_program_without_input_reads_its_end(run: Any) -> None:
    assert (await run("wc -c"))["stdout"] == "0\n"


async def test_a_directory_that_is_not_there_is_refused(client: Client, http_sandbox: str) -> None:
    words = await bouvet.refusal(
        client, "run_command", sandbox_id=http_sandbox, command="true", cwd="/no/where"
    )
    assert "/no/where" in words and "list_directory" in words


async def test_background_processes_live_on(run: Any) -> None:
    await run("sleep 86403 & disown")
    assert (await run("pkill -f '[s]leep 86403'"))["exit_code"] == 0


async def test_long_output_keeps_its_head_and_its_tail(client: Client, run: Any) -> None:
    [tool] = [tool for tool in (await client.list_tools()).tools if tool.name == "run_command"]
    assert tool.output_schema
    promise = tool.output_schema["properties"]["stdout"]["description"]
    [kept] = re.findall(r"at most the first and the last (\d+) KiB", promise)
    outcome = await run("echo begun; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo ended")
    stdout = outcome["stdout"]
    assert outcome["truncated"] and outcome["exit_code"] == 0
    assert stdout.startswith("begun\nxxx") and stdout.endswith("xxx\nended\n")
    left_out = len("begun\n") + 3_000_000 + len("\nended\n") - 2 * int(kept) * 1024
    assert f"{left_out} bytes left out" in stdout
    assert len(stdout) < 2 * int(kept) * 1024 + 100


async def test_long_output_gets_through_with_progress(client: Client, http_sandbox: str) -> None:
    """With progress an answer is a stream of events, and the official client takes at most 1 MiB in one."""

    async def ignore(_value: float, _total: float | None, _message: str | None) -> None:
        pass

    outcome = await bouvet.call(
        client,
        "run_command",
        ignore,
        sandbox_id=http_sandbox,
        command="sleep 0.3; head -c 3000000 /dev/zero | tr '\\0' x | tee /dev/stderr",
    )
    assert outcome["truncated"] and outcome["stdout"].startswith("xxx") and outcome["stderr"].endswith("xxx")


@pytest.mark.parametrize(
    ("tool", "arguments", "field", "limit"),
    [
        ("execute_code", {"language": "bash"}, "code", 10 * MIB),
        ("run_command", {}, "command", MIB),
        ("run_command", {"command": "wc -c"}, "stdin", 10 * MIB),
    ],
)
async def test_inputs_work_at_their_limits(
    client: Client, http_sandbox: str, tool: str, arguments: dict[str, Any], field: str, limit: int
) -> None:
    text = "echo 42\n#"
    text += "x" * (limit - len(text))
    outcome = await bouvet.call(client, tool, sandbox_id=http_sandbox, **arguments, **{field: text})
    assert outcome["stdout"] == (f"{limit}\n" if field == "stdin" else "42\n")


async def test_content_works_at_its_limit(client: Client, http_sandbox: str, run: Any) -> None:
    content = "0123456789abcdef" * (10 * MIB // 16)
    arguments = {"sandbox_id": http_sandbox, "path": "at-the-limit"}
    await bouvet.call(client, "write_file", **arguments, content=content)
    read = await bouvet.call(client, "read_file", **arguments, limit_bytes=10 * MIB)
    assert read["content"] == content and "next_offset" not in read
    await run("rm at-the-limit")


async def test_a_dead_sandbox_says_so_until_it_is_destroyed(client: Client) -> None:
    sandbox = (await bouvet.call(client, "create_sandbox"))["sandbox_id"]
    # A command's parent is the service that everything goes through.
    for command in ["kill -9 $PPID; sleep 60", "true"]:
        words = await bouvet.refusal(client, "run_command", sandbox_id=sandbox, command=command)
        assert "failed" in words and "create_sandbox" in words and "destroy_sandbox" in words
    assert "failed" in await bouvet.refusal(client, "read_file", sandbox_id=sandbox, path="a")
    listed = (await bouvet.call(client, "list_sandboxes"))["sandboxes"]
    [dead] = [one for one in listed if one["sandbox_id"] == sandbox]
    assert dead["state"] == "failed" and dead["reason"]
    await bouvet.call(client, "destroy_sandbox", sandbox_id=sandbox)
    words = await bouvet.refusal(client, "run_command", sandbox_id=sandbox, command="true")
    assert "there is no sandbox" in words


async def test_there_is_a_most_of_sandboxes(server: Server) -> None:
    server.environment["BOUVET_MAX_SANDBOXES"] = "1"
    server.start().healthy()
    async with bouvet.over_http(server, "auto") as client:
        await bouvet.call(client, "create_sandbox")
        words = await bouvet.refusal(client, "create_sandbox")
        assert "limit" in words and "destroy_sandbox" in words
    server.stop()


async def test_a_sandbox_ends_when_its_time_is_over(server: Server) -> None:
    server.environment["BOUVET_SANDBOX_TIMEOUT_SECS"] = "15"
    server.start().healthy()
    async with bouvet.over_http(server, "auto") as client:
        created = await bouvet.call(client, "create_sandbox")
        assert created["expires_at"]
        sandbox = created["sandbox_id"]
        command = {"sandbox_id": sandbox, "command": "sleep 60"}
        words = await bouvet.refusal(client, "run_command", **command)
        assert "create_sandbox" in words
        bouvet.until("its VM was gone", lambda: not server.vms())
    server.stop()
