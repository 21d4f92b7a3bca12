#!/bin/bash
# Runs all tests, and says at the end how many ran, and how many were skipped and why.
#
# REQUIRE_VM=1 turns every skip for lack of a VM into a failure, and REQUIRE_KVM=1 those for lack of Firecracker or KVM;
# CONTRIBUTING.md has the others.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export BOUVET_SKIP_LOG=$work/skips
: >"$BOUVET_SKIP_LOG"
failed_parts=()

part() {
    local name=$1
    shift
    echo "== $name" >&2
    "$@" 2>&1 | tee "$work/$name.log"
    [[ ${PIPESTATUS[0]} == 0 ]] || failed_parts+=("$name")
}

# sum <part> <word>: the numbers before `word` in that part's closing lines.
sum() {
    grep -hE '^test result:|^=+ .* in [0-9.]+s|^[0-9]+ passed, [0-9]+ failed' "$work/$1.log" 2>/dev/null |
        grep -oE "[0-9]+ $2" | awk '{ n += $1 } END { print n + 0 }'
}

part rust cargo test --workspace --features bouvet-host/fake,bouvet/fake --no-fail-fast
part build cargo build -p bouvet-mcp -p bouvet
export BOUVET_BIN=$PWD/target/debug/bouvet-mcp
part python e2e/python/run.sh
part conformance e2e/conformance/run.sh

# A Rust test that skips itself passes for cargo.
rust_skips=$(wc -l <"$BOUVET_SKIP_LOG")
passed=$(($(sum rust passed) - rust_skips + $(sum python passed) + $(sum conformance passed)))
failed=$(($(sum rust failed) + $(sum python failed) + $(sum python error) + $(sum conformance failed)))
skipped=$((rust_skips + $(sum python skipped) + $(sum conformance skipped)))

echo
if [[ $skipped != 0 ]]; then
    echo "skipped, and why:"
    sed 's/^/  /' "$BOUVET_SKIP_LOG"
    grep -hE '^SKIPPED' "$work"/{python,conformance}.log | sed 's/^/  /'
fi
[[ ${#failed_parts[@]} == 0 ]] || echo "failed: ${failed_parts[*]}"
# A part that broke before it could count is a failure too.
[[ ${#failed_parts[@]} == 0 || $failed != 0 ]] || failed=${#failed_parts[@]}
echo "$passed passed, $failed failed, $skipped skipped"
[[ ${#failed_parts[@]} == 0 && $failed == 0 ]]
