#!/bin/bash
# Runs the end-to-end tests: the real server, real VMs, and the official Python client.
#
# BOUVET_BIN names the server's binary, or the newer of target/{release,debug}/bouvet-mcp is taken.
# BOUVET_JUNIT names a file for a report in JUnit's XML. Arguments are pytest's own.
set -euo pipefail

[[ -z ${BOUVET_BIN:-} ]] || BOUVET_BIN=$(realpath "$BOUVET_BIN")
export BOUVET_BIN=${BOUVET_BIN:-}
options=(-rfEs)
[[ -z ${BOUVET_JUNIT:-} ]] || options+=("--junitxml=$(realpath -m "$BOUVET_JUNIT")")
cd "$(dirname "$0")"

venv=../../.tools/venv
if [[ ! -x $venv/bin/pip ]]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || {
        echo "error: Python cannot make virtual environments: apt-get install python3-venv" >&2
        exit 1
    }
    python3 -m venv --clear "$venv"
fi
# Installed anew only when the list has changed.
if ! cmp -s requirements.txt "$venv/requirements.txt"; then
    echo "installing the Python client and pytest" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$venv/requirements.txt"
fi
exec "$venv/bin/python" -m pytest "${options[@]}" "$@"
