"""Takes a kernel and some of its modules out of an unpacked Debian kernel package.

    kernel_unpack.py <package tree> <output directory> <module>...

Writes `vmlinux`, the kernel in the form a VMM loads directly (x86: ELF; arm64: `Image`), and
`vmlinux.modules.cpio`, an initramfs part with the modules, those they need, and `modules/modules.dep`.
"""

import gzip
import lzma
import struct
import subprocess
import sys
from pathlib import Path

ELF_MAGIC = b"\x7fELF"
ARM64_MAGIC = b"ARM\x64"  # at 56 of an arm64 Image
ARM64_ZBOOT_MAGIC = b"zimg"  # at 4 of a self-decompressing arm64 EFI image
X86_BOOT_MAGIC = b"HdrS"  # at 0x202 of a bzImage


class UnpackError(Exception):
    """Says what could not be unpacked, and what to do about it when something can be."""


def through_tool(command: list[str], package: str, data: bytes) -> bytes:
    try:
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
    except FileNotFoundError:
        raise UnpackError(f"`{command[0]}` not found; run: apt-get install {package}") from None
    except subprocess.CalledProcessError as error:
        raise UnpackError(f"`{' '.join(command)}` failed with status {error.returncode}") from None


def decompress(data: bytes) -> bytes:
    """Undoes whichever compression `data` begins with; other data is returned as it is."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return through_tool(["zstd", "-dcq"], "zstd", data)
    if data.startswith((b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18")):
        return through_tool(["lz4", "-dcq"], "lz4", data)
    return data


def x86_kernel(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage, found by its boot header (Documentation/arch/x86/boot.rst)."""
    sectors_of_setup = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(sectors_of_setup + 1) * 512 + offset :][:length]
    if not payload.startswith(b"\x1f\x8b"):
        # Every format but gzip, which has it within, is followed by the unpacked size.
        payload = payload[:-4]
    kernel = decompress(payload)
    if not kernel.startswith(ELF_MAGIC):
        raise UnpackError(f"the kernel's payload is compressed in an unknown way (it begins {payload[:6].hex()})")
    return kernel


def arm64_kernel(image: bytes) -> bytes:
    """The plain `Image`, which may be compressed whole or wrapped for EFI."""
    if image[4:8] == ARM64_ZBOOT_MAGIC:
        offset, length = struct.unpack_from("<II", image, 8)
        image = image[offset : offset + length]
    kernel = decompress(image)
    if kernel[56:60] != ARM64_MAGIC:
        raise UnpackError("the arm64 kernel is in an unknown format")
    return kernel


def kernel_from(tree: Path) -> bytes:
    found = list(tree.glob("boot/vmlinuz-*"))
    if len(found) != 1:
        raise UnpackError(f"expected one boot/vmlinuz-* in the package, found {len(found)}")
    image = found[0].read_bytes()
    return x86_kernel(image) if image[0x202:0x206] == X86_BOOT_MAGIC else arm64_kernel(image)


def plain_name(name: str) -> str:
    """A module's name as the kernel compares them: no suffix, `_` and `-` the same."""
    return name.split(".ko")[0].replace("-", "_")


def file_name(path: Path) -> str:
    """`erofs.ko` for `erofs.ko.xz`."""
    return path.name.split(".ko")[0] + ".ko"


def needs(module: bytes) -> list[str]:
    """What a module's own `depends=` says; the entries of .modinfo are NUL-terminated."""
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    start += len(b"\0depends=")
    names = module[start : module.index(b"\0", start)].decode()
    return [plain_name(name) for name in names.split(",") if name]


def collect(tree: Path, wanted: list[str]) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """Contents and direct needs, both by file name, of the wanted modules and of all they need."""
    roots = [*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")]
    if len(roots) != 1:
        raise UnpackError(f"expected one lib/modules/* in the package, found {len(roots)}")
    files = {plain_name(path.name): path for path in roots[0].rglob("*.ko*")}
    built_in = {plain_name(Path(line).name) for line in (roots[0] / "modules.builtin").read_text().split()}

    contents: dict[str, bytes] = {}
    direct: dict[str, list[str]] = {}
    queue = [plain_name(name) for name in wanted]
    while queue:
        name = queue.pop(0)
        if name in built_in:
            continue
        if name not in files:
            raise UnpackError(f"module `{name}` is neither in the package nor built in")
        file = file_name(files[name])
        if file in contents:
            continue
        contents[file] = decompress(files[name].read_bytes())
        if not contents[file].startswith(ELF_MAGIC):
            raise UnpackError(f"module `{files[name].name}` is in an unknown format")
        names = [need for need in needs(contents[file]) if need not in built_in]
        direct[file] = [file_name(files[need]) for need in names if need in files]
        queue += names
    return contents, direct


def all_needs(name: str, direct: dict[str, list[str]]) -> list[str]:
    """Everything `name` needs, each before what it needs in turn: to be loaded from right to left."""
    ordered: list[str] = []

    def visit(current: str) -> None:
        for need in direct[current]:
            visit(need)
            if need not in ordered:
                ordered.append(need)

    visit(name)
    return ordered[::-1]


def dependency_table(direct: dict[str, list[str]]) -> str:
    """The same meaning as depmod's modules.dep."""
    return "".join(f"{name}:{''.join(' ' + need for need in all_needs(name, direct))}\n" for name in sorted(direct))


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A newc archive of (path, mode, content); same entries, same bytes."""
    archive = bytearray()

    def pad() -> None:
        archive.extend(bytes(-len(archive) % 4))

    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        name = path.encode() + b"\0"
        links = 2 if mode & 0o170000 == 0o040000 else 1
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        fields = [number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0]
        archive.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        pad()
        archive.extend(content)
        pad()
    # The kernel wants whatever archive follows to begin at a multiple of 4; cpio pads to a block.
    archive.extend(bytes(-len(archive) % 512))
    return bytes(archive)


def main() -> None:
    tree, output, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    (output / "vmlinux").write_bytes(kernel_from(tree))
    contents, direct = collect(tree, wanted)
    entries = [("modules", 0o040755, b""), ("modules/modules.dep", 0o100644, dependency_table(direct).encode())]
    entries += [(f"modules/{name}", 0o100644, contents[name]) for name in sorted(contents)]
    (output / "vmlinux.modules.cpio").write_bytes(cpio(entries))
    print(f"kernel_unpack.py: {len(contents)} modules: {' '.join(sorted(contents))}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except UnpackError as error:
        sys.exit(f"kernel_unpack.py: {error}")
