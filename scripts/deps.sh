#!/bin/bash
# Installs the Debian packages that building, testing and running Bouvet needs, if any is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    # to run
    qemu-system-x86 e2fsprogs
    # to build
    gcc libc6-dev
    # to test
    curl git procps python3-venv docker-registry skopeo umoci podman openssl iproute2 postgresql-client
)
# To make the images; the part for other architectures is left to whoever needs it.
while read -r package; do
    [[ -z $package ]] && break
    packages+=("$package")
done < <(sed '/^#/d' images/host-packages.txt)
# Debian's own Rust is too old; its security archive has a newer one beside it, which browsers are built with.
command -v cargo >/dev/null || packages+=(cargo-web rustc-web)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} == 0 ]] && exit 0

echo "installing: ${missing[*]}" >&2
as_root=()
if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || {
        echo "error: run as root: apt-get install ${missing[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
