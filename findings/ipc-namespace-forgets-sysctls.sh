#!/bin/bash
# Guess: a new IPC namespace begins with the settings of the one it is made from, as a network namespace can
# (net.core.devconf_inherit_init_net). A sandbox's `--sysctl kernel.shmmax=…` could then be set before its namespaces are made.
# What happens: it begins with the kernel's defaults, of System V IPC and of POSIX message queues alike. What was set
# before is silently lost; the first process has to set it again, before /proc/sys becomes read-only.
# Versions: Linux 6.18, util-linux 2.38. Needs root. Nothing outside of namespaces of its own is changed.
set -eu
echo "Linux $(uname -r), $(unshare --version)"
seen=$(unshare --ipc bash -c '
    echo 65536 > /proc/sys/kernel/shmmax
    echo 20 > /proc/sys/fs/mqueue/msg_max
    echo "set: $(cat /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max | xargs)"
    exec unshare --ipc bash -c "echo in the namespace made from it: \$(cat /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max | xargs)"')
echo "$seen"
[[ $seen == *"set: 65536 20"* && $seen == *"made from it: 18446744073692774399 10"* ]]
