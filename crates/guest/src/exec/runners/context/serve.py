"""Runs cells as they are requested."""

import builtins
import itertools
import os
import signal
import sys
import types

from bouvet_context import cells, errors, hooks, loop
from bouvet_context.control import control
from bouvet_context.show import display, results

read_line = builtins.input


def start():
    """Prepares this process, says that requests are taken, and serves them to its end."""
    # Libraries take the file of the outermost frame for the program's.
    errors.outermost().f_globals.pop("__file__", None)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = [""]
    os.environ.setdefault("MPLBACKEND", "Agg")
    builtins.display, builtins.input = display, read_input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hooks.install()
    cells.begin(main)
    outputs = [(number, os.dup(number)) for number in (1, 2)]
    become(os.open(os.devnull, os.O_RDWR), [])
    control.send({"done": 0})
    for number in itertools.count(1):
        control.send({"done": serve(number, outputs)})


def serve(number, outputs):
    """Runs the next cell. Returns what would be its exit code."""
    loop.wait(control.socket.fileno())
    request, stdin = control.receive()
    become(stdin, outputs)
    with open(request["cell"], "rb") as file:
        source = file.read().decode("utf-8", "replace")
    results.begin(number, request["room"])
    code = cells.run(source, number)
    control.is_running = False
    flush()
    if not control.is_ours():
        os._exit(code)  # A fork that the cell made: there is one context, and it is not this.
    # The run's own input ends with it.
    become(os.open(os.devnull, os.O_RDWR), [])
    return code


def become(stdin, outputs):
    """Takes `stdin` for standard input, and `outputs` for what a cell may have closed; child processes find them
    there too."""
    os.dup2(stdin, 0)
    os.close(stdin)
    for number, fd in outputs:
        os.dup2(fd, number)
    # Unread input of an earlier run is dropped.
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)


def read_input(prompt="", /):
    """The builtin `input`, which says where a line could come from."""
    try:
        return read_line(prompt)
    except EOFError:
        raise EOFError("there is no line left to read: what a cell reads is sent with it, as `stdin`") from None


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # A cell may put anything there, and what it loses is its own.
