#!/bin/bash
# Guess: with a `showtraceback` of one's own, the cost of an error in IPython is the cost of that method.
# Found: since IPython 9.1, `run_cell` formats each error a second time for its history, with the verbose formatter,
# although the history is disabled. For a recursion of 1000 frames that takes a second and more, 10 times the rest.
# Versions: IPython 9.18.1, Python 3.11. `_format_exception_for_storage` is what to override.
# Why it matters: where instructions are emulated, a RecursionError holds a cell up for a minute after its own traceback.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check ipython==9.18.1
cat > "$dir/try.py" <<'PYTHON'
import sys, time
import IPython
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


class Shell(InteractiveShell):
    def showtraceback(self, *_, **__):
        pass


class Quick(Shell):
    def _format_exception_for_storage(self, exception, *_, **__):
        return {"ename": type(exception).__name__, "evalue": str(exception), "traceback": []}


def seconds(kind):
    config = Config()
    config.HistoryManager.enabled = False
    shell = kind.instance(config=config)
    begun = time.perf_counter()
    shell.run_cell("def deep(n): return deep(n + 1)\ndeep(0)", store_history=True)
    kind.clear_instance()
    return time.perf_counter() - begun


full, quick = seconds(Shell), seconds(Quick)
print(f"IPython {IPython.__version__}: {full:.2f} s, without the formatting {quick:.2f} s")
sys.exit(full < 5 * quick)
PYTHON
HOME=$dir "$dir/venv/bin/python" "$dir/try.py"
# Seen:
#   IPython 9.18.1: 1.20 s, without the formatting 0.00 s
