#!/bin/bash
# Installs the executables and images that `make demo`, or `make build images`, has made; with --remove it removes them.
#
#   scripts/install.sh [--remove] DESTDIR BIN_DIR IMAGE_DIR BASH_DIR ZSH_DIR FISH_DIR
#
# The images that are installed are images/output/*, or those that BOUVET_KERNEL and BOUVET_ROOTFS name.
set -euo pipefail
cd "$(dirname "$0")/.."

remove=
if [[ ${1:-} == --remove ]]; then
    remove=yes
    shift
fi
destination=$1 bin=$1$2 images=$1$3 bash=$1$4 zsh=$1$5 fish=$1$6
binaries=(bouvet bouvet-mcp)
kernel=${BOUVET_KERNEL:-images/output/vmlinux}
rootfs=${BOUVET_ROOTFS:-images/output/debian-devbox.ext4}

die() {
    echo "error: $*" >&2
    exit 1
}

# may_write <directory>: stop with the fix where this user may not make it or write to it.
may_write() {
    local dir=$1
    until [[ -e $dir ]]; do dir=$(dirname "$dir"); done
    [[ -d $dir && -w $dir ]] || die "cannot write to $1: use sudo, or PREFIX=\$HOME/.local"
}

if [[ $remove ]]; then
    rm -f "${binaries[@]/#/$bin/}" "$bash/bouvet" "$zsh/_bouvet" "$fish/bouvet.fish" \
        "$images"/{vmlinux,vmlinux.modules.cpio,debian-devbox.ext4,devbox-full.ext4}
    # Images that were pulled and persistent sandboxes stay.
    rmdir --ignore-fail-on-non-empty "$images" 2>/dev/null || true
    exit 0
fi

for file in "${binaries[@]/#/target/release/}"; do
    [[ -x $file ]] || die "$file is missing: run \`make demo\`, or \`make build\`"
done
for file in "$kernel" "$rootfs"; do
    [[ -e $file ]] || die "$file is missing: run \`make demo\`, or \`make images\`"
done
for dir in "$bin" "$images" "$bash" "$zsh" "$fish"; do may_write "$dir"; done

# put <file> <destination>: whole or not at all, as running sandboxes may use what is replaced.
put() {
    cp --reflink=auto --sparse=auto "$1" "$2.new"
    chmod 644 "$2.new"
    mv -f "$2.new" "$2"
}

install -d "$bin" "$images" "$bash" "$zsh" "$fish"
install -m 755 "${binaries[@]/#/target/release/}" "$bin/"
put "$kernel" "$images/vmlinux"
if [[ -e $kernel.modules.cpio ]]; then
    put "$kernel.modules.cpio" "$images/vmlinux.modules.cpio"
else
    rm -f "$images/vmlinux.modules.cpio"
fi
put "$rootfs" "$images/debian-devbox.ext4"
# The second base, where it was made.
full=$(dirname "$rootfs")/devbox-full.ext4
if [[ -e $full ]]; then put "$full" "$images/devbox-full.ext4"; fi
target/release/bouvet completions bash >"$bash/bouvet"
target/release/bouvet completions zsh >"$zsh/_bouvet"
target/release/bouvet completions fish >"$fish/bouvet.fish"

echo "installed: $bin/{bouvet,bouvet-mcp}, $images, completions of bash, zsh and fish"
case :$PATH: in
    *:"${bin#"$destination"}":*) ;;
    *) echo "note: ${bin#"$destination"} is not in PATH" ;;
esac
