"""Data of version 0.1.0: directories that its build has written are read by this one, and nothing in them is lost."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import bouvet
from bouvet import ROOT, Server
from test_cli import Cli

# The last commit whose data is of version 0.1.0.
COMMIT = "5f37129c6dbd1f565111549111100c12485517d2"
BUILD_SECONDS = 1800
UPGRADE = ROOT / "target" / "upgrade"
TOOLS = {"PATH": f"{os.environ.get('PATH', os.defpath)}:{Path.home()}/.cargo/bin"}


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    # The tests run as root, in a clone that may be of another user.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True)


def lacking_history() -> str | None:
    """The reason why version 0.1.0 cannot be built; `None` if it can."""
    if not shutil.which("git"):
        return "there is no git: `apt-get install git`"
    if git("cat-file", "-e", f"{COMMIT}^{{commit}}").returncode != 0:
        return f"this clone has no commit {COMMIT[:7]}, whose build writes data of version 0.1.0"
    return None


@pytest.fixture(scope="module")
def old_binary(vm: None) -> Path:
    """`bouvet` as it was, built once. Skipped in a clone without history; where REQUIRE_HISTORY is set, that is a failure."""
    if lacking := lacking_history():
        if os.environ.get("REQUIRE_HISTORY", "0") != "0":
            pytest.fail(f"REQUIRE_HISTORY is set, but {lacking}")
        pytest.skip(lacking)
    source = UPGRADE / "source"
    if not source.exists():
        new = UPGRADE / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        archive = git("archive", COMMIT)
        assert archive.returncode == 0, archive.stderr.decode()
        subprocess.run(["tar", "-x", "-C", str(new)], input=archive.stdout, check=True)
        # Under their own version its crates could be taken for those of this tree, which are built beside them.
        manifest = new / "Cargo.toml"
        text = manifest.read_text()
        assert text.count('\nversion = "0.1.0"\n') == 1
        manifest.write_text(text.replace('\nversion = "0.1.0"\n', '\nversion = "0.1.0-old"\n'))
        new.rename(source)
    # Dependencies are shared with the builds of this tree; what is built goes to a directory of its own.
    shared = f"build.build-dir='{ROOT / 'target'}'"
    command = ["cargo", "build", "--quiet", "-p", "bouvet", "--config", shared, "--target-dir", UPGRADE / "target"]
    subprocess.run(command, cwd=source, env=os.environ | TOOLS, check=True, timeout=BUILD_SECONDS)
    return UPGRADE / "target" / "debug" / "bouvet"


def states(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Attributes that any write changes, of every file that is not empty. Reading their holes would take minutes."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > 0]
    found = {str(path.relative_to(directory)): path.stat() for path in files}
    return {name: (stat.st_size, stat.st_blocks, stat.st_mtime_ns) for name, stat in found.items()}


def commands(server: Server, binary: Path) -> Cli:
    cli = Cli(server.environment, server.directory.parent)
    cli.binary = binary
    return cli


WRITE = """
echo text >/srv/ordinary
printf 'secret' >/srv/secret && chown 1000:1001 /srv/secret && chmod 640 /srv/secret
ln -s ordinary /srv/link && mkdir '/srv/a name' && echo inside >'/srv/a name/ü'
rm /usr/bin/git && echo changed >/etc/motd
echo written
"""
READ = """
cat /srv/ordinary /srv/link '/srv/a name/ü' /etc/motd
stat -c '%u:%g %a %s' /srv/secret
test ! -e /usr/bin/git && echo "$KEPT $(uname -n)"
"""
WRITTEN = "text\ntext\ninside\nchanged\n1000:1001 640 6\nvalue db"


def test_data_of_the_first_version_is_kept(old_binary: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    own = {"BOUVET_SOCKET": str(tmp_path / "run" / "bouvet.sock"), "BOUVET_TEMPLATES": str(templates)}
    script = f"if test -e /srv/ordinary; then {READ} else {WRITE} fi"
    bouvet.archive(tmp_path / "tiny.tar", "test -e /kept && read -r line </kept && echo $line; echo kept >/kept")

    with Server(tmp_path, **own) as server:
        server.binary, server.arguments = old_binary, ["serve"]
        server.start().healthy()
        old = commands(server, old_binary)
        identity = old.ok("pull", "docker-archive:tiny.tar")
        assert old.ok("network", "create", "--subnet", "10.9.8.0/24", "shop") == "shop"
        db = ["--persistent", "--name", "db", "-e", "KEPT=value", "--network", "shop", "-m", "300m"]
        assert old.ok("run", *db, "base", "sh", "-c", script) == "written"
        short = old.ok("images", "-q")
        old.ok("run", "--persistent", "--name", "tiny", short)
        assert old.ok("run", "--rm", "base", "echo", "a clone") == "a clone"
        before = old.sandboxes()
        networks = json.loads(old.ok("network", "ls", "--json"))
        images = json.loads(old.ok("images", "--json"))
        server.stop()
    kept = states(templates)
    assert any(path.endswith("/memory") for path in kept), "it made a template"
    (tmp_path / "tiny.tar").unlink()

    with Server(tmp_path, **own) as server:
        server.start().healthy()
        new = Cli(server.environment, tmp_path)
        after = new.sandboxes()
        assert after.keys() == before.keys() == {"db", "tiny"}
        for name, sandbox in before.items():
            for field in ("id", "state", "exit_code", "memory_mb", "image"):
                assert after[name].get(field) == sandbox.get(field), (name, field)
        assert new.ok("start", "-a", "db") == WRITTEN
        assert new.ok("start", "-a", "tiny") == "kept"
        [image] = [image for image in json.loads(new.ok("images", "--json")) if image["id"] == identity]
        assert image["references"] == images[0]["references"]
        assert new.ok("run", "--rm", "--pull", "never", short) == ""
        [network] = json.loads(new.ok("network", "ls", "--json"))
        assert (network["name"], network["ipv4"]) == ("shop", "10.9.8.0/24") == (networks[0]["name"], networks[0]["ipv4"])
        assert new.ok("run", "--rm", "base", "echo", "a clone") == "a clone"
        new.ok("rm", "db", "tiny")
        new.ok("network", "rm", "shop")
        server.stop()
    now = states(templates)
    assert {path: now.get(path) for path in kept} == kept, "templates of the old version are as they were"
