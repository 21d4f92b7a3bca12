#!/bin/bash
# Makes the guest's kernel from Debian's security-updated cloud kernel: nothing is compiled or installed.
#
#   images/kernel.sh [x86_64|aarch64]
#
# Writes images/output/vmlinux, vmlinux.modules.cpio and vmlinux.version; see images/README.md.
# FORCE=1 makes them again; OUTPUT=<directory> puts them elsewhere; KERNEL_PACKAGE=<name> takes another Debian kernel package.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

# Either loaded by the guest's init or of use to programs in it; what a kernel has built in is skipped.
modules=(
    virtio_mmio virtio_pci virtio_blk virtio_net virtio_console virtio_rng virtio_balloon
    vmw_vsock_virtio_transport vsock_loopback virtiofs fuse
    overlay erofs squashfs ext4
    tun
)

arch=$(debian_arch "${1:-$(uname -m)}")
# 6.12 first: bookworm's default, 6.1, has no vmgenid, by which a cloned guest learns that it is a clone.
packages=(${KERNEL_PACKAGE:+"$KERNEL_PACKAGE"})
[[ ${packages[*]} ]] || packages=("linux-image-6.12-cloud-$arch" "linux-image-cloud-$arch")

keep_existing "$output/vmlinux" "$arch" && exit 0
need apt-get apt
need dpkg-deb dpkg
need python3 python3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$output" "$work"/{sources,state/lists/partial,cache/archives/partial,deb,tree}
: >"$work/state/status"
bookworm_sources "$work/sources"
# As root, apt downloads as the user _apt, who must get at these directories.
chmod 755 "$work"
if [[ $(id -u) == 0 ]]; then
    chown _apt "$work/deb"
fi

# A private configuration of one architecture: the host's package lists are neither needed nor changed,
# and an amd64 host gets an arm64 kernel without `dpkg --add-architecture`.
{
    host_apt_settings
    cat <<EOF
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/sources";
EOF
} >"$work/apt.conf"
export APT_CONFIG=$work/apt.conf

# depends_on <package>: the versioned package that a meta package stands for; nothing when there is none.
depends_on() {
    { apt-cache depends --important "$1" 2>/dev/null || true; } |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !found { print $2; found = 1 }'
}

say "reading Debian's package lists for $arch"
apt-get -qq update || die "could not read Debian's package lists; see apt's message above"

for meta in "${packages[@]}"; do
    package=$(depends_on "$meta")
    # A versioned kernel package can be asked for by name; it depends on no other kernel.
    [[ -n $package || ! $meta =~ ^linux-image-[0-9]+\.[0-9]+\. ]] || package=$meta
    [[ -z $package ]] || break
done
[[ -n $package ]] || die "no kernel package among: ${packages[*]}; set KERNEL_PACKAGE to one that apt-cache finds"

say "downloading $package"
(cd "$work/deb" && apt-get -qq download "$package") || die "could not download $package"
deb=("$work"/deb/*.deb)
version=$(dpkg-deb --field "${deb[0]}" Version)
dpkg-deb --extract "${deb[0]}" "$work/tree"

say "unpacking $package $version"
python3 "$images/kernel_unpack.py" "$work/tree" "$work" "${modules[@]}" || die "could not unpack $package $version"
printf '%s %s %s\n' "$package" "$version" "$arch" >"$work/vmlinux.version"

# vmlinux comes last: whoever finds it finds its modules too.
for file in vmlinux.version vmlinux.modules.cpio vmlinux; do
    install -m 644 "$work/$file" "$output/.$file.new"
done
for file in vmlinux.version vmlinux.modules.cpio vmlinux; do
    mv "$output/.$file.new" "$output/$file"
done
say "made $(cd "$output" && du -h --apparent-size vmlinux vmlinux.modules.cpio | tr '\t\n' '  ')from $package $version"
