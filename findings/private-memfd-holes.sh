#!/bin/bash
# Guess: pages that a process writes through a MAP_PRIVATE mapping are its own, and a memfd that is sealed against
# writing (F_SEAL_WRITE, GROW, SHRINK) takes no more memory afterwards.
# Found: the first touch of a hole, even a read, allocates that page in the sealed file, for good; a write then copies it as
# well. The process's cgroup pays each page twice, and the seals that did not prevent it forbid to punch the page out again.
# Versions: Linux 6.18; any program that maps, here Python 3.11.
# Why it matters: VMs that share a frozen memory image by memfd grow it to its full size, and reach their memory limit early.
set -euo pipefail
uname -sr
python3 - <<'PYTHON'
import fcntl, mmap, os

SIZE, PAGE = 64 << 20, 4096
F_ADD_SEALS, SHRINK_GROW_WRITE = 1033, 2 | 4 | 8
FALLOC_KEEP_SIZE_PUNCH_HOLE = 1 | 2


def template():
    file = os.memfd_create("template", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, SIZE)
    os.pwrite(file, b"data", 0)
    fcntl.fcntl(file, F_ADD_SEALS, SHRINK_GROW_WRITE)
    return file


def held(file):
    return os.fstat(file).st_blocks * 512 >> 10


def own_kib():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0])


for what in ("read", "write"):
    file = template()
    before, own = held(file), own_kib()
    memory = mmap.mmap(file, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    for at in range(0, SIZE, PAGE):
        if what == "read":
            memory[at]
        else:
            memory[at] = 1
    after, own = held(file), own_kib() - own
    print(f"{what} every page: the sealed file holds {before} KiB, then {after} KiB; the process's own pages: +{own} KiB")
    assert before == 4 and after == SIZE >> 10, "the holes stay holes: this has changed"
    assert (own > SIZE >> 11) == (what == "write"), "the copies are not as they were"
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        offset, length = ctypes.c_int64(PAGE), ctypes.c_int64(SIZE - PAGE)
        failed = libc.fallocate(file, FALLOC_KEEP_SIZE_PUNCH_HOLE, offset, length)
        print("punching the pages out again:", os.strerror(ctypes.get_errno()) if failed else "possible")
        assert failed, "sealed files can be punched: this has changed"
    finally:
        memory.close()
        os.close(file)
PYTHON
# Seen:
#   read every page: the sealed file holds 4 KiB, then 65536 KiB; the process's own pages: +16 KiB
#   punching the pages out again: Operation not permitted
#   write every page: the sealed file holds 4 KiB, then 65536 KiB; the process's own pages: +65536 KiB
#   punching the pages out again: Operation not permitted
