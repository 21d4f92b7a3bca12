#!/bin/bash
# Guess: a layer that replaces a symbolic link by an opaque directory leaves the target of the link alone.
# Found: with umoci that depends on the order of two entries. If `srv/site/.wh..wh..opq` stands before the directory `srv/site`
# (the image specification asks for whiteouts first), umoci follows the link of the lower layer, and empties `/data`.
# Versions: umoci 0.4.7.
# Why it matters: files of an image are silently lost. An unpacker must not follow links of lower layers for whiteouts.
set -euo pipefail
umoci_version=0.4.7+ds-3+b7

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "umoci=$umoci_version" 2>/dev/null
dpkg -x umoci_*.deb root
umoci=$work/root/usr/bin/umoci

"$umoci" --version
failed=0
for order in "directory-first site marker" "marker-first marker site"; do
    read -r name entries <<<"$order"
    rm -rf below above layout rootfs
    mkdir -p below/data below/srv above/srv/site
    echo keep >below/data/keep
    ln -s /data below/srv/site
    touch above/srv/site/.wh..wh..opq
    tar -C below -cf below.tar data srv
    rm -f above.tar
    for entry in $entries; do
        case $entry in
            site) tar -C above --no-recursion -rf above.tar srv/site ;;
            marker) tar -C above -rf above.tar srv/site/.wh..wh..opq ;;
        esac
    done
    "$umoci" init --layout layout
    "$umoci" new --image layout:t
    "$umoci" raw add-layer --image layout:t below.tar
    "$umoci" raw add-layer --image layout:t above.tar
    options=()
    [[ $(id -u) == 0 ]] || options=(--rootless)
    "$umoci" raw unpack "${options[@]}" --image layout:t rootfs 2>/dev/null
    found=$(cd rootfs && find . -mindepth 1 -printf '%P\n' | sort | paste -sd' ')
    echo "$name: $found"
    case $name in
        directory-first) expected="data data/keep srv srv/site" ;;
        marker-first) expected="data srv srv/site" ;;
    esac
    [[ $found == "$expected" ]] || { echo "  changed: it was: $expected"; failed=1; }
done
exit $failed
# Seen:
#   umoci version 0.4.7+ds-3+b7
#   directory-first: data data/keep srv srv/site
#   marker-first: data srv srv/site
