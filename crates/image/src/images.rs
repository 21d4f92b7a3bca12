//! From a reference to a root file system that a VM can mount.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Limits;
use crate::cache::scratch::Scratch;
use crate::cache::shelf::Lease;
use crate::cache::{self, CacheError, CacheOptions, Found, ImageInfo, Pruned, Store};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::progress::PullEvent;
use crate::pull::{Pull, PullError, Wanted, blocking};
use crate::reference::Reference;
use crate::registry::{Client, RegistryError, RegistryOptions};

/// How images are pulled, beside where they are kept.
///
/// ```
/// use bouvet_image::ImagesOptions;
///
/// let mut options = ImagesOptions::default();
/// options.registry.insecure_registries.push("registry.lan:5000".into());
/// options.limits.max_layers = 64;
/// ```
#[derive(Debug, Clone, Default)]
pub struct ImagesOptions {
    /// Which registries are spoken with, and how.
    pub registry: RegistryOptions,
    /// What an image may cost.
    pub limits: Limits,
}

/// Why pulling cannot be prepared.
///
/// ```
/// use bouvet_image::images::OpenError;
/// use bouvet_image::{Images, ImagesOptions};
///
/// match Images::uncached("/proc/images", ImagesOptions::default()) {
///     Err(OpenError::Cache(error)) => assert!(error.to_string().contains("/proc/images")),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Pulls images, and keeps them. Cheap to clone.
///
/// ```no_run
/// use bouvet_image::{CacheOptions, Images, ImagesOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = CacheOptions::new("images");
/// let images = Images::open(cache, ImagesOptions::default())?;
/// let image = images.pull(&"nginx:alpine".parse()?, |_| ()).await?;
/// println!("{} is at {}", image.id, image.rootfs.display());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) home: Home,
    pub(crate) client: Client,
    pub(crate) limits: Limits,
}

#[derive(Debug)]
pub(crate) enum Home {
    Cache(Store),
    /// Each pull has a directory of its own in this one, which goes with its image.
    Scratch(PathBuf),
}

/// An image that can be booted. While it is held, nobody removes its root file system.
///
/// ```no_run
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// if let Some(image) = images.get("nginx:alpine").await? {
///     println!("{} takes {} bytes at {}", image.id, image.size_bytes, image.rootfs.display());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// What it was asked for by.
    pub reference: String,
    /// The root file system: a file with an EROFS image, to be mounted read-only.
    pub rootfs: PathBuf,
    /// How it is to be run.
    pub config: ImageConfig,
    /// What the root file system takes on disk.
    pub size_bytes: u64,
    /// Whether a version of this library converted it whose merge of layers was wrong. Files may be missing until it is
    /// pulled again.
    pub is_outdated: bool,
    _lease: Lease,
    _scratch: Option<Scratch>,
}

impl Image {
    /// Tells the root file system from every other, including that of the same image by another version of this library.
    ///
    /// ```no_run
    /// # fn example(image: &bouvet_image::Image) {
    /// println!("{} is {}", image.rootfs.display(), image.rootfs_identity());
    /// # }
    /// ```
    pub fn rootfs_identity(&self) -> String {
        let dir = self.rootfs.parent().and_then(|dir| dir.file_name());
        dir.map_or_else(|| self.id.to_string(), |name| name.to_string_lossy().into_owned())
    }
}

impl Images {
    /// Pulls into a cache. Removes what killed processes left half made there.
    pub fn open(cache: CacheOptions, options: ImagesOptions) -> Result<Self, OpenError> {
        Self::new(Home::Cache(Store::open(cache)?), options)
    }

    /// Pulls into `dir` and keeps nothing: a root file system is gone when its [`Image`] is dropped. What killed
    /// processes left there is removed now.
    pub fn uncached(dir: impl Into<PathBuf>, options: ImagesOptions) -> Result<Self, OpenError> {
        let dir = dir.into();
        cache::prepare(&dir)?;
        Scratch::sweep(&dir).map_err(|source| CacheError::Directory { dir: dir.clone(), source })?;
        Self::new(Home::Scratch(dir), options)
    }

    fn new(home: Home, options: ImagesOptions) -> Result<Self, OpenError> {
        let client = Client::new(options.registry)?;
        Ok(Self { shared: Arc::new(Shared { home, client, limits: options.limits }) })
    }

    /// The image that `reference` means now, by what its registry says. Downloads and converts what is missing;
    /// `progress` is told how far that is.
    ///
    /// ```no_run
    /// use bouvet_image::Reference;
    ///
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// let reference: Reference = "nginx:alpine".parse()?;
    /// let image = images.pull(&reference, |event| println!("{event:?}")).await?;
    /// println!("{} runs {:?}", image.reference, image.config.cmd);
    /// # Ok(()) }
    /// ```
    pub async fn pull(
        &self,
        reference: &Reference,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, PullError> {
        let failed = |cause| PullError { reference: reference.to_string(), damaged: None, cause };
        let (store, scratch) = match &self.shared.home {
            Home::Cache(store) => (store.clone(), None),
            Home::Scratch(dir) => {
                let (scratch, store) = Scratch::new(dir).map_err(|error| failed(error.into()))?;
                (store, Some(scratch))
            }
        };
        let Shared { client, limits, .. } = &*self.shared;
        let from = Wanted::Reference(reference);
        let pull = Pull { client, limits, store, from, progress: Arc::new(progress) };
        let (id, found) = match pull.run().await {
            Ok(pulled) => pulled,
            Err(cause) => {
                let (store, lost) = (pull.store.clone(), reference.clone());
                let damaged = blocking(move || store.damage_of_reference(&lost)).await;
                return Err(PullError { damaged, ..failed(cause) });
            }
        };
        Ok(image(id, reference.to_string(), found, scratch))
    }

    /// The image that a reference meant when it was pulled last, or that has this id (at least 12 digits of it), if
    /// it is in the cache. Asks no registry.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// match images.get("nginx:alpine").await? {
    ///     Some(image) => println!("{}", image.id),
    ///     None => println!("it was not pulled yet"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn get(&self, what: &str) -> Result<Option<Image>, CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Ok(None) };
        let found = store.get(what).await?;
        Ok(found.map(|(id, found)| image(id, what.to_owned(), found, None)))
    }

    /// The same for a reference, but nothing if it names a file or directory on this machine that has changed since it
    /// was pulled.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// let reference = "docker-archive:/srv/app.tar".parse()?;
    /// let image = match images.get_unchanged(&reference).await? {
    ///     Some(image) => image,
    ///     None => images.pull(&reference, |_| ()).await?,
    /// };
    /// # Ok(()) }
    /// ```
    pub async fn get_unchanged(&self, reference: &Reference) -> Result<Option<Image>, CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Ok(None) };
        if store.has_changed(reference) {
            return Ok(None);
        }
        self.get(&reference.to_string()).await
    }

    /// Compares every image in the cache with its checksums, which takes as long as reading all of them. Damaged ones are set
    /// aside, so that their next use pulls them again. Returns those, and those that are in use.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// for image in images.verify().await? {
    ///     println!("{:?} is damaged: {:?}", image.references, image.damaged);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn verify(&self) -> Result<Vec<ImageInfo>, CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Ok(Vec::new()) };
        let store = store.clone();
        blocking(move || store.verify().map_err(|error| store.failed(error))).await
    }

    /// What is in the cache, the longest unused first.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// let used_bytes: u64 = images.list().await?.iter().map(|image| image.size_bytes).sum();
    /// println!("{used_bytes} bytes");
    /// # Ok(()) }
    /// ```
    pub async fn list(&self) -> Result<Vec<ImageInfo>, CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Ok(Vec::new()) };
        let store = store.clone();
        blocking(move || store.list().map_err(|error| store.failed(error))).await
    }

    /// Removes from the cache: a reference, and with the last one its image; or by its id (at least 12 digits of it)
    /// an image and all its references. What is in use is refused; with `force` its references go, and the image as soon
    /// as it is unused and room is wanted.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// images.remove("nginx:alpine", false).await?;
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, what: &str, force: bool) -> Result<(), CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Err(CacheError::Unknown(what.to_owned())) };
        let (store, what) = (store.clone(), what.to_owned());
        blocking(move || store.remove(&what, force)).await
    }

    /// Gives an image in the cache one more name, which another image may have had. Returns the image's id.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// images.tag("nginx:alpine", &"web:1".parse()?).await?;
    /// # Ok(()) }
    /// ```
    pub async fn tag(&self, what: &str, name: &Reference) -> Result<Digest, CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Err(CacheError::Unknown(what.to_owned())) };
        if !name.is_tag() {
            return Err(CacheError::NoTag(name.to_string()));
        }
        let (store, what, name) = (store.clone(), what.to_owned(), name.clone());
        blocking(move || store.tag(&what, &name)).await
    }

    /// Removes unused images that have no name, or all unused ones and all layers that are kept for later pulls. Images
    /// whose ids are in `keep` stay.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// let pruned = images.prune(true, Default::default()).await?;
    /// println!("{} images, {} bytes", pruned.images.len(), pruned.bytes);
    /// # Ok(()) }
    /// ```
    pub async fn prune(&self, all: bool, keep: BTreeSet<Digest>) -> Result<Pruned, CacheError> {
        let Home::Cache(store) = &self.shared.home else { return Ok(Pruned::default()) };
        let store = store.clone();
        blocking(move || store.prune(all, &keep).map_err(|error| store.failed(error))).await
    }
}

fn image(id: Digest, reference: String, found: Found, scratch: Option<Scratch>) -> Image {
    let Found { rootfs, config, size_bytes, is_outdated, lease } = found;
    Image { id, reference, rootfs, config, size_bytes, is_outdated, _lease: lease, _scratch: scratch }
}

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;
#[cfg(test)]
#[path = "exchange_tests.rs"]
mod exchange_tests;
#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
