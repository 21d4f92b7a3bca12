"""Contexts as a client sees them: variables that stay, values, tables and pictures."""

import base64
import struct
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

import bouvet
from conftest import Way

# The first import of a large library, where instructions are emulated.
PATIENTLY = {"timeout_ms": 300_000}


class Notebook:
    """A context, and what runs in it."""

    def __init__(self, way: Way, language: str, context: str) -> None:
        self.way = way
        self.arguments = {"language": language, "context_id": context}

    async def run(self, code: str, **options: Any) -> dict[str, Any]:
        return await self.way.call("execute_code", code=code, **(self.arguments | options))

    async def refusal(self, code: str, **options: Any) -> str:
        return await self.way.refusal("execute_code", code=code, **(self.arguments | options))


async def create(way: Way, language: str, **options: Any) -> Notebook:
    created = await way.call("create_context", language=language, **options)
    assert uuid.UUID(created["context_id"]) and created["created_at"]
    return Notebook(way, created["language"], created["context_id"])


async def destroy_all(way: Way) -> None:
    for one in (await way.call("list_contexts"))["contexts"]:
        assert await way.call("destroy_context", context_id=one["context_id"]) == {"success": True}


@pytest.fixture
async def python(way: Way) -> AsyncIterator[Notebook]:
    yield await create(way, "Python")
    await destroy_all(way)


async def test_variables_stay_and_values_come_back(way: Way, python: Notebook) -> None:
    node = await create(way, "javascript")
    outcome = await python.run("x = 41; print('set')")
    assert (outcome["exit_code"], outcome["stdout"]) == (0, "set\n")
    assert "results" not in outcome and "context_died" not in outcome
    outcome = await python.run("x += 1\n{'answer': [x, None]}")
    value = {"text/plain": "{'answer': [42, None]}", "application/json": {"answer": [42, None]}}
    assert outcome["results"] == [value]
    await node.run("const x = 42")
    outcome = await node.run("({ answer: [x, null] })")
    value = {"text/plain": "{ answer: [ 42, null ] }", "application/json": {"answer": [42, None]}}
    assert outcome["results"] == [value]
    listed = (await way.call("list_contexts"))["contexts"]
    assert [(one["language"], one["state"]) for one in listed] == [("python", "idle"), ("node", "idle")]


async def test_tables_and_pictures_are_shown(way: Way, python: Notebook) -> None:
    code = "import pandas\npandas.DataFrame({'fruit': ['fig'], 'n': [3]})"
    [table] = (await python.run(code, **PATIENTLY))["results"]
    assert table.keys() == {"text/plain", "text/html"}
    assert "fig" in table["text/plain"] and "<td>fig</td>" in table["text/html"]

    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.plot([2, 1]);"
    arguments = {"sandbox_id": way.sandbox, "code": code} | python.arguments | PATIENTLY
    outcome, images = await bouvet.shown(way.client, "execute_code", **arguments)
    assert [one["image/png"] for one in outcome["results"]] == [1, 2]
    assert len(images) == 2
    for image in images:
        png = base64.b64decode(image.data)
        assert image.mime_type == "image/png" and png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        assert width > 100 and height > 100


async def test_large_results_get_through(way: Way, python: Notebook) -> None:
    """Whatever is shown, the official client takes at most 1 MiB in one event."""
    code = """
import os, sys
for stream in (sys.stdout, sys.stderr): print('x' * 300_000, file=stream)
for _ in range(3): display({'image/png': os.urandom(150_000), 'text/html': 'x' * 60_000}, raw=True)
"""
    arguments = {"sandbox_id": way.sandbox, "code": code} | python.arguments
    outcome, images = await bouvet.shown(way.client, "execute_code", **arguments)
    assert outcome["truncated"] and len(outcome["results"]) == 3
    assert len(images) == 1 and outcome["results"][0]["image/png"] == 1
    assert outcome["results"][1]["left_out"] == {"image/png": 150_000}
    assert outcome["results"][2]["left_out"] == {"image/png": 150_000, "text/html": 60_000}
    for result in outcome["results"][1:]:
        for mime_type, path in result["files"].items():
            size = await python.run(f"import os; os.path.getsize({path!r})")
            assert size["results"][0]["application/json"] == result["left_out"][mime_type]


async def test_output_between_calls_comes_with_the_next(way: Way, python: Notebook) -> None:
    code = "import os, threading, time\ndef late():\n    while not os.path.exists('go'): time.sleep(0.01)\n    "
    code += "print('late'); open('gone', 'w')\nthreading.Thread(target=late).start()"
    outcome = await python.run(code)
    assert (outcome["stdout"], "earlier_output" in outcome) == ("", False)
    command = "touch go; until test -e gone; do sleep 0.01; done"
    await way.call("run_command", command=command)
    outcome = await python.run("print('now')")
    assert outcome["stdout"] == "late\nnow\n"
    assert outcome["earlier_output"] == {"stdout_bytes": 5, "stderr_bytes": 0}


async def test_a_context_outlives_errors_and_its_deadline(python: Notebook) -> None:
    await python.run("kept = 42")
    outcome = await python.run("1 / 0")
    assert outcome["exit_code"] == 1
    assert 'File "cell 2", line 1' in outcome["stderr"] and "ZeroDivisionError" in outcome["stderr"]
    outcome = await python.run("while True: pass", timeout_ms=3000)
    assert outcome["timed_out"] and "KeyboardInterrupt" in outcome["stderr"] and "context_died" not in outcome
    assert (await python.run("kept"))["results"][0]["text/plain"] == "42"


async def test_a_context_that_dies_says_so(way: Way, python: Notebook) -> None:
    outcome = await python.run("import os; os._exit(7)")
    assert outcome["exit_code"] == 7
    assert "exit code 7" in outcome["context_died"] and "create_context" in outcome["context_died"]
    words = await python.refusal("1")
    assert python.arguments["context_id"] in words and "exit code 7" in words and "create_context" in words
    [dead] = (await way.call("list_contexts"))["contexts"]
    assert dead["state"] == "dead" and "exit code 7" in dead["reason"]
    assert await way.call("destroy_context", context_id=dead["context_id"]) == {"success": True}
    assert (await way.call("list_contexts"))["contexts"] == []
    assert "there is no context" in await python.refusal("1")
    assert "there is no context" in await way.refusal("destroy_context", context_id=dead["context_id"])


async def test_what_does_not_fit_a_context_is_refused(way: Way, python: Notebook) -> None:
    assert "another language" in await python.refusal("1", language="node")
    assert "another language" in await python.refusal("1", language="bash")
    assert "`cwd`" in await python.refusal("1", cwd="/tmp")
    assert "`env`" in await python.refusal("1", env={"A": "b"})
    for wrong in [str(uuid.uuid4()), "not-an-id", "x" * 100_000]:
        words = await python.refusal("1", context_id=wrong)
        assert "there is no context" in words and wrong[:64] in words and "list_contexts" in words
        assert len(words) < 500
    assert "no contexts of the language `bash`" in await way.refusal("create_context", language="bash")
    assert "/no/where" in await way.refusal("create_context", language="python", cwd="/no/where")
    for _ in range(7):
        await create(way, "python")
    words = await way.refusal("create_context", language="python")
    assert "8 contexts" in words and "destroy_context" in words


async def test_a_context_has_a_directory_and_an_environment(way: Way) -> None:
    notebook = await create(way, "python", cwd="/tmp", env={"GREETING": "grüß dich"})
    outcome = await notebook.run("import os; print(os.getcwd(), os.environ['GREETING'], input())", stdin="in\n")
    assert outcome["stdout"] == "/tmp grüß dich in\n"
    await destroy_all(way)
