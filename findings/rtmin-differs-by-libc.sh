#!/bin/sh
# Guess: a signal's name means one number on a Linux machine, as in `STOPSIGNAL SIGRTMIN+3` of an image.
# What happens: the C library takes the first real-time signals for itself, and each takes as many as it needs. SIGRTMIN is
# 34 in programs of glibc and 35 in those of musl (Alpine). The same name in an image and in `kill` inside it can be two
# signals: a program of Alpine that waits for its SIGRTMIN+3 (38) ignores Docker's (37).
# Seen with Debian's gcc 12, glibc 2.36 and musl 1.2.3-1. Who passes signals into sandboxes must fix the numbers (34 to 64, as
# Docker's) and take plain numbers too.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat > rtmin.c <<'C'
#include <signal.h>
#include <stdio.h>
int main(void) { printf("%d %d\n", SIGRTMIN, SIGRTMAX); return 0; }
C
apt-get -o APT::Sandbox::User=root download -qq musl musl-dev > /dev/null
for package in ./*.deb; do dpkg -x "$package" root; done
include=$(echo root/usr/include/*-linux-musl)
lib=$(echo root/usr/lib/*-linux-musl)
gcc -static -o glibc rtmin.c
gcc -static -nostdinc -isystem "$include" -nostdlib -fno-pie -no-pie -o musl "$lib/crt1.o" "$lib/crti.o" rtmin.c "$lib/libc.a" "$(gcc -print-libgcc-file-name)" "$lib/crtn.o"
gcc --version | head -1
dpkg-query -W -f '${Package} ${Version}\n' libc6
basename ./musl_*.deb
glibc=$(./glibc) musl=$(./musl)
echo "SIGRTMIN SIGRTMAX with glibc: $glibc"
echo "SIGRTMIN SIGRTMAX with musl:  $musl"
[ "$glibc" = "34 64" ] && [ "$musl" = "35 64" ]
