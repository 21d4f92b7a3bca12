"""One event loop for all cells, from the first import of `asyncio` on: tasks go on from cell to cell, and between them.

In a cell that does not await, the loop does not run, but passes for the running one: `asyncio.create_task` works, and
so does what starts a loop of its own, such as `asyncio.run`, or runs this one, such as `loop.run_until_complete`.
"""

import contextlib
import functools
import importlib
import os
import selectors
import threading

from bouvet_context.control import control

asyncio = None
# The loop, and the task of the cell that runs in it.
current = None
cell = None
# Whether that task was cancelled by an interrupt.
was_interrupted = False


def take_up(module):
    """Makes the loop, now that `asyncio` is there."""
    global asyncio
    asyncio = module
    base = asyncio.BaseEventLoop
    base.run_forever, base.run_until_complete = outside(base.run_forever), outside(base.run_until_complete)
    asyncio.run = asyncio.runners.run = outside(asyncio.run)
    if hasattr(asyncio, "Runner"):
        asyncio.Runner.run = outside(asyncio.Runner.run)
    if control.is_running and control.is_ours() and threading.current_thread() is threading.main_thread():
        enter()


def outside(function):
    """`function`, which refuses to be called while a loop runs, for where the loop of the context does."""

    @functools.wraps(function)
    def call(*arguments, **options):
        running = asyncio._get_running_loop()
        if running is None or running is not current:
            return function(*arguments, **options)
        task = asyncio.current_task(running)
        if task is not None:
            asyncio.tasks._leave_task(running, task)
        asyncio._set_running_loop(None)
        try:
            return function(*arguments, **options)
        finally:
            asyncio._set_running_loop(running)
            if task is not None:
                asyncio.tasks._enter_task(running, task)

    return call


def enter():
    """Makes the loop what the code of a cell finds running."""
    global current
    if asyncio is None:
        return
    if current is None or current.is_closed():
        current = asyncio.new_event_loop()
    asyncio.set_event_loop(current)
    asyncio._set_running_loop(current)


def leave():
    """Undoes `enter`. What is ready begins: what it prints at once belongs to this cell."""
    if asyncio is None or not control.is_ours():
        return
    asyncio._set_running_loop(None)
    if current is not None and not current.is_closed():
        current.call_soon(current.stop)
        with contextlib.suppress(RuntimeError, SystemExit):
            current.run_forever()


def run(coroutine):
    """Runs `coroutine`, the code of a cell, and returns its result."""
    global cell, was_interrupted
    importlib.import_module("asyncio")  # It is taken up as it is imported.
    cell, was_interrupted = current.create_task(coroutine), False
    try:
        return complete(cell)
    except KeyboardInterrupt:
        # It was raised in some task, which need not be the cell's.
        if cell.cancel():
            with contextlib.suppress(asyncio.CancelledError):
                complete(cell)
        raise
    except asyncio.CancelledError as error:
        if not was_interrupted:
            raise
        raise KeyboardInterrupt().with_traceback(error.__traceback__) from None
    finally:
        cell = None


def complete(future):
    """Runs the loop until `future` is done, whatever other tasks do to the loop."""
    while True:
        try:
            return current.run_until_complete(future)
        except (RuntimeError, SystemExit) as error:
            # Somebody stopped the loop, or a task tried to exit. A signal handler may raise anything.
            is_stop = isinstance(error, SystemExit) or str(error).startswith("Event loop stopped")
            if future.done() or current.is_closed() or not is_stop:
                raise


def interrupt(_, frame):
    """Handles SIGINT, always in the main thread. Where the loop only waits, the cell's task is cancelled: an
    exception there could take something of the loop's with it."""
    global was_interrupted
    if control.is_sending:
        control.was_interrupted = True
    elif cell is not None and not is_in_task(frame):
        was_interrupted = True
        current.call_soon_threadsafe(cell.cancel)
    else:
        raise KeyboardInterrupt


def is_in_task(frame):
    """Whether `frame` is in code that the loop runs, rather than in the loop."""
    loop = (os.path.dirname(asyncio.__file__) + os.sep, selectors.__file__, __file__)
    while frame is not None and frame.f_code is not complete.__code__:
        if not frame.f_code.co_filename.startswith(loop):
            return True
        frame = frame.f_back
    return False


def wait(fd):
    """Runs tasks until there is something to read from `fd`."""
    if asyncio is None or current is None or current.is_closed():
        return
    ready = current.create_future()
    current.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        complete(ready)
    except (RuntimeError, SystemExit, KeyboardInterrupt):
        pass  # Somebody closed the loop: the next request is waited for without it.
    finally:
        with contextlib.suppress(RuntimeError):
            current.remove_reader(fd)
