//! The base images: root file systems of the host's own, which need no registry and no cache.

use std::path::{Path, PathBuf};

use super::ImageError;
use crate::engine::Rootfs;
use crate::images;

/// Name of the base image that `HostOptions::rootfs` is. No image at all means this one too.
pub const BASE_IMAGE: &str = "base";
/// Name of the second base image, with more compilers and Python packages: [`FULL_BASE_FILE`] beside the first.
pub const FULL_BASE_IMAGE: &str = "devbox-full";
/// File name of the second base image, as `make rootfs BASE=full` writes it.
const FULL_BASE_FILE: &str = "devbox-full.ext4";

/// Whether an image's name means a base image of the host, and no OCI image.
///
/// ```
/// use bouvet_host::is_base_image;
///
/// assert!(is_base_image("") && is_base_image("base") && is_base_image("devbox-full"));
/// assert!(!is_base_image("debian:12") && !is_base_image("docker.io/library/base"));
/// ```
pub fn is_base_image(image: &str) -> bool {
    matches!(image, "" | BASE_IMAGE | FULL_BASE_IMAGE)
}

/// The root file system of the base image `image`, where the first one is `base`; `None` if it is an OCI image.
pub(super) async fn find(image: &str, base: &Rootfs) -> Result<Option<Rootfs>, ImageError> {
    match image {
        "" | BASE_IMAGE => Ok(Some(base.clone())),
        FULL_BASE_IMAGE => {
            let path = base.path.with_file_name(FULL_BASE_FILE);
            let opened = tokio::task::spawn_blocking(move || open(&path)).await;
            opened.unwrap_or_else(|stopped| std::panic::resume_unwind(stopped.into_panic())).map(Some)
        }
        _ => Ok(None),
    }
}

/// The base images that are there, where the first one is the file `base`.
pub(super) fn list(base: &Path) -> Vec<(&'static str, PathBuf)> {
    let full = base.with_file_name(FULL_BASE_FILE);
    let mut there = vec![(BASE_IMAGE, base.to_owned())];
    if full.is_file() {
        there.push((FULL_BASE_IMAGE, full));
    }
    there
}

fn open(path: &Path) -> Result<Rootfs, ImageError> {
    let unusable = |source| ImageError::Base { name: FULL_BASE_IMAGE, source };
    images::check_rootfs(path).map_err(unusable)?;
    Rootfs::base(path).map_err(|error| unusable(crate::EngineError::Prepare("the rootfs", error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base_in(dir: &Path) -> Rootfs {
        Rootfs { path: dir.join("debian-devbox.ext4"), identity: "1".into(), is_base: true, sidecar: None }
    }

    #[tokio::test]
    async fn full_base_is_the_file_beside_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let base = base_in(dir.path());
        assert_eq!(list(&base.path), [(BASE_IMAGE, base.path.clone())]);
        let missing = find(FULL_BASE_IMAGE, &base).await.unwrap_err();
        assert!(crate::chain(&missing).contains("devbox-full.ext4"), "{}", crate::chain(&missing));
        // A file that is there but holds no file system is refused before any VM is made.
        let path = dir.path().join(FULL_BASE_FILE);
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(find(FULL_BASE_IMAGE, &base).await, Err(ImageError::Base { .. })));
        let mut squashfs = b"hsqs".to_vec();
        squashfs.resize(4096, 0);
        std::fs::write(&path, squashfs).unwrap();
        assert_eq!(list(&base.path), [(BASE_IMAGE, base.path.clone()), (FULL_BASE_IMAGE, path.clone())]);
        let found = find(FULL_BASE_IMAGE, &base).await.unwrap().unwrap();
        assert!(found.path == path && found.is_base && found.identity != base.identity);
    }

    #[tokio::test]
    async fn other_names_are_oci_images() {
        let base = base_in(Path::new("/nonexistent"));
        assert_eq!(find("", &base).await.unwrap(), Some(base.clone()));
        assert_eq!(find(BASE_IMAGE, &base).await.unwrap(), Some(base.clone()));
        assert_eq!(find("devbox-full:latest", &base).await.unwrap(), None);
    }
}
