"""Figures of matplotlib: shown as in notebooks, by `pyplot.show` and at the end of each cell, and then closed."""

import contextlib
import functools
import io
import math
import sys

# Beyond this, a figure is drawn with fewer points: its pixels take four bytes each in memory.
MAX_PIXELS = 8_000_000

NO_SCREEN = "there is no screen for `{}`: figures are among the results"

# The figure that was shown last, which `pyplot.savefig` still saves, and in which cell that was.
last = None
last_cell = 0
cell = 0


def begin(number):
    """Begins the cell of this number."""
    global cell, last
    cell = number
    if number > last_cell + 1:
        last = None


def is_figure(value):
    figure = sys.modules.get("matplotlib.figure")
    return hasattr(figure, "Figure") and isinstance(value, figure.Figure)


def is_empty(figure):
    """Whether there is nothing in `figure` but its background."""
    return len(figure.get_children()) <= 1


def picture(figure):
    """`figure` as PNG. It is closed, and thus not shown again at the end."""
    file = io.BytesIO()
    try:
        with bounded(figure):
            figure.savefig(file, format="png", bbox_inches="tight", dpi=figure.dpi)
    finally:
        closed(figure)
    return file.getvalue()


@contextlib.contextmanager
def bounded(figure):
    """Gives `figure` the resolution that it is to be saved with, as far as memory has room for it."""
    before, saved = figure.dpi, sys.modules["matplotlib"].rcParams["savefig.dpi"]
    width, height = figure.get_size_inches()
    figure.set_dpi(min(before if saved == "figure" else saved, math.sqrt(MAX_PIXELS / (width * height))))
    try:
        yield
    finally:
        figure.set_dpi(before)


def closed(figure):
    """Closes `figure`, which was shown."""
    global last, last_cell
    last, last_cell = figure, cell
    close(figure)


def close(which):
    pyplot = sys.modules.get("matplotlib.pyplot")
    if hasattr(pyplot, "close"):
        pyplot.close(which)


def show_open(*_, **__):
    """Shows the figures that are open, and closes them."""
    from bouvet_context import show

    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if hasattr(pyplot, "get_fignums") else []:
        figure = pyplot.figure(number)
        if is_empty(figure):
            close(figure)
        else:
            show.show(figure)
            closed(figure)


def take_up(pyplot):
    """Gives `matplotlib.pyplot` the `show` of this context as it is imported."""
    from bouvet_context import show

    def show_one(figure, warn=True):
        show.show(figure)
        closed(figure)

    save = pyplot.savefig

    @functools.wraps(save)
    def save_last(*arguments, **options):
        if last is not None and not pyplot.get_fignums():
            return last.savefig(*arguments, **options)
        return save(*arguments, **options)

    switch = pyplot.switch_backend

    @functools.wraps(switch)
    def switch_backend(newbackend):
        try:
            switch(newbackend)
        except ImportError as error:  # It needs a screen, or a toolkit.
            print(f"{NO_SCREEN.format(newbackend)} ({error})", file=sys.stderr)
            switch("agg")

    pyplot.show, pyplot.savefig, pyplot.switch_backend = show_open, save_last, switch_backend
    sys.modules["matplotlib.figure"].Figure.show = show_one
