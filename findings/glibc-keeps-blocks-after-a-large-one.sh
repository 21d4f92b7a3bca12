#!/bin/bash
# Guess: blocks of a mebibyte are mapped by themselves (mallopt(3): M_MMAP_THRESHOLD, 128 KiB) and go back when they are freed.
# Found: freeing one block of 30 MiB raises the threshold to its size. Later blocks of 1 MiB are on the heap, and a small block
# behind each keeps all of them there: 64 MiB stay resident. With the same threshold set by mallopt nothing stays.
# Versions: glibc 2.36, gcc 12.2.
# Why it matters: one large request decides whether a server that serves many gives memory back, for as long as it lives.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat > "$dir/try.c" <<'C'
#include <gnu/libc-version.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long resident_mib(void) {
    long pages = 0, skipped;
    FILE *file = fopen("/proc/self/statm", "r");
    if (fscanf(file, "%ld %ld", &skipped, &pages) != 2) exit(2);
    fclose(file);
    return pages / 256;
}

int main(int count, char **arguments) {
    if (count > 1) mallopt(M_MMAP_THRESHOLD, 128 * 1024);
    static char *large[64], *small[64];
    char *first = malloc(30 << 20);
    memset(first, 1, 30 << 20);
    free(first);
    for (int i = 0; i < 64; i++) {
        memset(large[i] = malloc(1 << 20), 1, 1 << 20);
        memset(small[i] = malloc(100), 1, 100);
    }
    long before = resident_mib();
    for (int i = 0; i < 64; i++) free(large[i]);
    printf("glibc %s, threshold %s: %ld MiB resident, after free %ld MiB\n", gnu_get_libc_version(),
           count > 1 ? "set" : "as it is", before, resident_mib());
    return (resident_mib() > 60) == (count > 1);
}
C
cc -O0 -o "$dir/try" "$dir/try.c"
"$dir/try"
"$dir/try" set
# Seen:
#   glibc 2.36, threshold as it is: 65 MiB resident, after free 65 MiB
#   glibc 2.36, threshold set: 65 MiB resident, after free 1 MiB
