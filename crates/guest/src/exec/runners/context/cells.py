"""Cells: how they are understood, run, and reported.

The interpreter itself runs them until one needs IPython: it has a magic, `!` or `?`, or something imports IPython. From
then on IPython's own shell runs them, with the same variables. Starting with it would make each context wait for it.
"""

import __future__

import ast
import builtins
import importlib.util
import inspect
import io
import linecache
import re
import signal
import sys
import tokenize

from bouvet_context import figures, hooks, loop
from bouvet_context.control import control
from bouvet_context.errors import exit_code, report
from bouvet_context.show import results, show

# The exit code of a cell that was interrupted, as shells report it.
INTERRUPTED = 130
# Values that `Out` remembers, as in IPython.
MAX_OUTPUTS = 1000
FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
# Syntax of IPython alone: lines that begin with `%`, `!` or `?` or end with `?`, `x = !command` and prompts.
NOTEBOOK_SYNTAX = re.compile(
    r"^[ \t]*(?:[%!?]|>>> |In \[\d+\]:|[\w., \t\[\]'\"]+=[ \t]*[%!])|\?[ \t]*$", re.MULTILINE
)
# Commands that IPython runs without `%` where no variable has their name, as far as they are in use.
COMMANDS = frozenset("cat cd conda cp env hist history ll ls lsmagic man mkdir more mv pip pwd rm rmdir time who whos".split())
SYNTAX_HINT = (
    "hint: `%`, `!` and `?` need IPython, which is not installed in this sandbox: `pip install ipython` installs it. "
    "Without it, `subprocess.run` runs commands."
)
IMPORT_HINT = (
    "hint: IPython is not installed in this sandbox: `pip install ipython` installs it. `display(...)` needs no import."
)

variables = {}
# The name of the cell of the moment.
name = "cell 0"
# IPython's shell, once it is taken up.
shell = None
# Compiler flags, those of `from __future__ import` in earlier cells among them.
flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def begin(main):
    """Gives cells the variables of the module `main`."""
    global variables
    variables = main.__dict__
    variables.update(In=[""], Out={})
    if importlib.util.find_spec("IPython") is not None:
        variables["get_ipython"] = get_ipython


def get_ipython():
    """IPython's shell, which runs the cells from now on."""
    return take_up()


def take_up():
    """Makes IPython run the cells from now on. None in a fork of the context."""
    global shell
    if shell is None and control.is_ours():
        importlib.import_module("IPython")  # Which calls this function.
    if shell is None and control.is_ours():
        from bouvet_context.shell import Shell

        shell = Shell.taken_up(variables)
    return shell


def run(source, number):
    """Runs a cell, which SIGINT ends. Returns what would be its exit code."""
    global name
    name = f"cell {number}"
    # Tracebacks quote its lines from here, also those of functions that are called later.
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    figures.begin(number)
    try:
        signal.signal(signal.SIGINT, loop.interrupt)
        try:
            loop.enter()
            return shown(source, number)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        figures.close("all")  # Its time is over: there is none left to draw them in.
        report(error, name)
        return INTERRUPTED


def shown(source, number):
    """Runs a cell, and shows what it leaves to be shown."""
    try:
        if shell is None and needs_ipython(source):
            importlib.invalidate_caches()  # It may have been installed just now.
            if importlib.util.find_spec("IPython") is not None:
                take_up()
        code = (plainly if shell is None else shell.run)(source, number)
        if code != INTERRUPTED:
            hooks.wait_for_pages()
            figures.show_open()
        else:
            figures.close("all")
        return code
    finally:
        loop.leave()


def needs_ipython(source):
    """Whether only IPython understands this cell."""
    lines = source.strip().splitlines()
    if len(lines) == 1:
        word = re.match(r"\w*", lines[0])[0]
        if word in COMMANDS and word not in variables and not re.match(r"\w+\s*(=[^=]|[.(\[])", lines[0]):
            return True
    if not NOTEBOOK_SYNTAX.search(source):
        return False
    try:
        ast.parse(dedented(source))
    except (SyntaxError, ValueError):
        return True
    return False


def plainly(source, number):
    """Runs a cell without IPython. Returns what would be its exit code."""
    variables.pop("__warningregistry__", None)  # Each cell has its own.
    variables["In"].append(source)
    try:
        value = execute(dedented(source))
        if value is not None:
            remember(value, number)
            show(value)
    except SystemExit as error:
        return exit_code(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        report(error, name)
        if isinstance(error, SyntaxError) and needs_ipython(source):
            print(SYNTAX_HINT, file=sys.stderr)
        elif isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "IPython":
            print(IMPORT_HINT, file=sys.stderr)
        return 1
    finally:
        if shell is not None:
            shell.end_plain_cell()
    return 0


def dedented(source):
    """`source` without the indentation that its first line has, as IPython takes it."""
    first = next((line for line in source.splitlines() if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    if not indent:
        return source
    lines = source.splitlines(True)
    return "".join(line[len(indent) :] if line.startswith(indent) else line for line in lines)


def execute(source):
    """Runs a cell. Returns the value of its last expression, if that is its end."""
    global flags
    tree = compile(source, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    parts = [(tree, "exec")]
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not is_quiet(source):
        parts.append((ast.Expression(tree.body.pop().value), "eval"))
    for part, mode in parts:
        code = compile(part, name, mode, flags, dont_inherit=True)
        flags |= code.co_flags & FUTURE_FLAGS
        if code.co_flags & inspect.CO_COROUTINE:
            value = loop.run(eval(code, variables))
        else:
            value = eval(code, variables)
    return value


def is_quiet(source):
    """Whether a cell ends in `;`, which hides its last value as in notebooks."""
    unseen = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline) if ";" in source else []
    seen = [token.string for token in tokens if token.type not in unseen]
    return seen[-1:] == [";"]


def remember(value, number):
    """Makes `value` what `_`, `Out` and their like have, unless the cells have their own use for these names."""
    outputs = variables.get("Out")
    if isinstance(outputs, dict) and value is not outputs:
        outputs[number] = variables[f"_{number}"] = value
        if len(outputs) > MAX_OUTPUTS:
            oldest = next(iter(outputs))
            variables.pop(f"_{oldest}", None)
            del outputs[oldest]
    if not hasattr(builtins, "_"):  # As `gettext` sets it.
        variables["___"], variables["__"], variables["_"] = variables.get("__"), variables.get("_"), value
