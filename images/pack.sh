#!/bin/bash
# pack.sh <tree> <build start> <epoch> <uuid> <label>: tidies a new tree and writes it to standard output as ext4.
# rootfs.sh runs it as the tree's owner (root, or root of a user namespace), and by standard input,
# because that owner may be unable to reach this file.
set -euo pipefail
tree=$1 build_start=$2 epoch=$3 uuid=$4 label=$5

disk=$(mktemp)
trap 'rm -f "$disk"' EXIT

# What only building needed. The host's mirror and proxy are its own business, not the image's.
cd "$tree"
rm -f etc/apt/sources.list etc/apt/sources.list.d/0* etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap
find var/log var/cache ! -type d ! -path 'var/cache/debconf/*' -delete
find tmp run var/tmp var/lib/apt/lists -mindepth 1 -depth -delete
rm -rf root/.npm root/.cargo root/.cache/pip dev/*
rm -f etc/*- var/cache/debconf/*-old var/lib/dpkg/*-old etc/ssh/ssh_host_*
: >etc/machine-id
mkdir -p proc sys dev run workspace var/lib/apt/lists/partial var/cache/apt/archives/partial
chmod 755 proc sys dev run workspace

# The libraries' own tests, 120 MB. (Excluding them in dpkg's configuration makes py3compile fail.)
find usr/lib/python3/dist-packages/{mpl_toolkits,numpy,pandas,sympy} \
    -depth -type d \( -name tests -o -name rubi_tests \) -exec rm -rf {} +

# Packages bring their files' times with them; all that the build itself made gets the same one.
# The day of installation is the third field of shadow.
sed -i -E "s/^([^:]*:[^:]*:)[0-9]+:/\1$((epoch / 86400)):/" etc/shadow
find . -newermt "@$build_start" -exec touch --no-dereference --date="@$epoch" {} +

# Read-only and shared, so: no journal, nothing reserved, little free. The features are named one by one
# because the defaults differ between hosts.
inodes=$(($(find . -xdev | wc -l) + 64))
content=$(find . -xdev -printf '%s\n' | awk '{ blocks += int(($1 + 4095) / 4096) } END { print blocks }')
blocks=$((content + content / 200 + inodes / 16 + 2048))
export E2FSPROGS_FAKE_TIME=$epoch
make_ext4() {
    mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -N "$inodes" -L "$label" -U "$uuid" \
        -O none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,sparse_super \
        -E "hash_seed=$uuid,lazy_itable_init=0,root_owner=0:0" -d . "$disk" "$blocks" >&2
}
# The size is an estimate; a tree of unusual shape needs more.
for attempt in 1 2 3; do
    truncate -s 0 "$disk"
    make_ext4 && break
    [[ $attempt != 3 ]]
    blocks=$((blocks * 21 / 20))
done
e2fsck -fn "$disk" >&2
cat "$disk"
