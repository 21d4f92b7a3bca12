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
find tmp run var/tmp var/log var/cache var/lib/apt/lists -mindepth 1 ! -type d -delete
find tmp run var/tmp var/lib/apt/lists -mindepth 1 -depth -delete
rm -rf root/.npm root/.cargo root/.cache/pip dev/*
rm -f etc/*- var/lib/dpkg/*-old etc/ssh/ssh_host_*
: >etc/machine-id
mkdir -p -m 755 proc sys dev run workspace var/lib/apt/lists/partial var/cache/apt/archives/partial

# Packages bring their files' times with them; all that the build itself made gets the same one.
# The day of installation is the third field of shadow.
sed -i -E "s/^([^:]*:[^:]*:)[0-9]+:/\1$((epoch / 86400)):/" etc/shadow
find . -newermt "@$build_start" -exec touch --no-dereference --date="@$epoch" {} +

# Read-only and shared, so: no journal, nothing reserved, nothing free. The features are named one by one
# because the defaults differ between hosts. Made too large first, since the right size is known only then.
inodes=$(($(find . -xdev | wc -l) + 64))
blocks=$(($(du -sx --block-size=4096 . | cut -f1) * 5 / 4 + 16384))
export E2FSPROGS_FAKE_TIME=$epoch
mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -N "$inodes" -L "$label" -U "$uuid" \
    -O none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,sparse_super \
    -E "hash_seed=$uuid,lazy_itable_init=0,root_owner=0:0" -d . "$disk" "$blocks" >&2
resize2fs -M "$disk" >&2
e2fsck -fn "$disk" >&2
cat "$disk"
