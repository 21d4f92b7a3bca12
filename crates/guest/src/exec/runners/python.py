"""Runs Python programs as `python3 main.py` in the current directory would, wherever their files are.

    python3 python.py FILE      runs one
    python3 python.py --serve   runs one in a fork of itself for each request on standard input, so that none
                                waits for an interpreter to start

A request is one message: JSON with `file`, `cwd`, `env` and `groups`, and the descriptors of standard input, output and
errors, of a pipe for the answer and, if it has one, of its cgroup's `cgroup.procs`. The answer is the process id,
once the fork is in its cgroup, then, when it has ended, its wait status: a 32-bit integer each, in native order.
A fork that cannot answer is not wanted any more, and ends.
"""

import sys


def run(path):
    import linecache
    import types

    with open(path, "rb") as file:
        source = file.read()
    sys.argv = [path]
    sys.path[0] = ""
    # Tracebacks quote the program's lines from here, as they would from a file.
    text = source.decode("utf-8", "replace")
    linecache.cache["main.py"] = (len(text), None, text.splitlines(True), "main.py")
    main = types.ModuleType("__main__")
    main.__file__ = path
    sys.modules["__main__"] = main
    try:
        exec(compile(source, "main.py", "exec", dont_inherit=True), main.__dict__)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Without this function's own frame, which is none of the reader's business.
        error = error.with_traceback(error.__traceback__.tb_next)
        if sys.excepthook is sys.__excepthook__:
            # The interpreter's own would look for the lines in a file.
            import traceback

            traceback.print_exception(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


def serve():
    """Answers requests until standard input ends. Returns in each fork, with the file that it is to run."""
    import _socket
    import gc
    import os
    import signal

    fresh = set(sys.modules)
    preload()
    import json

    extra = sorted(set(sys.modules) - fresh)
    streams()
    site = site_files()
    installed = states(site)
    control = _socket.socket(fileno=os.dup(0))
    pipes = {}

    def reap(options):
        while pipes:
            pid, status = os.waitpid(-1, options)
            if not pid:
                return
            pipe = pipes.pop(pid)
            try:
                tell(pipe, status)
            except OSError:
                pass  # Nobody waits for it any more.
            os.close(pipe)

    def tell(pipe, number):
        os.write(pipe, number.to_bytes(4, sys.byteorder))

    signal.signal(signal.SIGCHLD, lambda *_: reap(os.WNOHANG))
    # What is here now is shared by all forks, and a look through it by each would copy it.
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        data, descriptors, _, _ = control.recvmsg(256 * 1024, _socket.CMSG_LEN(5 * 4))
        if not data:
            # No more requests; the forks that run are waited for all the same.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            reap(0)
            os._exit(0)
        [(_, _, numbers)] = descriptors
        fds = [int.from_bytes(numbers[i : i + 4], sys.byteorder) for i in range(0, len(numbers), 4)]
        *stdio, pipe = fds[:4]
        cgroup = fds[4:]
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        try:
            pid = os.fork()
        except OSError:
            pid = None  # The end of the pipe says so.
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            for fd in [control.detach(), *pipes.values()]:
                os.close(fd)
            enter(cgroup)
            try:
                tell(pipe, os.getpid())
            except OSError:
                os._exit(1)
            os.close(pipe)
            request = json.loads(data)
            become(request, stdio)
            if states(site) != installed or is_special(request["env"]):
                os.execve(sys.executable, ["python3", __file__, request["file"]], request["env"])
            forget(extra)
            return request["file"]
        for fd in [*stdio, *cgroup]:
            os.close(fd)
        if pid is None:
            os.close(pipe)
        else:
            pipes[pid] = pipe
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def preload():
    """Imports what many programs do. None of it starts threads, opens files or draws random numbers that it keeps,
    but for `random`, which each fork seeds itself."""
    import collections, contextlib, copy, csv, dataclasses, datetime, functools, io, itertools, json  # noqa: E401
    import linecache, math, operator, pathlib, random, re, shutil, statistics, string, subprocess  # noqa: E401
    import tempfile, textwrap, time, traceback, typing, urllib.parse  # noqa: E401


def enter(cgroup):
    """From here on this process is limited, and killed, with its program."""
    import os

    if cgroup:
        os.write(cgroup[0], b"0")
        os.close(cgroup[0])
        with open("/proc/self/oom_score_adj", "w") as own:
            own.write("0")
    os.setpgid(0, 0)


def become(request, stdio):
    """Makes this process what the service would have started."""
    import os

    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
        os.close(fd)
    if request["groups"]:
        os.setgroups(request["groups"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])


def streams():
    """Makes the standard streams as the interpreter would for a pipe, in UTF-8 and unbuffered (`create_stdio` in
    Python/pylifecycle.c). They know their descriptors by number, so forks need no others."""
    import io

    def stream(fd, name, mode, errors):
        raw = io.FileIO(fd, mode, closefd=False)
        raw.name = name
        buffer, newline, through = (io.BufferedReader(raw), None, False) if mode == "r" else (raw, "\n", True)
        text = io.TextIOWrapper(buffer, "utf-8", errors, newline, False, through)
        text.mode = mode
        return text

    sys.stdin = sys.__stdin__ = stream(0, "<stdin>", "r", "surrogateescape")
    sys.stdout = sys.__stdout__ = stream(1, "<stdout>", "w", "surrogateescape")
    sys.stderr = sys.__stderr__ = stream(2, "<stderr>", "w", "backslashreplace")


def is_special(env):
    """Whether `env` has what the interpreter looks at only as it starts."""
    ours = {"PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
    names = ("PYTHON", "LC_", "LANG", "MALLOC_", "LD_", "TZ")
    return any(name.startswith(names) and env[name] != ours.get(name) for name in env)


def site_files():
    """The directories of packages, and files in them that add to the interpreter's path as it starts."""
    import os
    import site

    directories = [*site.getsitepackages(), site.getusersitepackages()]
    found = directories.copy()
    for directory in directories:
        try:
            found += [entry.path for entry in os.scandir(directory) if entry.name.endswith(".pth")]
        except OSError:
            continue
    return found


def states(paths):
    """What changes when something is installed: a directory is written when a file in it comes or goes."""
    import os

    found = []
    for path in paths:
        try:
            found.append(os.stat(path).st_mtime_ns)
        except OSError:
            found.append(None)
    return found


def forget(modules):
    """Leaves to programs the names of modules that they have files for, and the rest ready."""
    import os
    import random

    own = {entry.name.removesuffix(".py") for entry in os.scandir(".")}
    for name in modules:
        if name.split(".")[0] in own:
            del sys.modules[name]
    random.seed()


def finalise(main):
    """Drops what a program's variables hold, files and others with a `__del__` first: while what that may refer to is
    there still. A collection alone would close a file before the buffer that is to be written to it."""
    import types

    lasting = (types.ModuleType, types.FunctionType, type, str, int)
    for is_next in [lambda value: hasattr(type(value), "__del__"), lambda value: not isinstance(value, lasting)]:
        for name in [name for name, value in main.items() if is_next(value)]:
            main.pop(name, None)  # A finaliser may have been faster.


def end(code):
    """Ends this process as the interpreter would, but without taking the interpreter itself apart: that would touch,
    and thus copy, all the memory that forks share."""
    import atexit
    import gc
    import os

    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    finalise(getattr(sys.modules.pop("__main__", None), "__dict__", {}))
    gc.collect()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        code = code or 120
    os._exit(code)


def exit_code(error):
    """What `sys.exit` was called with, as the interpreter takes it (`handle_system_exit` in Python/pythonrun.c)."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


if sys.argv[1] == "--serve":
    try:
        run(serve())
        code = 0
    except SystemExit as error:
        code = exit_code(error)
    end(code)
else:
    run(sys.argv[1])
