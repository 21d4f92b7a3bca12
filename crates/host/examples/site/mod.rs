//! What the examples run on.

use std::path::{Path, PathBuf};

use bouvet_host::{BoxConfig, CgroupChoice, HostOptions, ResourceConfig};

/// A host with the kernel and the base image of `make images`; `BOUVET_KERNEL` and `BOUVET_ROOTFS` name others. The first
/// sandbox of its kind makes a template, which later ones are cloned from; `BOUVET_TEMPLATES` says where it is kept.
pub(crate) fn options() -> HostOptions {
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/output");
    let dir = std::env::temp_dir().join("bouvet-example");
    let path = |variable: &str, default: PathBuf| std::env::var_os(variable).map_or(default, PathBuf::from);
    let kernel = path("BOUVET_KERNEL", output.join("vmlinux"));
    let rootfs = path("BOUVET_ROOTFS", output.join("debian-devbox.ext4"));
    HostOptions {
        max_sandboxes: 4,
        // Only root can bound VMs where no cgroup was delegated.
        cgroup: match rustix::process::geteuid().is_root() {
            true => CgroupChoice::Detect,
            false => CgroupChoice::Off,
        },
        templates: Some(path("BOUVET_TEMPLATES", dir.join("templates"))),
        ..HostOptions::new(dir, kernel, rootfs)
    }
}

/// A sandbox that takes little of the machine.
pub(crate) fn small() -> BoxConfig {
    let resources = ResourceConfig { vcpus: 1, memory_mb: 256, ..ResourceConfig::default() };
    BoxConfig { resources, ..BoxConfig::default() }
}
