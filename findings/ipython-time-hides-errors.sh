#!/bin/bash
# Guess: in IPython, `run_cell` reports the failure of every cell whose code raises an error.
# Found: `%time` and `%%time` print the traceback and return; `success` is True and both error fields are None. Only a
# `showtraceback` of one's own sees the error.
# Versions: IPython 8.5.0, which Debian 12 has, to 9.3.0. Since 9.4.0 `run_cell` reports the error. Python 3.11.
# Why it matters: a sandbox that takes the exit status of a cell from IPython's result calls failed code successful.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
cat > "$dir/try.py" <<'PYTHON'
import sys
import IPython
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
plain, timed = shell.run_cell("1 / 0"), shell.run_cell("%time 1 / 0")
print("IPython", IPython.__version__)
print("1 / 0        success:", plain.success, "error:", repr(plain.error_in_exec))
print("%time 1 / 0  success:", timed.success, "error:", repr(timed.error_in_exec))
hides = plain.success is False and timed.success is True
sys.exit(hides != (sys.argv[1] == "hides"))
PYTHON
try() { # VERSION hides|reports
    "$dir/venv/bin/pip" install -q --disable-pip-version-check "ipython==$1"
    NO_COLOR=1 HOME=$dir "$dir/venv/bin/python" "$dir/try.py" "$2"
}
try 8.5.0 hides
try 9.3.0 hides
try 9.4.0 reports
# Seen, without the tracebacks:
#   IPython 8.5.0
#   1 / 0        success: False error: ZeroDivisionError('division by zero')
#   %time 1 / 0  success: True error: None
#   IPython 9.3.0
#   1 / 0        success: False error: ZeroDivisionError('division by zero')
#   %time 1 / 0  success: True error: None
#   IPython 9.4.0
#   1 / 0        success: False error: ZeroDivisionError('division by zero')
#   %time 1 / 0  success: False error: ZeroDivisionError('division by zero')
