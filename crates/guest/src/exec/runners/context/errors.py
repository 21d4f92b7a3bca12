"""Errors of cells, as their readers want them: without our own frames."""

import linecache
import os
import sys
import traceback

OURS = os.path.dirname(__file__) + os.sep


def outermost():
    """The frame of `python.py`, which runs contexts as it runs programs."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


exit_code = outermost().f_globals["exit_code"]


def attempt(work, *arguments):
    """Returns the result of `work`, or prints its error and returns `None`."""
    try:
        return work(*arguments)
    except NotImplementedError:
        return None  # A form that a value chooses not to have.
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # Extensions in other languages have errors that are no `Exception`.
        report(error)
        return None


def report(error, name=None):
    """Prints the traceback of `error`, from the first frame in the cell `name` on."""
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(type(error), error, within(error, name))
        return
    print(*described(error, name), sep="", end="", file=sys.stderr)


def described(error, name=None):
    """The lines of the traceback."""
    with_source(error)
    said = traceback.TracebackException(type(error), error, within(error, name))
    without_ours(said)
    return list(said.format())


def within(error, name):
    """The part of the traceback that begins in the cell `name`; all of it, if none of it is there. A cell that cannot be
    compiled has none."""
    inner = error.__traceback__
    while name and inner and inner.tb_frame.f_code.co_filename != name:
        inner = inner.tb_next
    is_of_compiler = isinstance(error, SyntaxError) and error.filename == name
    return None if is_of_compiler and inner is None else inner or error.__traceback__


def without_ours(said):
    if said is not None:
        said.stack[:] = [frame for frame in said.stack if not frame.filename.startswith(OURS)]
        without_ours(said.__cause__)
        without_ours(said.__context__)


def with_source(error):
    """Gives a SyntaxError of the compiler the line that it is about; only the parser's have theirs."""
    if isinstance(error, SyntaxError) and error.text is None and error.filename and error.lineno:
        error.text = linecache.getline(error.filename, error.lineno) or None
