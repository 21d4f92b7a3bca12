"""Files as plain bodies over HTTP: any size, without MCP."""

import json
import socket
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import pytest

import bouvet
from bouvet import MIB, Server

MB = 1_000_000


def where(sandbox: str, path: str, more: str = "") -> str:
    return f"/sandboxes/{sandbox}/file?path={quote(path)}{more}"


def put(server: Server, sandbox: str, path: str, content: bytes, more: str = "") -> tuple[int, object]:
    with server.connection() as connection:
        connection.request("PUT", where(sandbox, path, more), content)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def get(server: Server, sandbox: str, path: str, more: str = "") -> tuple[int, bytes]:
    with server.connection() as connection:
        connection.request("GET", where(sandbox, path, more))
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_files_are_plain_bodies(http_server: Server, http_sandbox: str) -> None:
    content = bytes(range(256)) * 1000
    path = "a dir/ünï & co.bin"
    assert put(http_server, http_sandbox, path, content) == (200, {"written_bytes": 256_000})
    assert get(http_server, http_sandbox, path) == (200, content)
    assert get(http_server, http_sandbox, path, "&offset=255999") == (200, b"\xff")
    assert get(http_server, http_sandbox, path, "&offset=300000") == (200, b"")
    assert put(http_server, http_sandbox, path, b"more", "&append=true") == (200, {"written_bytes": 4})
    assert get(http_server, http_sandbox, path, "&offset=255999") == (200, b"\xffmore")
    assert put(http_server, http_sandbox, "none", b"") == (200, {"written_bytes": 0})
    assert get(http_server, http_sandbox, "none") == (200, b"")
    status, kind, _ = http_server.get(where(http_sandbox, "none"))
    assert (status, kind) == (200, "application/octet-stream")


def test_a_large_file_takes_no_memory_of_the_server(http_server: Server, http_sandbox: str) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(100):
            yield bytes([number]) * MB

    before = http_server.peak_memory(anew=True)
    with http_server.connection() as connection:
        path = where(http_sandbox, "large")
        connection.request("PUT", path, parts(), {"Content-Length": str(100 * MB)})
        assert json.loads(connection.getresponse().read()) == {"written_bytes": 100 * MB}
    with http_server.connection() as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.headers["content-length"] == str(100 * MB)
        for part in parts():
            assert answer.read(MB) == part
    assert http_server.peak_memory() - before < 24 * MIB


def test_an_upload_that_is_cut_off_changes_nothing(http_server: Server, http_sandbox: str) -> None:
    assert put(http_server, http_sandbox, "cut/kept", b"as it was")[0] == 200
    with socket.create_connection(("127.0.0.1", http_server.port), timeout=10) as caller:
        head = f"PUT {where(http_sandbox, 'cut/kept')} HTTP/1.1\r\nHost: localhost\r\n"
        caller.sendall(f"{head}Content-Length: 9000000\r\n\r\n".encode() + b"x" * MB)

    def left() -> int:
        return len(http_server.call("list_directory", sandbox_id=http_sandbox, path="cut")["entries"])

    bouvet.until("nothing but the file is there", lambda: left() == 1, 20)
    assert get(http_server, http_sandbox, "cut/kept") == (200, b"as it was")


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "path=no-such-file", 404, "list_directory"),
        ("GET", "path=/tmp", 400, "is a directory"),
        ("GET", "path=/dev/zero", 400, "is not a regular file"),
        ("PUT", "path=/tmp", 400, "is a directory"),
        ("PUT", "path=/proc/none", 404, "/proc/none"),
        ("GET", "path=", 400, "path"),
        ("GET", "", 400, "path"),
        ("GET", "path=x&offset=-1", 400, "offset"),
        ("GET", "path=x&append=true", 400, "append"),
        ("PUT", "path=x&append=7", 400, "append"),
    ],
)
def test_errors_about_files_have_their_status(
    http_server: Server, http_sandbox: str, method: str, path: str, status: int, says: str
) -> None:
    target = f"/sandboxes/{http_sandbox}/file?{path}"
    got, kind, text = http_server.request(method, target, "content")
    assert (got, kind) == (status, "application/json"), text
    assert says in json.loads(text)["error"]


def test_a_sandbox_must_be_there(http_server: Server) -> None:
    for name in [str(uuid.uuid4()), "x", "..%2f"]:
        status, content = get(http_server, name, "file")
        assert status == 404 and b"create_sandbox" in content


def test_foreign_pages_may_not_write_files(http_server: Server, http_sandbox: str) -> None:
    for headers in [{"Origin": "http://evil.example"}, {"Host": "evil.example"}]:
        assert http_server.request("PUT", where(http_sandbox, "evil"), "x", headers)[0] == 403
    assert get(http_server, http_sandbox, "evil")[0] == 404
