"""A Python context: runs the cells that it is handed, one after the other, with the same variables.

Standard input is its control socket, a stream. A request is a line of JSON whose `cell` is a file, and comes with the
descriptors of standard input, output and errors for this run. What goes back begins with a line of JSON:

    {"result": [[TYPE, BYTES], ...]}   a value that the cell shows; the bytes of each of its forms follow
    {"done": CODE}                     the cell has ended, with what would be its exit code

The first `done` says that requests are taken.
"""

import _socket
import ast
import base64
import importlib.util
import inspect
import io
import itertools
import json
import linecache
import os
import signal
import sys
import threading
import tokenize
import traceback
import types

REPRS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
}


class Control:
    """The socket. Messages go out whole, from whichever thread, and whatever interrupts it."""

    def __init__(self):
        self.socket = _socket.socket(fileno=os.dup(0))
        self.lock = threading.Lock()
        self.owner = os.getpid()
        # What background threads show between two runs would belong to neither.
        self.is_running = self.is_sending = self.was_interrupted = False

    def receive(self):
        """The next request and its descriptors."""
        data, descriptors, _, _ = self.socket.recvmsg(64 * 1024, _socket.CMSG_LEN(3 * 4))
        if not data:
            os._exit(0)  # The service has gone.
        [(_, _, numbers)] = descriptors
        return json.loads(data), [int.from_bytes(numbers[i : i + 4], sys.byteorder) for i in (0, 4, 8)]

    def send(self, message, *bodies):
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            self.is_sending = True
        try:
            with self.lock:
                for part in [json.dumps(message).encode() + b"\n", *bodies]:
                    self.socket.sendall(part)
        finally:
            if is_main:
                self.is_sending = False
        if is_main and self.was_interrupted:
            self.was_interrupted = False
            raise KeyboardInterrupt

    def interrupt(self, *_):
        """What SIGINT does, always in the main thread."""
        if self.is_sending:
            self.was_interrupted = True
        else:
            raise KeyboardInterrupt


def show(data):
    """Sends one value in the forms that `data` has, by their MIME types."""
    parts = [(kind, encoded(kind, form)) for kind, form in data.items() if form is not None]
    # A fork that the cell made shows nothing: messages of two would mix.
    if parts and control.is_running and control.owner == os.getpid():
        control.send({"result": [[kind, len(part)] for kind, part in parts]}, *[part for _, part in parts])


def encoded(kind, form):
    if isinstance(form, (bytes, bytearray)):
        return bytes(form)
    if kind == "application/json" or kind.endswith("+json"):
        form = json.dumps(form, allow_nan=False)
    elif kind.startswith("image/") and kind != "image/svg+xml":
        return base64.b64decode(form)  # As notebooks have it.
    return str(form).encode("utf-8", "replace")


def forms(value):
    """All that `value` can be shown as. A form that fails says why, and is left out."""
    data = {}
    attempt(lambda: data.update({"text/plain": repr(value)}))
    if isinstance(value, (dict, list, tuple, int, float, str, bool)):
        try:
            json.dumps(value, allow_nan=False)
            data["application/json"] = value
        except (TypeError, ValueError, RecursionError):
            pass  # It is not JSON, as most values are not.
    if is_figure(value):
        attempt(lambda: data.update({"image/png": picture(value)}))
    elif not isinstance(value, type):
        for method, kind in REPRS.items():
            if callable(getattr(value, method, None)):
                attempt(lambda: data.update({kind: without_metadata(getattr(value, method)())}))
        if callable(getattr(value, "_repr_mimebundle_", None)):
            attempt(lambda: data.update(without_metadata(value._repr_mimebundle_(include=None, exclude=None)) or {}))
    return data


def without_metadata(form):
    return form[0] if isinstance(form, tuple) else form


def attempt(work):
    try:
        work()
    except Exception as error:
        report(error)


def display(*values, raw=False):
    """Shows each value in all its forms; with `raw`, values are such forms by their MIME types."""
    for value in values:
        show(value if raw else forms(value))


def is_figure(value):
    figure = sys.modules.get("matplotlib.figure")
    return figure is not None and isinstance(value, figure.Figure)


def picture(figure):
    """`figure` as PNG. It is closed, and thus not shown again at the end."""
    file = io.BytesIO()
    try:
        figure.savefig(file, format="png", bbox_inches="tight")
    finally:
        close_figures(figure)
    return file.getvalue()


def close_figures(which):
    if hasattr(sys.modules.get("matplotlib.pyplot"), "close"):
        sys.modules["matplotlib.pyplot"].close(which)


def show_figures(*_, **__):
    """Shows the figures that are open, and closes them: `pyplot.show`, and the end of each cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if hasattr(pyplot, "get_fignums") else []:
        show(forms(pyplot.figure(number)))


class PyplotFinder:
    """Gives `matplotlib.pyplot` the `show` of this context as it is imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "matplotlib.pyplot":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            load = spec.loader.exec_module

            def load_with_show(module):
                load(module)
                module.show = show_figures

            spec.loader.exec_module = load_with_show
        return spec


def is_quiet(source):
    """Whether a cell ends in `;`, which hides its last value as in notebooks."""
    unseen = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline) if ";" in source else []
    seen = [token.string for token in tokens if token.type not in unseen]
    return seen[-1:] == [";"]


def execute(source, name, variables):
    """Runs a cell. Returns the value of its last expression, if that is its end."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    parts = [(tree, "exec")]
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not is_quiet(source):
        parts.append((ast.Expression(tree.body.pop().value), "eval"))
    for part, mode in parts:
        code = compile(part, name, mode, flags, dont_inherit=True)
        value = eval(code, variables)
        if code.co_flags & inspect.CO_COROUTINE:
            value = finished(value)
    return value


loop = None


def finished(coroutine):
    """What `coroutine` returns. One loop runs them all, so that tasks go on from cell to cell."""
    import asyncio
    import contextlib

    global loop
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        if task.cancel():
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        raise


def report(error, name=None):
    """Prints a traceback that begins in the cell `name`, without what is ours and none of its reader's business."""
    trace = error.__traceback__
    while name and trace and trace.tb_frame.f_code.co_filename != name:
        trace = trace.tb_next
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(type(error), error, trace)
        return
    said = traceback.TracebackException(type(error), error, trace)
    own = report.__code__.co_filename
    said.stack[:] = [frame for frame in said.stack if frame.filename != own]
    print(*said.format(), sep="", end="", file=sys.stderr)


def exit_code(error):
    """What `sys.exit` was called with, as the interpreter takes it."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def run(source, name, variables):
    """Runs a cell and shows what it leaves to be shown. Returns what would be its exit code."""
    code = 0
    try:
        value = execute(source, name, variables)
        if value is not None:
            variables["_"] = value
            display(value)
    except SystemExit as error:
        code = exit_code(error)
    except KeyboardInterrupt:
        close_figures("all")  # Its time is over: there is none left to draw them in.
        raise
    except BaseException as error:
        report(error, name)
        code = 1
    show_figures()
    return code


def interruptible(source, name, variables):
    """`run`, which SIGINT ends, and nothing else does."""
    try:
        signal.signal(signal.SIGINT, control.interrupt)
        try:
            return run(source, name, variables)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        report(error, name)
        return 130


def become(stdio):
    """Takes `stdio` for standard input, output and errors; child processes find them there too."""
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
        os.close(fd)
    # What an earlier run left unread is nothing to this one.
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # A cell may put anything there, and what it loses is its own.


def serve(variables):
    for number in itertools.count(1):
        request, stdio = control.receive()
        become(stdio)
        name = f"cell {number}"
        with open(request["cell"], "rb") as file:
            source = file.read().decode("utf-8", "replace")
        # Tracebacks quote its lines from here, also those of functions that are called later.
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        control.is_running = True
        code = interruptible(source, name, variables)
        control.is_running = False
        flush()
        if control.owner != os.getpid():
            os._exit(code)  # A fork that the cell made: there is one context, and it is not this.
        # The run's own streams end with it.
        become([os.open(os.devnull, os.O_RDWR) for _ in range(3)])
        control.send({"done": code})


control = Control()
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
sys.argv = [""]
sys.meta_path.insert(0, PyplotFinder)
os.environ.setdefault("MPLBACKEND", "Agg")
sys.modules["builtins"].display = display
signal.signal(signal.SIGINT, signal.SIG_IGN)
become([os.open(os.devnull, os.O_RDWR) for _ in range(3)])
control.send({"done": 0})
serve(main.__dict__)
