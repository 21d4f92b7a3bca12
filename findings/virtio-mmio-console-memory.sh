#!/bin/bash
# Guess: a virtio-serial port in a microVM costs what it costs in a PC: QEMU gives each of its queues 128 entries, for which
# Linux allocates 128 pages, 512 KiB.
# What happens: over virtio-mmio QEMU offers every driver 1024 entries, whatever the device asked for, and Linux
# (virtio_console, fill_queue) fills each receive queue with a page per entry: 4 MiB for each port and 4 MiB for the control
# queue, never given back. One console and one port take 12 MiB of a microVM's memory, and 1.1 MiB of a PC's.
# Versions: QEMU 7.2.22, Linux 6.12. It matters to who sizes microVMs of 128 MiB: count ports.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
package=$(apt-cache depends linux-image-6.12-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
apt-get -qq -o APT::Sandbox::User=root download "$package" busybox-static 2>/dev/null
for deb in *.deb; do dpkg-deb -x "$deb" tree; done
mkdir -p root/bin root/proc root/dev root/modules
cp tree/bin/busybox root/bin/busybox
ln -s busybox root/bin/sh
find tree -path '*/drivers/virtio/virtio_*' -name '*.ko*' -exec cp {} root/modules/ \;
find root/modules -name '*.xz' -exec xz -d {} +
cat > root/init <<'INIT'
#!/bin/sh
export PATH=/bin
busybox mount -t proc p /proc
busybox mount -t devtmpfs d /dev
for round in 1 2 3; do for module in /modules/*pci*.ko /modules/virtio_mmio.ko; do busybox insmod $module 2>/dev/null; done; done
while [ ! -e /dev/hvc0 ]; do busybox sleep 0.1; done
busybox sleep 1
echo "$(busybox awk '$1 == "kmalloc-4k" { print $2 }' /proc/slabinfo) buffers of 4 KiB in all" > /dev/hvc0
busybox sleep 1
busybox reboot -f
INIT
chmod 755 root/init
(cd root && find . | ../tree/bin/busybox cpio -o -H newc 2>/dev/null) > initrd
khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
run() {
    local machine=$1 serial=$2
    timeout 300 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine "$machine" -accel tcg \
        -cpu max -m 256 -kernel tree/boot/vmlinuz-* -initrd initrd -device "$serial" \
        -append "quiet console=hvc0 panic=-1 reboot=t rdinit=/init no_timer_check tsc=reliable tsc_early_khz=$khz" \
        -chardev "file,path=$work/$serial.log,id=console" -device virtconsole,chardev=console \
        -chardev null,id=port -device virtserialport,chardev=port,name=port < /dev/null
    echo "$machine, $serial: $(tr -d '\r' < "$work/$serial.log" | grep buffers)"
}
qemu-system-x86_64 --version | head -1
echo "$package"
seen=$(run microvm,acpi=on virtio-serial-device; run pc virtio-serial-pci)
echo "$seen"
mmio=$(sed -n 's/^microvm.*: \([0-9]*\) .*/\1/p' <<< "$seen")
pci=$(sed -n 's/^pc.*: \([0-9]*\) .*/\1/p' <<< "$seen")
[[ $mmio -ge 3072 && $pci -lt 600 ]]
