# shellcheck shell=bash disable=SC2034
# What kernel.sh and rootfs.sh share. Sourced, never run.

images=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
output=${OUTPUT:-$images/output}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# need <command> <Debian package>: stop with the fix when a tool is missing.
need() {
    command -v "$1" >/dev/null || die "\`$1\` not found; run: apt-get install $2"
}

# debian_arch <x86_64|aarch64>: Debian's name of an architecture.
debian_arch() {
    case $1 in
        x86_64 | amd64) echo amd64 ;;
        aarch64 | arm64) echo arm64 ;;
        *) die "unknown architecture \`$1\`; use x86_64 or aarch64" ;;
    esac
}

# keep_existing <file> <Debian architecture>: true when the file is there and FORCE=1 was not given,
# unless <file>.version ends in another architecture. A file without that was put there by hand, and stays.
keep_existing() {
    [[ -e $1 && ${FORCE:-} != 1 ]] || return 1
    if [[ -e $1.version && $(<"$1.version") != *" $2" ]]; then
        say "replacing ${1#"$PWD"/}: it is not for $2"
        return 1
    fi
    say "keeping ${1#"$PWD"/} (FORCE=1 makes it again)"
}

# bookworm_sources <dir>: write the apt sources to build from into an empty directory.
# A bookworm host's own are used, so that its mirror is; any other host uses Debian's public servers.
bookworm_sources() {
    local list=/etc/apt/sources.list deb822=/etc/apt/sources.list.d/debian.sources
    if (. /etc/os-release && [[ $ID == debian && $VERSION_CODENAME == bookworm ]]) 2>/dev/null; then
        # Either may be there with nothing but comments, which mmdebstrap refuses.
        if grep -qs '^deb' "$list"; then cp "$list" "$1/host.list"; fi
        if grep -qs '^URIs:' "$deb822"; then cp "$deb822" "$1/host.sources"; fi
    fi
    # Without security updates the image would be known to be vulnerable the day it is made.
    if ! grep -qs '^[^#]*bookworm-security' "$1"/host.*; then
        [[ -r /usr/share/keyrings/debian-archive-keyring.gpg ]] ||
            die "Debian's signing keys not found; run: apt-get install debian-archive-keyring"
        cp "$images/debian.sources" "$1/public.sources"
    fi
}

# host_apt_settings: how this host's apt reaches its servers (proxy, CA), as apt.conf lines.
# Nothing else of its configuration is taken: its hooks would act on the host's own package lists.
host_apt_settings() {
    apt-config dump | grep -E '^Acquire::(https?|ForceIPv4|ForceIPv6|Retries)\b' | grep -v '""' || true
}
