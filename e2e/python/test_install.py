"""`make install` and `make uninstall`, and the built executables without any variable."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bouvet
from bouvet import ROOT

NOBODY = 65534
RUN_SECONDS = 300
INSTALLED = {
    "usr/local/bin/bouvet": 0o755,
    "usr/local/bin/bouvet-mcp": 0o755,
    "usr/local/share/bash-completion/completions/bouvet": 0o644,
    "usr/local/share/fish/vendor_completions.d/bouvet.fish": 0o644,
    "usr/local/share/zsh/site-functions/_bouvet": 0o644,
    "var/lib/bouvet/debian-devbox.ext4": 0o644,
    "var/lib/bouvet/devbox-full.ext4": 0o644,
    "var/lib/bouvet/vmlinux": 0o644,
    "var/lib/bouvet/vmlinux.modules.cpio": 0o644,
}


class Tree:
    """A source tree in which everything was built: its Makefile, the executables and the images."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory / "images" / "output"
        self.release = directory / "target" / "release"
        for path in (self.output, self.release, directory / "scripts"):
            path.mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", directory)
        shutil.copy(ROOT / "scripts" / "install.sh", directory / "scripts")
        for name in ("bouvet", "bouvet-mcp"):
            # The executable finds its tree by its own path: a link would lead to ours.
            shutil.copy(bouvet.binary().with_name(name), self.release)

    def run(self, *command: str | Path, **how: object) -> subprocess.CompletedProcess[str]:
        """Runs it there, without any variable of ours."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory)}
        options = {"cwd": self.directory, "env": environment, "timeout": RUN_SECONDS, "umask": 0o022} | how
        return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("make", "--silent", *words)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """With files in place of the images: they are copied, not booted."""
    tree = Tree(tmp_path / "tree")
    for name in INSTALLED:
        if name.startswith("var/lib/bouvet/"):
            image = tree.output / Path(name).name
            image.write_text(f"as built: {image.name}")
            image.chmod(0o600)
    return tree


def files(directory: Path) -> dict[str, int]:
    """All files below it, with their modes."""
    found = [path for path in directory.rglob("*") if not path.is_dir()]
    return {str(path.relative_to(directory)): path.stat().st_mode & 0o7777 for path in found}


def test_installed_files_are_those_removed(tree: Tree, tmp_path: Path) -> None:
    package = tmp_path / "package"
    installed = tree.make("install", f"DESTDIR={package}")
    assert installed.returncode == 0, installed.stderr
    assert files(package) == INSTALLED
    images = package / "var/lib/bouvet"
    assert (images / "vmlinux").read_text() == "as built: vmlinux"
    assert "complete -F" in (package / "usr/local/share/bash-completion/completions/bouvet").read_text()

    # A later build without modules replaces the kernel: its predecessor's modules would not fit.
    (tree.output / "vmlinux").write_text("another")
    (tree.output / "vmlinux.modules.cpio").unlink()
    assert tree.make("install", f"DESTDIR={package}").returncode == 0
    assert (images / "vmlinux").read_text() == "another"
    assert files(package).keys() == INSTALLED.keys() - {"var/lib/bouvet/vmlinux.modules.cpio"}

    (images / "boxes").mkdir()
    (images / "boxes" / "kept").write_text("a persistent sandbox")
    removed = tree.make("uninstall", f"DESTDIR={package}")
    assert removed.returncode == 0, removed.stderr
    assert files(package).keys() == {"var/lib/bouvet/boxes/kept"}
    (images / "boxes" / "kept").unlink()
    (images / "boxes").rmdir()
    assert tree.make("uninstall", f"DESTDIR={package}").returncode == 0
    assert not images.exists(), "an empty directory of images is removed"


@pytest.mark.parametrize("missing", ["target/release/bouvet-mcp", "images/output/vmlinux"])
def test_incomplete_build_installs_nothing(tree: Tree, tmp_path: Path, missing: str) -> None:
    (tree.directory / missing).unlink()
    package = tmp_path / "package"
    installed = tree.make("install", f"DESTDIR={package}")
    assert installed.returncode != 0
    assert installed.stderr.startswith("error: "), installed.stderr
    assert f"{missing} is missing: run `make demo`" in installed.stderr
    assert not package.exists()


def test_prefix_without_permission_installs_nothing(tree: Tree, tmp_path: Path) -> None:
    # Not even root makes a directory in a file.
    (tmp_path / "file").touch()
    installed = tree.make("install", f"PREFIX={tmp_path / 'file'}")
    assert installed.returncode != 0
    assert installed.stderr.startswith("error: "), installed.stderr
    assert (tmp_path / "file").is_file()


@pytest.fixture
def users_tree(vm: None) -> Iterator[Tree]:
    """With the real images, and of a user other than root."""
    with tempfile.TemporaryDirectory(prefix="bouvet-tree-") as name:
        tree = Tree(Path(name) / "tree")
        kernel, rootfs = bouvet.images().values()
        for image in [kernel, Path(f"{kernel}.modules.cpio"), rootfs]:
            if image.exists():
                copied = tree.output / image.name
                subprocess.run(["cp", "--reflink=auto", "--sparse=always", image, copied], check=True)
                copied.chmod(0o644)
        if os.geteuid() == 0:
            os.chmod(name, 0o755)
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", tree.directory], check=True)
        yield tree


def test_executables_need_no_variables(users_tree: Tree) -> None:
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    line = ["run", "--rm", "base", "sh", "-c", "echo $((6 * 7))"]
    ran = users_tree.run("target/release/bouvet", *line, **user)
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran.stderr

    # Then as installed: the images of the tree are gone.
    prefix = users_tree.directory / ".local"
    installed = users_tree.run("make", "--silent", "install", f"PREFIX={prefix}", **user)
    assert installed.returncode == 0, installed.stderr
    shutil.rmtree(users_tree.output)
    ran = users_tree.run(prefix / "bin" / "bouvet", *line, **user)
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran.stderr
