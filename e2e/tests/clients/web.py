"""What the clients are served: an index of Python packages, a registry of Node.js packages, and a git repository.

    web.py <directory to make them in> <address> <file with a certificate and its key>

Prints a line when it serves: HTTP on port 80 and HTTPS on port 443.
"""

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import pathlib
import ssl
import subprocess
import sys
import tarfile
import threading
import zipfile

NAME, VERSION, WORDS = "hello-bouvet", "1.0.0", "hello from a package"


def python_package(root):
    """A wheel, below a page for it as PEP 503 has it."""
    info = "hello_bouvet-1.0.0.dist-info"
    files = {
        "hello_bouvet.py": f"WORDS = {WORDS!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    page = root / "simple" / NAME
    page.mkdir(parents=True)
    wheel = page / "hello_bouvet-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (page / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')


def node_package(root):
    """A package, and what a registry says of it."""
    files = {
        "package/package.json": json.dumps({"name": NAME, "version": VERSION, "main": "main.js"}),
        "package/main.js": f"module.exports = {json.dumps(WORDS)}\n",
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    (root / "files").mkdir()
    (root / "files/hello.tgz").write_bytes(archive.getvalue())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    dist = {"tarball": "https://npm.example.com/files/hello.tgz", "integrity": integrity}
    version = {"name": NAME, "version": VERSION, "dist": dist}
    about = {"name": NAME, "dist-tags": {"latest": VERSION}, "versions": {VERSION: version}}
    (root / NAME).write_text(json.dumps(about))


def repository(root):
    """A repository with some hundred kilobytes that do not compress, served by git itself, as a CGI program."""
    made, served = root / "made", root / "repositories"
    git = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    run = functools.partial(subprocess.run, check=True)
    run([*git, "init", "--quiet", made])
    (made / "README").write_text("hello from a repository\n")
    (made / "noise").write_bytes(os.urandom(300_000))
    run([*git, "-C", made, "add", "."])
    run([*git, "-C", made, "commit", "--quiet", "--message", "Say hello"])
    run([*git, "clone", "--quiet", "--bare", made, served / "hello.git"])
    # It runs as nobody, who has no home and owns no repository.
    script = f"""#!/bin/sh
export HOME=/nonexistent GIT_PROJECT_ROOT={served} GIT_HTTP_EXPORT_ALL=1
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
exec git http-backend
"""
    (root / "cgi-bin").mkdir()
    (root / "cgi-bin/git").write_text(script)
    (root / "cgi-bin/git").chmod(0o755)


def main(root, address, certificate):
    root = pathlib.Path(root)
    root.chmod(0o755)
    for make in (python_package, node_package, repository):
        make(root)
    handler = functools.partial(http.server.CGIHTTPRequestHandler, directory=str(root))
    plain, tls = (http.server.ThreadingHTTPServer((address, port), handler) for port in (80, 443))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tls.socket = context.wrap_socket(tls.socket, server_side=True)
    threading.Thread(target=tls.serve_forever, daemon=True).start()
    print("serving", flush=True)
    plain.serve_forever()


main(*sys.argv[1:])
