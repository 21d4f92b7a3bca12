//! Operations on a host's images other than pulling: names, archives, passwords, and room on disk.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::PathBuf;

use bouvet_image::cache::Pruned;
use bouvet_image::load::LoadedImage;
use bouvet_image::{Digest, PullEvent, Reference};

use super::{Host, ImageError, bases};
use crate::boxconfig::CacheConfig;
use crate::boxes::Boxes;

impl Host {
    /// The base images by name, with their files: [`BASE_IMAGE`](crate::BASE_IMAGE), and
    /// [`FULL_BASE_IMAGE`](crate::FULL_BASE_IMAGE) if this host has it. They are not images of the cache.
    ///
    /// ```no_run
    /// # fn example(host: &bouvet_host::Host) {
    /// for (name, file) in host.base_images() {
    ///     println!("{name} is {}", file.display());
    /// }
    /// # }
    /// ```
    pub fn base_images(&self) -> Vec<(&'static str, PathBuf)> {
        bases::list(&self.0.base.path)
    }

    /// Removes a reference, and with the last one its image, or an image by its id. What is in use stays; with `force` its
    /// names go, and the image once it is unused and room is wanted.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// host.remove_image("nginx:alpine", false).await?;
    /// # Ok(()) }
    /// ```
    pub async fn remove_image(&self, what: &str, force: bool) -> Result<(), ImageError> {
        Ok(self.images(&CacheConfig::default())?.remove(what, force).await?)
    }

    /// Gives an image in the cache one more name.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// host.tag_image("nginx:alpine", "web:1").await?;
    /// # Ok(()) }
    /// ```
    pub async fn tag_image(&self, what: &str, name: &str) -> Result<Digest, ImageError> {
        let name: Reference = name.parse()?;
        Ok(self.images(&CacheConfig::default())?.tag(what, &name).await?)
    }

    /// Removes unused images that have no name, or all unused ones. Images of sandboxes that can be started stay. If the
    /// record of a persistent sandbox cannot be read, nothing is removed.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let pruned = host.prune_images(true).await?;
    /// println!("{} bytes", pruned.bytes);
    /// # Ok(()) }
    /// ```
    pub async fn prune_images(&self, all: bool) -> Result<Pruned, ImageError> {
        let images = self.images(&CacheConfig::default())?;
        let mut keep = BTreeSet::new();
        for sandbox in self.list() {
            if let Some(image) = images.get(&sandbox.config.image).await? {
                keep.insert(image.id.clone());
            }
        }
        let host = self.clone();
        // It reads the records of all persistent sandboxes.
        let of_boxes =
            tokio::task::spawn_blocking(move || host.0.boxes.as_ref().map_or(Ok(Vec::new()), Boxes::images));
        let of_boxes = of_boxes.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        keep.extend(of_boxes.map_err(ImageError::InUse)?.iter().filter_map(|id| id.parse().ok()));
        Ok(images.prune(all, keep).await?)
    }

    /// Loads the images of an archive: of `docker save`, or in the OCI layout. `name` is for messages.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let archive = std::fs::File::open("app.tar")?;
    /// for image in host.load_images("app.tar", archive, |_| ()).await? {
    ///     println!("{} {:?}", image.id, image.references);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn load_images(
        &self,
        name: &str,
        archive: impl Read + Send + 'static,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Vec<LoadedImage>, ImageError> {
        Ok(self.images(&CacheConfig::default())?.load(name, archive, progress).await?)
    }

    /// Writes images as an archive that Docker, podman and skopeo read: one layer each.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// host.save_images(&["nginx:alpine".into()], std::fs::File::create("nginx.tar")?).await?;
    /// # Ok(()) }
    /// ```
    pub async fn save_images(
        &self,
        names: &[String],
        into: impl Write + Send + 'static,
    ) -> Result<(), ImageError> {
        Ok(self.images(&CacheConfig::default())?.save(names, into).await?)
    }

    /// Checks a password with a registry, and keeps it as `docker login` does. Returns the registry's name.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host, token: String) -> Result<(), Box<dyn std::error::Error>> {
    /// host.login("ghcr.io", "alice", token).await?;
    /// # Ok(()) }
    /// ```
    pub async fn login(
        &self,
        registry: &str,
        username: &str,
        password: String,
    ) -> Result<String, ImageError> {
        Ok(self.images(&CacheConfig::default())?.login(registry, username, password).await?)
    }

    /// Forgets the password for a registry. Returns its name, and whether there was one.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let (registry, was_known) = host.logout("ghcr.io").await?;
    /// # Ok(()) }
    /// ```
    pub async fn logout(&self, registry: &str) -> Result<(String, bool), ImageError> {
        Ok(self.images(&CacheConfig::default())?.logout(registry).await?)
    }
}
