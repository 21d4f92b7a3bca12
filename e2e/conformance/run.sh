#!/bin/bash
# Runs the official MCP conformance suite against the real server, at every revision that the suite covers,
# and compares what fails with expected-failures.yml.
#
# BOUVET_BIN names the server's binary, or the newer of target/{release,debug}/bouvet-mcp is taken.
set -euo pipefail

[[ -z ${BOUVET_BIN:-} ]] || BOUVET_BIN=$(realpath "$BOUVET_BIN")
cd "$(dirname "$0")"
here=$PWD
root=$(cd ../.. && pwd)
tools=$root/.tools/conformance
revisions=(2025-03-26 2025-06-18 2025-11-25 2026-07-28)

# skipped <what is missing> [<variable that makes it a failure>]
skipped() {
    if [[ -n ${2:-} && ${!2:-0} != 0 ]]; then
        echo "error: $2 is set, but $1" >&2
        exit 1
    fi
    echo "SKIPPED conformance: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}

export BOUVET_KERNEL=${BOUVET_KERNEL:-$root/images/output/vmlinux}
export BOUVET_ROOTFS=${BOUVET_ROOTFS:-$root/images/output/debian-devbox.ext4}
command -v npm >/dev/null || skipped 'there is no npm: apt-get install npm'
command -v qemu-system-x86_64 >/dev/null || skipped 'there is no QEMU: apt-get install qemu-system-x86' REQUIRE_VM
[[ -e $BOUVET_KERNEL && -e $BOUVET_ROOTFS ]] ||
    skipped 'there is no kernel or no rootfs in images/output: make images' REQUIRE_VM

binary=${BOUVET_BIN:-}
for built in "$root"/target/{release,debug}/bouvet-mcp; do
    [[ -z ${BOUVET_BIN:-} && $built -nt $binary ]] && binary=$built
done
if [[ ! -x $binary ]]; then
    echo 'error: there is no bouvet-mcp in target: cargo build --release -p bouvet-mcp' >&2
    exit 1
fi

# Installed anew only when the list has changed.
if ! cmp -s package-lock.json "$tools/installed"; then
    echo "installing the conformance suite and its Node.js" >&2
    rm -rf "$tools"
    mkdir -p "$tools"
    cp package.json package-lock.json "$tools"
    (cd "$tools" && npm ci --no-audit --no-fund --loglevel=error >&2)
    cp package-lock.json "$tools/installed"
fi
PATH=$tools/node_modules/.bin:$PATH

work=$(mktemp -d)
server=
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap finish EXIT

port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
# Only root can bound VMs where no cgroup was delegated.
[[ $(id -u) == 0 ]] || export BOUVET_CGROUP=off
export BOUVET_TEMPLATES=$root/target/templates BOUVET_POOL_ENABLED=false
BOUVET_CHROOT=$work/state BOUVET_TRANSPORT=http BOUVET_HTTP_HOST=127.0.0.1 BOUVET_HTTP_PORT=$port \
    "$binary" </dev/null >/dev/null 2>"$work/log" &
server=$!
deadline=$((SECONDS + 30))
until curl -fs "http://127.0.0.1:$port/health" >/dev/null; do
    if ! kill -0 "$server" 2>/dev/null || ((SECONDS > deadline)); then
        echo "error: the server did not start; what it said:" >&2
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.1
done

for revision in "${revisions[@]}"; do
    # Its verdict on each revision is made again below, over all of them.
    if (cd "$work" && conformance server --url "http://localhost:$port/mcp" --suite all \
        --spec-version "$revision" --expected-failures "$here/expected-failures.yml" \
        --output-dir "$work/results/$revision" >"$work/$revision.log" 2>&1); then
        echo "$revision: as expected"
    else
        echo "$revision: not as expected"
        if grep -q '^Total:' "$work/$revision.log"; then
            sed -n '/Stale baseline entries/,/^$/p; /Unexpected failures (not/,/^$/p' "$work/$revision.log"
        else
            tail -n 20 "$work/$revision.log"
        fi
        unexpected=1
    fi
done
node tally.mjs expected-failures.yml "$work"/results/*
[[ -z ${unexpected:-} ]]
