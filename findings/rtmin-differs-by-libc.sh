#!/bin/sh
# Guess: a signal's name means one number on a Linux machine, as in `STOPSIGNAL SIGRTMIN+3` of an image.
# Found: each C library keeps as many of the first real-time signals for itself as it needs. SIGRTMIN is 34 in programs of
# glibc and 35 in those of musl (Alpine). A program of Alpine that waits for its SIGRTMIN+3 (38) ignores Docker's (37).
# Versions: glibc 2.36, musl 1.2.3-1, gcc 12.2 (which must be installed).
# Why it matters: a sandbox must define which number a name means (34 to 64, as Docker does), and accept plain numbers too.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat > rtmin.c <<'C'
#include <signal.h>
#include <stdio.h>
int main(void) { printf("%d %d\n", SIGRTMIN, SIGRTMAX); return 0; }
C
apt-get -o APT::Sandbox::User=root download -qq musl=1.2.3-1 musl-dev=1.2.3-1 > /dev/null
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
# Seen:
#   SIGRTMIN SIGRTMAX with glibc: 34 64
#   SIGRTMIN SIGRTMAX with musl:  35 64
