//! Networks in user space that others make, in front of the same kernel, root file system and QEMU as a sandbox has. The
//! VM is not one of ours: it has a network card, and no guest of ours in it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cpio::newc;
use tempfile::TempDir;
use tokio::process::Child;

use super::network::CLIENT;
use super::{Run, program};

const BUSYBOX: &str = "/bin/busybox";
const QEMU: &str = "qemu-system-x86_64";
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// A network that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rival {
    /// QEMU's own: libslirp, of which slirp4netns is made, too.
    Slirp,
    /// passt.
    Passt,
}

impl Rival {
    pub(super) const ALL: [Self; 2] = [Self::Slirp, Self::Passt];

    /// What the ids of its rows begin with.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Slirp => "slirp",
            Self::Passt => "passt",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Slirp => "libslirp",
            Self::Passt => "passt",
        }
    }

    /// The package that it is in.
    fn package(self) -> &'static str {
        match self {
            Self::Slirp => "libslirp0",
            Self::Passt => "passt",
        }
    }

    /// The largest that it takes whole. QEMU does not let us choose that of libslirp.
    fn mtu_bytes(self) -> u32 {
        match self {
            Self::Slirp => 1500,
            Self::Passt => 65_520,
        }
    }

    /// Why it cannot be measured here with that kernel, if it cannot.
    pub(super) fn missing(self, kernel: &Path) -> Option<String> {
        if !cfg!(target_arch = "x86_64") {
            return Some("it is compared on x86_64 only".to_owned());
        }
        // A program that needs a loader names it at its beginning.
        let is_static = fs::read(BUSYBOX).is_ok_and(|bytes| {
            let beginning = &bytes[..bytes.len().min(4096)];
            !beginning.windows(8).any(|part| part == b"ld-linux")
        });
        let tools = [
            (program::find(QEMU).is_some(), "qemu-system-x86"),
            (is_static, "busybox-static"),
            (self == Self::Slirp || program::find("passt").is_some(), "passt"),
        ];
        if let Some((_, package)) = tools.into_iter().find(|(there, _)| !there) {
            return Some(format!(
                "{package}: not installed; `apt-get install --no-install-recommends {package}`"
            ));
        }
        let modules = modules_of(kernel);
        (!modules.is_file()).then(|| format!("there are no modules `{}`", modules.display()))
    }

    /// That of its package.
    pub(super) async fn version(self) -> String {
        let package = self.package();
        let query = ["-W", "-f", "${Package} ${Version}", package];
        let version = program::run("dpkg-query", &query, program::SHORT).await;
        version.unwrap_or_else(|_| format!("{package} of unknown version"))
    }

    /// Starts what it needs beside QEMU, and says what QEMU is told of it.
    async fn start(self, dir: &Path) -> anyhow::Result<(Option<Child>, String)> {
        if self == Self::Slirp {
            return Ok((None, "user,id=net".to_owned()));
        }
        // passt gives up root before it makes its socket, which nobody else may put another in the place of.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o1777))?;
        let socket = dir.join("passt.sock");
        let path = socket.to_string_lossy().into_owned();
        #[rustfmt::skip] // an option is one line
        let options = [
            "--foreground", "--quiet", "--socket", &path,
            "--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2",
            "--tcp-ports", "none", "--udp-ports", "none",
        ];
        let mut passt = program::command("passt", &options).spawn().context("could not start passt")?;
        let deadline = Instant::now() + program::SHORT;
        while !socket.exists() {
            ensure!(passt.try_wait()?.is_none(), "passt ended at once: it wants a default route");
            ensure!(Instant::now() < deadline, "passt makes no socket");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok((Some(passt), format!("stream,id=net,server=off,addr.type=unix,addr.path={path}")))
    }
}

/// Boots the VM with `rival`'s network, runs the client in it, and returns what its console shows.
pub(super) async fn run(
    run: &Run,
    rival: Rival,
    arguments: &str,
    deadline: Duration,
) -> anyhow::Result<String> {
    let (kernel, rootfs) = (&run.config.host.kernel, &run.config.host.rootfs);
    let dir = TempDir::new()?;
    let initramfs = dir.path().join("initramfs");
    let modules = fs::read(modules_of(kernel)).context("the kernel's modules")?;
    write(&mut fs::File::create(&initramfs)?, &init(rival, arguments), &modules)?;
    // It dies when it is dropped.
    let (_passt, netdev) = rival.start(dir.path()).await?;
    let (accelerator, cpu, words) = match run.report.machine.has_hardware() {
        true => ("kvm", "host", String::new()),
        false => {
            let khz = bouvet_host::measure_tsc_khz().await;
            let words =
                format!(" mitigations=off norandmaps clearcpuid=cx16 tsc=reliable tsc_early_khz={khz}");
            ("tcg,thread=multi,tb-size=128", "max,-erms,-fsrm", words)
        }
    };
    let base = format!("driver=file,node-name=base,filename={},read-only=on,locking=off", rootfs.display());
    let append = format!("quiet console=hvc0 panic=-1 reboot=t random.trust_cpu=on no_timer_check{words}");
    let (kernel, initramfs) = (kernel.to_string_lossy(), initramfs.to_string_lossy());
    // All that a sandbox's VM has in `command_line` of crates/host/src/engine/qemu/args.rs and that tells in figures.
    #[rustfmt::skip] // an option is one line
    let options = [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "microvm,acpi=on,pic=off,rtc=on,isa-serial=off,x-option-roms=off",
        "-bios", "qboot.rom",
        "-accel", accelerator, "-cpu", cpu, "-smp", "1", "-m", "256",
        "-blockdev", &base, "-device", "virtio-blk-device,drive=base",
        "-device", "virtio-serial-device",
        "-chardev", "stdio,id=console", "-device", "virtconsole,chardev=console",
        "-netdev", &netdev, "-device", "virtio-net-device,netdev=net",
        "-kernel", &kernel, "-initrd", &initramfs, "-append", &append,
    ];
    program::run(QEMU, &options, deadline).await
}

/// `KERNEL.modules.cpio`.
fn modules_of(kernel: &Path) -> PathBuf {
    let mut path = kernel.as_os_str().to_owned();
    path.push(".modules.cpio");
    path.into()
}

/// What the VM runs first. There is no console before `virtio_mmio` is loaded.
fn init(rival: Rival, arguments: &str) -> String {
    let mtu_bytes = rival.mtu_bytes();
    format!(
        "#!{BUSYBOX} sh
busybox() {{ {BUSYBOX} \"$@\"; }}
busybox mount -t devtmpfs none /dev
for module in virtio_mmio virtio_blk failover net_failover virtio_net; do busybox insmod /modules/$module.ko; done
exec >/dev/hvc0 2>&1
busybox mount -t ext4 -o ro /dev/vda /root
busybox mount -t tmpfs none /root/tmp
busybox cp /network.py /root/tmp
busybox ip link set lo up
busybox ip link set eth0 mtu {mtu_bytes} up
busybox ip addr add 10.0.2.15/24 dev eth0
busybox ip route add default via 10.0.2.2
busybox chroot /root /usr/bin/python3 /tmp/network.py {arguments}
busybox reboot -f
"
    )
}

fn write(into: &mut dyn Write, init: &str, modules: &[u8]) -> io::Result<()> {
    into.write_all(modules)?;
    // Another archive may begin at a multiple of four.
    into.write_all(&[0; 4][..modules.len().wrapping_neg() % 4])?;
    let busybox = fs::read(BUSYBOX)?;
    let entries: [(&str, u32, &[u8]); 6] = [
        ("bin", DIRECTORY, b""),
        ("dev", DIRECTORY, b""),
        ("root", DIRECTORY, b""),
        ("bin/busybox", EXECUTABLE, &busybox),
        ("network.py", FILE, CLIENT.as_bytes()),
        ("init", EXECUTABLE, init.as_bytes()),
    ];
    for (inode, (name, mode, content)) in (1..).zip(entries) {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut entry = newc::Builder::new(name).ino(inode).mode(mode).write(&mut *into, size);
        entry.write_all(content)?;
        entry.finish()?;
    }
    newc::trailer(&mut *into).map(drop)
}
