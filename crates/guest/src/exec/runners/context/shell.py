"""IPython's own shell as what runs the cells of a context: its magics, `!`, history of values, display hooks and
events, with results and errors reported as without it."""

import ast
import asyncio
import codeop
import contextlib
import os
import re
import subprocess
import sys

import IPython
import IPython.core.formatters
from bouvet_context import cells, errors, figures, loop
from bouvet_context import show as shown
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.formatters import DisplayFormatter, PlainTextFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

# What matplotlib draws with where there is no screen.
FILE_BACKENDS = ("agg", "cairo", "pdf", "pgf", "ps", "svg")
# Sequences that colour text on terminals.
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Compiler(CachingCompiler):
    def ast_parse(self, source, filename="<unknown>", symbol="exec"):
        """As without IPython, whose flags make all that is missing "incomplete input"."""
        flags = self.flags & ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
        return compile(source, filename, symbol, flags | ast.PyCF_ONLY_AST, dont_inherit=True)

    def get_code_name(self, raw_code, transformed_code, number):
        """Cells have the names that they have without IPython; what they run in it has IPython's."""
        if raw_code == cells.shell.source:
            return cells.name
        return super().get_code_name(raw_code, transformed_code, number)


class Publisher(DisplayPublisher):
    def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **_):
        shown.results.publish(data, (transient or {}).get("display_id"), update)

    def clear_output(self, wait=False):
        shown.results.clear(wait)


class Hook(DisplayHook):
    def write_output_prompt(self):
        pass

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.display_pub.publish(format_dict, md_dict)

    def finish_displayhook(self):
        pass


class Text(PlainTextFormatter):
    def __call__(self, value):
        said = super().__call__(value)
        return shown.bare(value) if said is None else said


class Formatter(DisplayFormatter):
    """Adds the forms that values have without IPython."""

    def __init__(self, **options):
        super().__init__(**options)
        self.formatters["text/plain"] = Text(parent=self)

    def format(self, value, include=None, exclude=None):
        is_figure = figures.is_figure(value)
        with figures.bounded(value) if is_figure else contextlib.nullcontext():
            data, metadata = super().format(value, include, exclude)
        if is_figure:
            # IPython's formatters of figures do not close them.
            if any(kind.startswith("image/") for kind in data):
                figures.closed(value)
            elif data and not figures.is_empty(value):
                data["image/png"] = errors.attempt(figures.picture, value)
        elif data and "application/json" not in data:
            data["application/json"] = shown.as_json(value)
        return {kind: form for kind, form in data.items() if form is not None}, metadata


class Shell(InteractiveShell):
    compiler_class = Type(Compiler)
    display_pub_class = Type(Publisher)
    displayhook_class = Type(Hook)
    # The cell of the moment, and whether an error was reported that IPython does not count.
    source = None
    has_failed = False

    @classmethod
    def taken_up(cls, variables):
        """The shell, with the variables of the cells before."""
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.autoawait = True
        config.InteractiveShell.colors = "NoColor" if IPython.version_info < (9,) else "nocolor"
        main = sys.modules["__main__"]
        inputs, outputs = variables["In"], variables["Out"]
        unders = {name: variables[name] for name in ("_", "__", "___") if name in variables}
        hook = sys.displayhook, sys.excepthook
        shell = cls.instance(config=config, user_module=main, user_ns=variables)
        sys.displayhook, sys.excepthook = hook
        for name in ("exit", "quit"):  # IPython's end the shell.
            shell.builtin_trap.auto_builtins.pop(name, None)
            variables.pop(name, None)
        shell.history_manager.input_hist_parsed[:] = shell.history_manager.input_hist_raw[:] = inputs
        shell.history_manager.output_hist.update(outputs)
        for name, value in unders.items():
            variables[name] = value
            setattr(shell.displayhook, name, value)
        shell.execution_count = len(inputs)
        shell.loop_runner = loop.run
        # Proxies and mocks have whatever is asked for.
        IPython.core.formatters.get_real_method = shown.method
        shown.show = IPython.display.display
        return shell

    def init_display_formatter(self):
        self.display_formatter = Formatter(parent=self)
        self.configurables.append(self.display_formatter)

    def init_hooks(self):
        super().init_hooks()
        self.set_hook("show_in_pager", print_page, 0)

    def run(self, source, number):
        """Runs a cell. Returns what would be its exit code."""
        self.source, self.execution_count, self.has_failed = source, number, False
        failed = None
        try:
            cell = self.transform_cell(source)
        except Exception:
            cell, failed = source, sys.exc_info()
        coroutine = self.run_cell_async(
            source, store_history=True, transformed_cell=cell, preprocessing_exc_tuple=failed
        )
        awaits = failed is None and self.should_run_async(source, transformed_cell=cell)
        result = (loop.run if awaits else at_once)(coroutine)
        self.end(result)
        error = result.error_before_exec or result.error_in_exec
        if isinstance(error, SystemExit):
            return errors.exit_code(error)
        if isinstance(error, KeyboardInterrupt) or (loop.was_interrupted and isinstance(error, asyncio.CancelledError)):
            return cells.INTERRUPTED
        return 1 if self.has_failed or not result.success else 0

    def end(self, result):
        self.events.trigger("post_execute")
        self.events.trigger("post_run_cell", result)

    def end_plain_cell(self):
        """Ends the cell in which the shell was taken up."""
        self.events.trigger("post_execute")

    async def run_code(self, code_obj, result=None, *, async_=False):
        try:
            value = eval(code_obj, self.user_global_ns, self.user_ns)
            if async_:
                await value
        except SystemExit as error:
            result.error_in_exec = error
            return True
        except BaseException as error:
            if result is not None:
                result.error_in_exec = error
            self.showtraceback(running_compiled_code=True)
            return True
        return False

    def showtraceback(self, exc_tuple=None, filename=None, tb_offset=None, exception_only=False, **_):
        kind, error, trace = self._get_exc_info(exc_tuple)
        self.has_failed |= exc_tuple is None  # Forms of values may fail.
        if issubclass(kind, UsageError):
            self.show_usage_error(error)
            return
        if loop.was_interrupted and kind is asyncio.CancelledError:
            kind, error = KeyboardInterrupt, KeyboardInterrupt().with_traceback(trace)
        render = shown.method(error, "_render_traceback_")
        lines = errors.attempt(render) if render is not None else None
        self._showtraceback(kind, error, lines or errors.described(error.with_traceback(trace), cells.name))

    def showsyntaxerror(self, filename=None, running_compiled_code=False):
        self.showtraceback()

    def _format_exception_for_storage(self, exception, *_, **__):
        """Describes an error for the history of IPython 9, whose own method takes seconds for a deep recursion."""
        lines = errors.described(exception, cells.name)
        return {"ename": type(exception).__name__, "evalue": str(exception), "traceback": lines}

    def _showtraceback(self, etype, evalue, stb):
        lines = stb if isinstance(stb, str) else "".join(line if line.endswith("\n") else f"{line}\n" for line in stb)
        print(lines, end="", file=sys.stderr)

    def system(self, cmd):
        """Runs a command with the streams of the cell."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        shell = os.environ.get("SHELL") or "/bin/sh"
        command = self.var_expand(cmd, depth=1)
        self.user_ns["_exit_code"] = subprocess.call(command, shell=True, executable=shell)

    system_raw = system_piped = system

    def enable_matplotlib(self, gui=None):
        """Figures are among the results, whatever is to draw them on a screen."""
        if gui in (None, "auto", "inline"):
            gui = "inline"
        elif gui not in FILE_BACKENDS:
            print(figures.NO_SCREEN.format(gui), file=sys.stderr)
            gui = "inline"
        return super().enable_matplotlib(gui)

    def enable_gui(self, gui=None):
        if gui not in (None, "inline", *FILE_BACKENDS):
            raise UsageError(figures.NO_SCREEN.format(gui))


def print_page(_, data, start=0, screen_lines=0, pager_cmd=None):
    """Prints what a terminal would page through."""
    print(COLOURS.sub("", data["text/plain"] if isinstance(data, dict) else data))


def at_once(coroutine):
    """Returns the result of `coroutine`, which does not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the cell waited, and was not expected to")
