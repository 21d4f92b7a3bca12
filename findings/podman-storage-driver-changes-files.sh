#!/bin/bash
# Guess: podman gives an image the same files whatever its storage driver.
# Found: it does not. Case 1: a layer removes a directory and makes it again (`.wh.d`, then `d/`). With vfs `d` is new; with
# overlay the removed files are back. Case 2: a layer has `lib/x` where a lower layer has a link `lib -> usr/lib`. With
# vfs the file goes to `usr/lib`; with overlay a directory replaces the link, and all of `/lib` is gone.
# Versions: podman 4.3.1, Linux 5.10 or newer with overlayfs. Needs root.
# Why it matters: a program that merges layers has no single reference. People test images on overlay, so follow that one.
set -euo pipefail
podman_version=4.3.1+ds1-8+deb12u1+b3
[[ $(id -u) == 0 ]] || { echo "run as root" >&2; exit 2; }

work=$(mktemp -d)
cleanup() {
    umount "$work"/*/overlay/overlay 2>/dev/null || true
    umount "$work"/*/overlay 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
mkdir debs root
(cd debs && apt-get -qq download "podman=$podman_version" crun conmon golang-github-containers-common \
    libsubid4 libgpgme11 libassuan0 libgpg-error0 libdevmapper1.02.1 2>/dev/null)
for package in debs/*.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/$(uname -m)-linux-gnu:$work/root/lib/$(uname -m)-linux-gnu
export PATH=$work/root/usr/bin:$PATH
printf '[engine]\nruntime="crun"\nconmon_path=["%s"]\n[engine.runtimes]\ncrun=["%s"]\n' \
    "$work/root/usr/bin/conmon" "$work/root/usr/bin/crun" >containers.conf
export CONTAINERS_CONF=$work/containers.conf
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json

cat >image.py <<'PYTHON'
import hashlib, io, json, os, sys, tarfile

def layer(*entries):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0o755
            if kind == tarfile.SYMTYPE:
                entry.linkname = content
            elif kind == tarfile.REGTYPE:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return data.getvalue()

D, F, L = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE
images = {
    "remade": [layer(("d", D, ""), ("d/old", F, "old")), layer((".wh.d", F, ""), ("d", D, ""), ("d/new", F, "new"))],
    "linked": [layer(("usr", D, ""), ("usr/lib", D, ""), ("usr/lib/a", F, "a"), ("lib", L, "usr/lib")),
               layer(("lib/x", F, "x"))],
}
for image, layers in images.items():
    os.makedirs(f"{image}/blobs/sha256")
    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        open(f"{image}/blobs/sha256/{digest}", "wb").write(data)
        return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + digest, "size": len(data)}
    described = [blob("layer.v1.tar", data) for data in layers]
    config = {"os": "linux", "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "config": {},
              "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in described]}}
    manifest = {"schemaVersion": 2, "config": blob("config.v1+json", json.dumps(config).encode()), "layers": described}
    entry = blob("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    json.dump({"schemaVersion": 2, "manifests": [entry]}, open(f"{image}/index.json", "w"))
    json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{image}/oci-layout", "w"))
PYTHON
python3 image.py

files() { # IMAGE DRIVER
    local podman=(podman --root "$work/store-$2" --runroot "$work/run-$2" --storage-driver "$2" --events-backend none)
    local id root
    id=$("${podman[@]}" pull --quiet --signature-policy policy.json "oci:$1:t" 2>/dev/null | tail -1)
    root=$("${podman[@]}" image mount "$id" | tail -1)
    (cd "$root" && find . -mindepth 1 \( -type l -printf '%P->%l\n' -o -printf '%P\n' \) | sort | paste -sd' ')
    "${podman[@]}" image unmount "$id" >/dev/null
}

podman --version
failed=0
expect() { # IMAGE DRIVER FILES
    local found
    found=$(files "$1" "$2")
    echo "$1, $2: $found"
    [[ $found == "$3" ]] || { echo "  changed: it was: $3"; failed=1; }
}
expect remade vfs "d d/new"
expect remade overlay "d d/new d/old"
expect linked vfs "lib->usr/lib usr usr/lib usr/lib/a usr/lib/x"
expect linked overlay "lib lib/x usr usr/lib usr/lib/a"
exit $failed
# Seen:
#   podman version 4.3.1
#   remade, vfs: d d/new
#   remade, overlay: d d/new d/old
#   linked, vfs: lib->usr/lib usr usr/lib usr/lib/a usr/lib/x
#   linked, overlay: lib lib/x usr usr/lib usr/lib/a
