"""Runs one program as `python3 main.py` in the current directory would, wherever its file is."""

import sys


def run(path):
    import linecache
    import types

    with open(path, "rb") as file:
        source = file.read()
    sys.argv = ["main.py"]
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


run(sys.argv[1])
