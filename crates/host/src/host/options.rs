//! What a host is made of.

use std::path::PathBuf;

use bouvet_image::ImagesOptions;

use super::ImageOptions;
use crate::cgroup::CgroupChoice;
use crate::engine::EngineChoice;
use crate::engine::firecracker::FirecrackerOptions;
use crate::pool::PoolOptions;

/// What a host is made of.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Everything that the host writes goes into a directory of its own in here. Made if it is missing.
    pub dir: PathBuf,
    /// What makes the VMs.
    pub engine: EngineChoice,
    /// What is particular to Firecracker.
    pub firecracker: FirecrackerOptions,
    /// The kernel: an uncompressed `vmlinux`, with its modules in `KERNEL.modules.cpio` beside it.
    pub kernel: PathBuf,
    /// What the kernel is told beside what its engine tells it.
    pub kernel_args: String,
    /// The root file system that all sandboxes share: an ext4, squashfs or erofs image.
    pub rootfs: PathBuf,
    /// Sandboxes that may exist at once.
    pub max_sandboxes: u32,
    /// Where the VMs' cgroups go.
    pub cgroup: CgroupChoice,
    /// The first of the user ids that VMs run as, one each. Unused without privilege.
    pub first_uid: u32,
    /// Where templates are kept, which outlive the host and may be shared by hosts. `None`: every sandbox is a
    /// VM that is booted for it.
    pub templates: Option<PathBuf>,
    /// Clones that wait ready. Needs templates.
    pub pool: Option<PoolOptions>,
    /// Where images are kept, and how they are pulled. `None`: there is the base image alone.
    pub images: Option<ImageOptions>,
    /// Where persistent sandboxes are kept, which outlive the host. `None`: there can be none.
    pub boxes: Option<PathBuf>,
    /// Where named networks are kept, which outlive the host and may be shared by hosts. `None`: there are none.
    pub networks: Option<PathBuf>,
    /// PEM files with certificates of authorities, beside the system's, to whom servers are to prove their names that get
    /// secrets of sandboxes.
    pub authorities: Vec<PathBuf>,
}

impl HostOptions {
    /// A host that keeps all that is its own in `dir`: what its VMs need, and what outlives it, which are `templates`,
    /// `images`, `boxes` and `networks` there. Otherwise it is as `bouvet` is without configuration, but keeps no VMs ready.
    ///
    /// ```
    /// use bouvet_host::{EngineChoice, HostOptions};
    ///
    /// let options = HostOptions::new("/var/lib/agents", "images/vmlinux", "images/debian-devbox.ext4");
    /// assert_eq!(options.boxes, Some("/var/lib/agents/boxes".into()));
    /// let small = HostOptions { max_sandboxes: 4, engine: EngineChoice::Qemu, ..options };
    /// assert_eq!(small.resolved_engine(), EngineChoice::Qemu);
    /// ```
    pub fn new(dir: impl Into<PathBuf>, kernel: impl Into<PathBuf>, rootfs: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            engine: EngineChoice::Auto,
            firecracker: FirecrackerOptions::default(),
            kernel: kernel.into(),
            kernel_args: String::new(),
            rootfs: rootfs.into(),
            max_sandboxes: 100,
            cgroup: CgroupChoice::Detect,
            first_uid: 1_900_000_000,
            templates: Some(dir.join("templates")),
            pool: None,
            images: Some(ImageOptions { dir: dir.join("images"), pull: ImagesOptions::default() }),
            boxes: Some(dir.join("boxes")),
            networks: Some(dir.join("networks")),
            authorities: Vec::new(),
            dir,
        }
    }

    /// The engine that is meant: what [`EngineChoice::Auto`] stands for here.
    pub fn resolved_engine(&self) -> EngineChoice {
        match self.engine {
            EngineChoice::Auto if self.firecracker.can_run() => EngineChoice::Firecracker,
            EngineChoice::Auto => EngineChoice::Qemu,
            chosen => chosen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_firecracker_only_where_it_is_and_hardware_backs_it() {
        let with = |engine, binary: &str| HostOptions {
            engine,
            firecracker: FirecrackerOptions { binary: binary.into(), ..FirecrackerOptions::default() },
            ..HostOptions::new("", "", "")
        };
        let there = std::env::current_exe().unwrap();
        let there = there.to_str().unwrap();
        let auto = |binary| with(EngineChoice::Auto, binary).resolved_engine();
        assert_eq!(auto("/nonexistent/firecracker"), EngineChoice::Qemu);
        let hardware = crate::kvm::Kvm::find() == crate::kvm::Kvm::Hardware;
        let expected = if hardware { EngineChoice::Firecracker } else { EngineChoice::Qemu };
        assert_eq!(auto(there), expected);
        // Named, it is never replaced by another.
        let named = with(EngineChoice::Firecracker, "/nonexistent/firecracker");
        assert_eq!(named.resolved_engine(), EngineChoice::Firecracker);
    }
}
