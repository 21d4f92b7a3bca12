#!/bin/bash
# Guess: an MCP server answers each request that is valid JSON, at least with an error of JSON-RPC.
# Found: the official Python server, over stdio, never answers a request with half of a surrogate pair (`"\ud83d"`), which
# the grammar of RFC 8259 allows and `JSON.stringify` of JavaScript writes for a text cut within an emoji. Its client
# waits until its time-out; later requests are served. rmcp 3.9.0 (Rust) does the same by design (its issue 938).
# Versions: mcp 2.3.0, Python 3.11. Why it matters: agents cut texts by UTF-16 units, and a tool call then seems to
# hang in the sandbox. A server needs a transport that answers such lines.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check mcp==2.3.0
cat > "$dir/server.py" <<'PYTHON'
from mcp.server import MCPServer

server = MCPServer("echo")


@server.tool()
def echo(text: str) -> str:
    return text


server.run("stdio")
PYTHON
cat > "$dir/client.py" <<'PYTHON'
import importlib.metadata, json, select, subprocess, sys

server = subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def say(line):
    server.stdin.write(line.encode() + b"\n")
    server.stdin.flush()


def hear(seconds):
    ready, _, _ = select.select([server.stdout], [], [], seconds)
    return json.loads(server.stdout.readline()).get("id") if ready else None


HELLO = '"params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}'
CALL = '{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"text":"%s"}}}'
say('{"jsonrpc":"2.0","id":1,"method":"initialize",%s}' % HELLO)
assert hear(60) == 1
say('{"jsonrpc":"2.0","method":"notifications/initialized"}')
answered = {}
for number, text, seconds in [(2, "whole", 60), (3, "cut \\ud83d", 10), (4, "after", 60)]:
    say(CALL % (number, text))
    answered[number] = hear(seconds)
server.stdin.close()
server.wait(60)
print("mcp", importlib.metadata.version("mcp"), "answers by request:", answered)
sys.exit(answered != {2: 2, 3: None, 4: 4})
PYTHON
"$dir/venv/bin/python" "$dir/client.py" "$dir/server.py"
# Seen: mcp 2.3.0 answers by request: {2: 2, 3: None, 4: 4}
