//! Hosts for tests, each in a directory of its own.

use std::fs::File;
use std::path::{Path, PathBuf};

use bouvet_host::{
    BoxConfig, CgroupChoice, EngineChoice, FirecrackerOptions, Host, HostOptions, ImageOptions,
    ImagesOptions, NetworkMode, PoolOptions, ResourceConfig,
};
use tempfile::TempDir;

use crate::probe;
use crate::skip::skipped;

/// Sandboxes that a test's host may have at once.
pub const MAX_SANDBOXES: u32 = 12;

/// A host, and the directory that it must leave empty.
#[derive(Debug)]
pub struct Site {
    /// The host.
    pub host: Host,
    parent: TempDir,
    /// A cache stays.
    _images: TempDir,
}

/// What hosts of tests differ in.
#[derive(Debug, Default)]
struct Parts {
    templates: Option<PathBuf>,
    pool: Option<PoolOptions>,
    boxes: Option<PathBuf>,
    authorities: Vec<PathBuf>,
    /// For the kernel, after those of the machine that tests run on.
    kernel_args: &'static str,
}

/// What makes real VMs.
#[derive(Debug, Clone, Copy)]
pub enum Vmm {
    /// QEMU.
    Qemu,
    /// Firecracker, which the environment names.
    Firecracker,
}

impl Vmm {
    /// The engine, and what its VMs boot from; `None`, and the test is skipped, where it cannot run.
    async fn ground(self) -> Option<(EngineChoice, (PathBuf, PathBuf))> {
        match self {
            Self::Qemu => Some((EngineChoice::Qemu, images()?)),
            Self::Firecracker => {
                let images = images()?;
                match firecracker_lacks(&images.0).await {
                    None => Some((EngineChoice::Firecracker, images)),
                    Some(lack) => {
                        skipped("REQUIRE_KVM", &lack);
                        None
                    }
                }
            }
        }
    }
}

impl Site {
    /// On the engine without VMs.
    pub async fn fake() -> Option<Self> {
        let images = (Path::new("/").into(), Path::new("/").into());
        Some(Self::start(EngineChoice::Fake, images, Parts::default()).await)
    }

    /// On the engine without VMs, with the persistent sandboxes in `dir`.
    pub async fn fake_with_boxes(dir: &Path) -> Self {
        let images = (Path::new("/").into(), Path::new("/").into());
        let parts = Parts { boxes: Some(dir.to_owned()), ..Parts::default() };
        Self::start(EngineChoice::Fake, images, parts).await
    }

    /// On QEMU, without a pool; `None` like [`Site::pooled`].
    pub async fn qemu() -> Option<Self> {
        Self::pooled(Vmm::Qemu, None).await
    }

    /// On Firecracker, without a pool; `None` like [`Site::pooled`].
    pub async fn firecracker() -> Option<Self> {
        Self::pooled(Vmm::Firecracker, None).await
    }

    /// On VMs of `vmm`, with a pool; `None`, and the test is skipped, where it cannot run.
    pub async fn pooled(vmm: Vmm, pool: Option<PoolOptions>) -> Option<Self> {
        let (engine, images) = vmm.ground().await?;
        Some(
            Self::start(engine, images, Parts { templates: Some(templates()), pool, ..Parts::default() })
                .await,
        )
    }

    /// On VMs of `vmm`, with the templates in `dir`; `None` like [`Site::pooled`].
    pub async fn with_templates(vmm: Vmm, dir: &Path) -> Option<Self> {
        let (engine, images) = vmm.ground().await?;
        Some(Self::start(engine, images, Parts { templates: Some(dir.to_owned()), ..Parts::default() }).await)
    }

    /// On VMs of `vmm`, with the persistent sandboxes in `dir`; `None` like [`Site::pooled`].
    pub async fn with_boxes(vmm: Vmm, dir: &Path) -> Option<Self> {
        let (engine, images) = vmm.ground().await?;
        Some(Self::start(engine, images, Parts { boxes: Some(dir.to_owned()), ..Parts::default() }).await)
    }

    /// On VMs of `vmm`, with servers trusted that get secrets by the authority in `file`; `None` like [`Site::pooled`].
    pub async fn with_authority(vmm: Vmm, file: PathBuf) -> Option<Self> {
        let (engine, images) = vmm.ground().await?;
        let authorities = vec![file];
        let parts = Parts { templates: Some(templates()), authorities, ..Parts::default() };
        Some(Self::start(engine, images, parts).await)
    }

    /// On VMs of `vmm` whose kernels are told `kernel_args` too; `None` like [`Site::pooled`].
    pub async fn with_kernel_args(vmm: Vmm, kernel_args: &'static str) -> Option<Self> {
        let (engine, images) = vmm.ground().await?;
        Some(Self::start(engine, images, Parts { kernel_args, ..Parts::default() }).await)
    }

    async fn start(
        engine: EngineChoice,
        (kernel, rootfs): (PathBuf, PathBuf),
        Parts { templates, pool, boxes, authorities, kernel_args: more_args }: Parts,
    ) -> Self {
        let (parent, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = HostOptions {
            engine,
            firecracker: FirecrackerOptions {
                binary: firecracker_binary().unwrap_or_default(),
                ..FirecrackerOptions::default()
            },
            kernel_args: format!("{} {more_args}", kernel_args()),
            max_sandboxes: MAX_SANDBOXES,
            // Only root can bound VMs where no cgroup was delegated.
            cgroup: if rustix::process::geteuid().is_root() {
                CgroupChoice::Detect
            } else {
                CgroupChoice::Off
            },
            templates,
            pool,
            images: Some(ImageOptions { dir: images.path().join("cache"), pull: ImagesOptions::default() }),
            boxes: Some(boxes.unwrap_or_else(|| parent.path().join("boxes"))),
            networks: Some(parent.path().join("networks")),
            authorities,
            ..HostOptions::new(parent.path().join("host"), kernel, rootfs)
        };
        Self { host: Host::start(options).await.unwrap(), parent, _images: images }
    }

    /// The directory in which the host has its own.
    pub fn dir(&self) -> PathBuf {
        self.parent.path().join("host")
    }

    /// Ends the host, and checks that nothing of it is left.
    pub async fn end(self) {
        self.host.shut_down().await;
        let left: Vec<_> = std::fs::read_dir(self.parent.path()).unwrap().flatten().collect();
        let left: Vec<_> = left.iter().map(std::fs::DirEntry::path).filter(|path| !is_empty(path)).collect();
        assert!(left.is_empty(), "the host left {left:?}");
    }
}

/// All tests share one template of each size.
pub fn templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/templates")
}

/// Where persistent sandboxes are, their directory stays.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn kernel_args() -> String {
    let args = std::env::var_os("BOUVET_KERNEL_ARGS");
    args.and_then(|args| args.into_string().ok()).unwrap_or_default()
}

fn firecracker_binary() -> Option<PathBuf> {
    std::env::var_os("BOUVET_FIRECRACKER").map(PathBuf::from)
}

/// What is missing for Firecracker to boot `kernel` here, if anything is.
async fn firecracker_lacks(kernel: &Path) -> Option<String> {
    let Some(binary) = firecracker_binary() else {
        return Some("BOUVET_FIRECRACKER names no binary to test".into());
    };
    if !binary.is_file() {
        return Some(format!("there is no Firecracker at {}", binary.display()));
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm cannot be used: {error}"));
    }
    let booted = probe::boots(&binary, kernel, &kernel_args()).await;
    booted.err().map(|said| format!("Firecracker cannot boot the kernel here: {said}"))
}

/// The kernel and the rootfs that `make` built, or those that the environment names.
pub fn images() -> Option<(PathBuf, PathBuf)> {
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/output");
    let path = |variable: &str, file: &str| {
        std::env::var_os(variable).map_or_else(|| output.join(file), PathBuf::from)
    };
    let kernel = path("BOUVET_KERNEL", "vmlinux");
    let rootfs = path("BOUVET_ROOTFS", "debian-devbox.ext4");
    for (what, file) in [("kernel", &kernel), ("rootfs", &rootfs)] {
        if !file.exists() {
            skipped("REQUIRE_VM", &format!("there is no {what} at images/output: `make images` makes it"));
            return None;
        }
    }
    if !cfg!(target_arch = "x86_64") {
        skipped("REQUIRE_VM", "VMs need x86_64");
        return None;
    }
    Some((kernel, rootfs))
}

/// The sandbox of most tests: as small as MCP's, and as alone.
pub fn small() -> BoxConfig {
    let resources = ResourceConfig { vcpus: 1, memory_mb: 256, ..ResourceConfig::default() };
    BoxConfig { resources, privileged: true, network: NetworkMode::None, ..BoxConfig::default() }
}
