#!/bin/bash
# Makes a base disk that sandboxes share: Debian 12 with Python, Node.js, Rust and tools. Needs no Docker.
#
#   [BASE=devbox|full] images/rootfs.sh [x86_64|aarch64]
#
# Writes images/output/debian-devbox.ext4, or devbox-full.ext4; see images/README.md. Runs as root, or as a user
# who has a range in /etc/subuid. FORCE=1 makes it again; OUTPUT=<directory> puts it elsewhere.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

# Constants, so that the same packages give nearly the same bytes.
filesystem_uuid=b0077e70-0000-4000-8000-64656276626f
epoch=${SOURCE_DATE_EPOCH:-1704067200}

arch=$(debian_arch "${1:-$(uname -m)}")
base=${BASE:-devbox}
lists=("$images/packages.txt")
case $base in
    devbox) name=debian-devbox ;;
    full) name=devbox-full lists+=("$images/packages-full.txt") ;;
    *) die "unknown base \`$base\`; use devbox or full" ;;
esac
image=$output/$name.ext4
keep_existing "$image" "$arch" && exit 0

PATH=$PATH:/usr/sbin:/sbin
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need arch-test arch-test
arch-test "$arch" >/dev/null ||
    die "this machine cannot run $arch programs; run: apt-get install qemu-user-static binfmt-support
(in a container: on its host, and binfmt_misc must be mounted), until \`arch-test $arch\` says ok"
mode=root
if [[ $(id -u) != 0 ]]; then
    mode=unshare
    need newuidmap uidmap
fi

# as_owner <command>...: run as the user whom the tree's files belong to, who is root in a user namespace
# when this script runs as an ordinary user.
as_owner() {
    if [[ $mode == root ]]; then "$@"; else mmdebstrap --unshare-helper "$@"; fi
}

work=$(mktemp -d)
# The tree's owner may be neither this user nor root, and passes through here.
chmod 711 "$work"
clean_up() {
    if [[ -d $work/tree ]]; then
        # Its top belongs to this directory, the rest to the tree's owner. A mount left behind must stay whole.
        as_owner find "$work/tree" -xdev -mindepth 1 -delete || true
    fi
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir -p "$output" "$work"/{sources,files}
build_start=$(date +%s)

"$images/node.sh" "$arch" "$work/node.tar"
"$images/uv.sh" "$arch" "$work/uv.tar"

cp -r "$images/files/." "$work/files"
install -D -m 644 "$images/debian.sources" "$work/files/etc/apt/sources.list.d/debian.sources"
chmod -R u=rwX,go=rX "$work/files"
(cd "$work/files" && tar --create --file "$work/files.tar" --owner=0 --group=0 --sort=name -- *)

bookworm_sources "$work/sources"
host_apt_settings >"$work/apt.conf"
# The hooks' last line is for the shell inside.
# shellcheck disable=SC2016
mmdebstrap --mode="$mode" --architectures="$arch" --variant=apt --format=directory \
    --include="$(cat "${lists[@]}" | sed 's/#.*//' | xargs | tr ' ' ',')" \
    --aptopt="$work/apt.conf" --dpkgopt="$images/files/etc/dpkg/dpkg.cfg.d/bouvet" \
    --customize-hook="tar-in '$work/node.tar' /" \
    --customize-hook="tar-in '$work/uv.tar' /" \
    --customize-hook="tar-in '$work/files.tar' /" \
    --customize-hook="upload '$images/setup.sh' /tmp/setup.sh" \
    --customize-hook='env -i BASE='"$base"' PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin chroot "$1" /bin/sh /tmp/setup.sh' \
    bookworm "$work/tree" "$work"/sources/* || die "mmdebstrap failed; see its message above"

say "making the ext4 image"
trap 'clean_up; rm -f "$image.new"' EXIT
as_owner bash -s "$work/tree" "$build_start" "$epoch" "$filesystem_uuid" bouvet-base \
    <"$images/pack.sh" >"$image.new" || die "could not make the ext4 image"

chmod 644 "$image.new"
printf '%s %s %s\n' "$name" "$(cat "$work/tree/etc/debian_version")" "$arch" >"$image.version"
mv "$image.new" "$image"
say "made ${image#"$PWD"/}: $(du -h --apparent-size "$image" | cut -f1), Debian $(cat "$work/tree/etc/debian_version"), $arch"
