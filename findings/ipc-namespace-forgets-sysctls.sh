#!/bin/bash
# Guess: a new IPC namespace begins with the settings of the namespace that it is made from, as a child of a cgroup or a forked
# process has those of its parent. A sandbox's `--sysctl kernel.shmmax=…` could be set before its namespaces are made.
# Found: it begins with the kernel's defaults, of System V IPC and of POSIX message queues alike. Earlier settings are silently lost.
# Versions: Linux 6.18, util-linux 2.38.1. Needs root; changes nothing outside of namespaces of its own.
# Why it matters: the first process in the namespace must set them again, before /proc/sys becomes read-only for it.
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "run as root" >&2; exit 2; }
echo "Linux $(uname -r), $(unshare --version)"
unshare --ipc bash -euc '
    read_both() { echo $(cat /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max); }
    export -f read_both
    defaults=$(read_both)
    echo 65536 >/proc/sys/kernel/shmmax
    echo 20 >/proc/sys/fs/mqueue/msg_max
    before=$(read_both)
    after=$(unshare --ipc bash -c read_both)
    echo "shmmax and msg_max, defaults: $defaults; set: $before; in the namespace made from it: $after"
    [[ $before == "65536 20" && $after == "$defaults" ]]'
# Seen:
#   Linux 6.18.44, unshare from util-linux 2.38.1
#   shmmax and msg_max, defaults: 18446744073692774399 10; set: 65536 20; in the namespace made from it: 18446744073692774399 10
