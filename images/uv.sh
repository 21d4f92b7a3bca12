#!/bin/bash
# Makes a tar file of uv, as it goes below /usr/local. Debian 12 has none.
#
#   images/uv.sh <amd64|arm64> <tar file>
#
# It comes from PyPI as this host's pip reaches it, and is checked against uv.sha512.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

uv_version=0.13.9

# The platform of the wheel, as its file name has it.
case $1 in
    amd64) platform=manylinux_2_17_x86_64 ;;
    arm64) platform=manylinux_2_28_aarch64 ;;
    *) die "no uv for architecture \`$1\`" ;;
esac
tar=$2

need python3 python3
python3 -m pip --version >/dev/null 2>&1 || die "pip not found; run: apt-get install python3-pip"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "downloading uv $uv_version"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "$platform" --dest "$work/wheel" "uv==$uv_version" || die "could not download uv from PyPI"
grep "$platform" "$images/uv.sha512" >"$work/wheel/expected"
(cd "$work/wheel" && sha512sum --check --quiet expected) ||
    die "the downloaded uv does not match images/uv.sha512; not used"

python3 -m zipfile -e "$work"/wheel/*.whl "$work/unpacked"
tree=$work/tree/usr/local
mkdir -p "$tree/bin" "$tree/share/doc/uv"
install -m 755 "$work/unpacked/uv-$uv_version.data/scripts"/{uv,uvx} "$tree/bin"
install -m 644 "$work/unpacked/uv-$uv_version.dist-info/licenses"/* "$tree/share/doc/uv"
chmod -R u=rwX,go=rX "$work/tree"
tar --create --file "$tar" --directory "$work/tree" --owner=0 --group=0 --sort=name --mtime=@0 usr
